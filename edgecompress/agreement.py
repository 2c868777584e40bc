"""How far the outputs of a target are from those of onnxruntime: the records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Agreement", "OutputDifference", "Divergence"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class OutputDifference(_Record):
    """One output against the reference.

    Attributes:
        name: Its name.
        cosine: Of the angle between the two; 1 where they point the same way.
        relative_error: Norm of the difference over that of the reference; for integers and truth
            values the share of elements that differ.
        largest: Largest difference of an element.
    """

    name: str
    cosine: float
    relative_error: float
    largest: float


class Divergence(_Record):
    """The first node behind which the outputs depart, and the error if the graph ends there."""

    node: str
    op: str
    relative_error: float | None
    detail: str


class Agreement(_Record):
    """Outputs of a target against those of onnxruntime on the same file and inputs.

    Attributes:
        passed: Whether all outputs are as close as the number format allows.
        reference: What they are held against.
        allowed: Largest relative error that passes.
        basis: Where that limit comes from.
        outputs: Each output.
        divergence: Where it goes wrong, if it does and could be found.
    """

    passed: bool
    reference: str
    allowed: float
    basis: str
    outputs: list[OutputDifference]
    divergence: Divergence | None = None

    @property
    def worst(self) -> OutputDifference:
        """The output that differs most."""
        return max(self.outputs, key=lambda each: each.relative_error)
