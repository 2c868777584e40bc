"""Weights and biases as TFLite's kernels want them, shared by convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Affine8, Tensor
from edgecompress.litert_writer.ranges import Stored, stored
from edgecompress.litert_writer.registry import RefusalError
from edgecompress.litert_writer.translation import Translation

__all__ = ["Weights", "weights_of"]

_LOWEST = -127
_INT32 = np.iinfo(np.int32)

Arrange = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's constant weight.

    Attributes:
        name: Of the ONNX value.
        floats: Its numbers.
        held: Its integers, where it has some that integer kernels take.
    """

    name: str
    floats: npt.NDArray[Any]
    held: Stored | None

    def scales(self, channels: int) -> npt.NDArray[np.float32]:
        """A scale for each of the output channels."""
        assert self.held is not None
        return np.broadcast_to(self.held.scales.reshape(-1), (channels,)).astype(np.float32)

    def tensor(self, t: Translation, arrange: Arrange, axis: int, *, integers: bool) -> Tensor:
        """The weight in the file.

        Args:
            t: The translation.
            arrange: From ONNX's order of axes to that of the kernel.
            axis: Where output channels are then.
            integers: Whether as int8.
        """
        if self.held is None:
            return t.weights(self.name, np.ascontiguousarray(arrange(self.floats)))
        array = self.held.integers
        if (array < _LOWEST).any():
            t.note("weights of -128 became -127, as TFLite's kernels demand, in {} layers")
            array = np.maximum(array, np.int8(_LOWEST))
        scales = self.held.scales.reshape(-1)
        stored = t.weights(self.name, np.ascontiguousarray(arrange(array)), scales, axis)
        if integers:
            return stored
        # Small in the file; the runtime makes floats of it once, when it loads the file.
        t.note("{} layers compute in float on int8 weights: nothing quantizes what they make")
        floats = t.fresh(f"{self.name};float", stored.shape, "float32")
        t.emit("DEQUANTIZE", [stored], [floats], "DequantizeOptions")
        return floats

    def bias(
        self, t: Translation, bias: npt.NDArray[Any] | None, channels: int, source: Affine8 | None
    ) -> Tensor:
        """The bias in the file: float, or int32 with the product of the scales."""
        name = f"{self.name};bias"
        floats = np.zeros(channels, np.float32) if bias is None else bias.reshape(-1)
        floats = np.broadcast_to(floats, (channels,))
        if source is None:
            return t.weights(name, np.ascontiguousarray(floats, dtype=np.float32))
        assert self.held is not None
        product = np.float32(source.scale) * self.scales(channels)
        steps = np.rint(floats.astype(np.float64) / product.astype(np.float64))
        integers = np.clip(steps, _INT32.min, _INT32.max).astype(np.int32)
        one = self.held.scales.size == 1
        return t.weights(name, integers, product[:1] if one else product)


def weights_of(t: Translation, value: ir.Value | None, axis: int) -> Weights:
    """A layer's weight, which must be constant.

    Args:
        t: The translation.
        value: The weight.
        axis: Its output channels, along which it may have scales.

    Raises:
        RefusalError: It is computed while the model runs.
    """
    floats = t.array(value)
    if floats is None or value is None:
        raise RefusalError("its weights are computed while it runs; only constants are written")
    held = stored(value)
    if held is not None and not (held.symmetric and held.axis in (None, axis % floats.ndim)):
        t.note(
            "weights of {} layers stayed float: TFLite's integer kernels want zero point 0 "
            "and scales along the output channels"
        )
        held = None
    return Weights(value.name or "weight", floats.astype(np.float32), held)
