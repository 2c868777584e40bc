"""Whether an exported graph computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgecompress.errors import ExportMismatchError, SourceError
from edgecompress.files import ScratchFolder
from edgecompress.model import Model
from edgecompress.sources.loaded import Arrays, Reference

__all__ = ["OTHER_BATCH", "compare", "other_batch", "relative_error"]

Run = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]

# Half precision has 11 bits: a chain of some tens of roundings stays below 2 %.
_TOLERANCES = {"float16": 2e-2}
_TOLERANCE = 1e-3
_LARGE_BYTES = 256 * 2**20  # from here on a copy of the weights less is worth its trouble
OTHER_BATCH = 3
"""Rows of the second comparison."""


def compare(
    model: Model, run: Run, rows: Sequence[Mapping[str, torch.Tensor]], origin: str
) -> tuple[float, Reference]:
    """Run the graph in onnxruntime and the module in torch on the same inputs.

    Args:
        model: The exported graph.
        run: Calls the module; takes tensors by input name, returns its outputs in order.
        rows: Inputs by name, one set after the other; the first are the examples.
        origin: The source, for errors.

    Returns:
        The largest relative error ``max|onnx - torch| / max|torch|`` over all outputs and sets of
        inputs; and torch's outputs on the examples.

    Raises:
        ExportMismatchError: It is above 1e-3 in float32, or 2e-2 in float16.
        SourceError: onnxruntime cannot run the graph.
    """
    names = [spec.name for spec in model.signature.outputs]
    worst = 0.0
    references = []
    with _running(model, origin) as graph:
        for values in rows:
            inputs = {name: tensor.detach().cpu().numpy() for name, tensor in values.items()}
            expected = [tensor.detach().cpu().numpy() for tensor in run(dict(values))]
            for name, got, want in zip(names, graph(inputs), expected, strict=True):
                error = relative_error(got, want)
                if not error <= _TOLERANCES.get(want.dtype.name, _TOLERANCE):
                    raise _mismatch(name, error, got, want, origin)
                worst = max(worst, error)
            references.append(Reference(inputs, dict(zip(names, expected, strict=True))))
    return worst, references[0]


def relative_error(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """``max|got - want| / max|want|`` over the finite values; infinite where shapes differ.

    Not-a-number and infinity must be at the same places on both sides.
    """
    if got.shape != want.shape:
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(b[finite]).max())
    return difference / scale if scale else difference


def _mismatch(
    name: str, error: float, got: npt.NDArray[Any], want: npt.NDArray[Any], origin: str
) -> ExportMismatchError:
    if got.shape != want.shape:
        what = f"expected the shape {list(want.shape)}, got {list(got.shape)}"
    else:
        limit = _TOLERANCES.get(want.dtype.name, _TOLERANCE)
        what = f"expected a relative error of at most {limit:g}, got {error:.2g}"
    return ExportMismatchError(
        f"the exported graph computes something else than torch at output {name!r}: {what}",
        where=origin,
        cure="look for random numbers, data-dependent branches and shapes read as Python numbers "
        "in forward; or set dynamic_batch = false",
    )


def other_batch(
    examples: Mapping[str, torch.Tensor], batch: Collection[str]
) -> dict[str, torch.Tensor]:
    """Random inputs of the same kind: normal with the examples' moments, or drawn from them."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, tensor in examples.items():
        if name not in batch:
            made[name] = tensor
            continue
        shape = (OTHER_BATCH, *tensor.shape[1:])
        if tensor.is_floating_point():
            values = tensor.detach().float().cpu()
            noise = torch.randn(shape, generator=generator)
            other = values.mean() + values.std(correction=0) * noise
        else:
            count = int(np.prod(shape))
            place = torch.randint(tensor.numel(), (count,), generator=generator)
            other = tensor.detach().cpu().flatten()[place].reshape(shape)
        made[name] = other.to(dtype=tensor.dtype, device=tensor.device)
    return made


@contextmanager
def _running(model: Model, origin: str) -> Iterator[_Graph]:
    with (
        ScratchFolder() as folder,
        closing(_Graph(model, folder / "model.onnx", origin)) as graph,
    ):
        yield graph


class _Graph:
    """The model in onnxruntime, from a temporary file, since large ones fit no protobuf."""

    def __init__(self, model: Model, file: Path, origin: str) -> None:
        import onnxruntime

        self._origin = origin
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        large = model.weight_bytes > _LARGE_BYTES
        if large:  # mapped from their file, and not packed into a second copy
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            model.save(file, external_data=large)
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Let go of the file."""
        del self._session

    def __call__(self, inputs: Arrays) -> list[npt.NDArray[Any]]:
        taken = {value.name for value in self._session.get_inputs()}
        feeds = {name: array for name, array in inputs.items() if name in taken}
        try:
            outputs: list[npt.NDArray[Any]] = self._session.run(None, feeds)
        except Exception as error:
            raise self._refused(error) from error
        return outputs

    def _refused(self, error: Exception) -> SourceError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return SourceError(
            f"onnxruntime cannot run the exported graph: {first}",
            where=self._origin,
            cure="use float32 weights and operators that onnxruntime knows",
        )
