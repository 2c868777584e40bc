"""What each node loses by itself, and what of it reaches the outputs of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from edgecompress.comparison.nodes import NodeError
from edgecompress.comparison.segments import Segments
from edgecompress.comparison.sensitivity import Sensitivity
from edgecompress.comparison.side_by_side import comparable, difference, power
from edgecompress.data.calibration import Batch

__all__ = ["OwnErrors"]


class OwnErrors:
    """Runs the segment of each node on the original's activations, and sums up the errors."""

    def __init__(
        self,
        segments: Segments,
        errors: Mapping[str, NodeError],
        sensitivity: Sensitivity | None,
    ) -> None:
        """Prepare.

        Args:
            segments: Of the compressed graph.
            errors: By the name of the output; own errors are added to them.
            sensitivity: Of the model's outputs; None where torch cannot run the whole graph.
        """
        self._segments = segments
        self._errors = {name: e for name, e in errors.items() if name in segments.borders}
        self._sensitivity = sensitivity
        self._types: dict[str, Tensor] = {}
        self._behind_pairs = frozenset(
            name
            for name in self._errors
            if segments.nodes(name) != segments.nodes(name, behind_pairs=True)
        )

    @property
    def ours(self) -> Collection[str]:
        """All values from which a segment may start."""
        return self._segments.borders

    @property
    def theirs(self) -> Collection[str]:
        """The same, for their types."""
        return self._segments.borders

    def see(self, batch: Batch, name: str, values: Tensor, originals: Mapping[str, Tensor]) -> None:
        """Run the segment of a value that the compressed graph has just computed."""
        self._types[name] = values.new_empty(0)
        error, reference = self._errors.get(name), originals.get(name)
        if error is None or reference is None or not reference.is_floating_point():
            return
        whole = self._loss(batch, name, reference, originals, behind_pairs=False)
        if whole is None:
            error.own_noise = error.avoidable_noise = None
            return
        avoidable: tuple[float, float | None] | None = whole
        if name in self._behind_pairs:
            avoidable = self._loss(batch, name, reference, originals, behind_pairs=True)
        error.own_noise, error.gain = _sum(error.own_noise, error.gain, whole)
        if avoidable is not None:
            error.avoidable_noise, error.avoidable_gain = _sum(
                error.avoidable_noise, error.avoidable_gain, avoidable
            )

    def _loss(
        self,
        batch: Batch,
        name: str,
        reference: Tensor,
        originals: Mapping[str, Tensor],
        *,
        behind_pairs: bool,
    ) -> tuple[float, float | None] | None:
        """Power of the error at the node, and at the outputs."""
        found = self._segments.run(name, originals, self._types, behind_pairs=behind_pairs)
        if found is None or not comparable(reference, found):
            return None
        lost = difference(reference, found)
        noise = power(lost, batch)
        if self._sensitivity is None:
            return noise, None
        return noise, self._sensitivity.reached(batch, name, lost)

    def leave(self) -> None:
        """Give the weights of the block back."""
        self._segments.forget()


def _sum(
    noise: float | None, gain: float | None, more: tuple[float, float | None]
) -> tuple[float, float | None]:
    return (noise or 0.0) + more[0], gain if more[1] is None else (gain or 0.0) + more[1]
