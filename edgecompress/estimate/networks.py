"""A model for timing, in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Probe", "Network"]

_OPSET = 17
_SCALE = 0.02
_POOL = 10_007  # random numbers that weights repeat


@dataclass(frozen=True)
class Probe:
    """A model to be timed.

    Attributes:
        name: What it is of.
        model: Serialized ONNX.
        shape: Of its input, which is called ``x``.
        weight: How much its error matters to the fit.
    """

    name: str
    model: bytes
    shape: tuple[int, ...]
    weight: float = 1.0


@dataclass
class Network:
    """A model in the making; methods take names of values and return those of others.

    Attributes:
        shape: Of the input.
        integers: Put Q and DQ around all layers.
        changing: Make weights that are no constants, which keeps convolutions from other layouts.
    """

    shape: tuple[int, ...]
    integers: bool = False
    changing: bool = False
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import numpy as np

        self.random = np.random.default_rng(0)
        self.values = self.random.standard_normal(_POOL, dtype=np.float32)
        self.shapes["x"] = self.shape

    def constant(self, values: npt.ArrayLike) -> str:
        """An initializer."""
        import numpy as np
        from onnx import numpy_helper

        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int) -> str:
        """A weight; in an integer net a quantized one and its DequantizeLinear."""
        import numpy as np

        values = np.resize(self.values, shape)
        if not self.integers:
            fixed = self.constant(values * np.float32(0.05))
            return self._node("Add", [fixed, self._zero()]) if self.changing else fixed
        quantized = self.constant(np.clip(values * 30, -127, 127).astype(np.int8))
        scale, zero = self.constant(np.float32(_SCALE / 10)), self.constant(np.int8(0))
        return self._node("DequantizeLinear", [quantized, scale, zero])

    def _zero(self) -> str:
        """A zero that only a run can tell."""
        import numpy as np

        if "zero" not in self.shapes:
            one = [self.constant(np.array([0])), self.constant(np.array([1]))]
            flat = self._node("Reshape", ["x", self.constant(np.array([-1]))])
            first = self._node("Slice", [flat, *one])
            self.shapes["zero"] = ()
            self.zero = self._node("Mul", [first, self.constant(np.float32(0))])
        return self.zero

    def _node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return name

    def op(
        self,
        op: str,
        inputs: Sequence[str],
        shape: tuple[int, ...] | None = None,
        *,
        quantized: bool = True,
        **attributes: Any,
    ) -> str:
        """A node; in an integer net its output is quantized."""
        name = self._node(op, inputs, **attributes)
        made = self.shapes[inputs[0]] if shape is None else shape
        self.shapes[name] = made
        return self.quantize(name) if self.integers and quantized else name

    def quantize(self, name: str) -> str:
        """Q and DQ behind a value."""
        import numpy as np

        scale, zero = self.constant(np.float32(_SCALE)), self.constant(np.uint8(128))
        small = self._node("QuantizeLinear", [name, scale, zero])
        back = self._node("DequantizeLinear", [small, scale, zero])
        self.shapes[back] = self.shapes[name]
        return back

    def conv(self, x: str, channels: int, taps: int, *, stride: int = 1, group: int = 1) -> str:
        """A convolution with padding and a Relu behind it."""
        n, before, *size = self.shapes[x]
        inputs = [x, self.weight(channels, before // group, *[taps] * len(size))]
        pads = [taps // 2] * (2 * len(size))
        made = (n, channels, *(-(-each // stride) for each in size))
        steps = [stride] * len(size)
        if self.integers:
            return self.op("Conv", inputs, made, group=group, pads=pads, strides=steps)
        y = self.op("Conv", inputs, made, group=group, pads=pads, strides=steps)
        return self.op("Relu", [y])

    def dense(self, x: str, width: int, *, quantized: bool = True) -> str:
        """A matrix product."""
        *rows, depth = self.shapes[x]
        shape = (*rows, width)
        return self.op("MatMul", [x, self.weight(depth, width)], shape, quantized=quantized)

    def gelu(self, x: str) -> str:
        """The exact Gelu in the form that the runtime knows, without Q/DQ."""
        import numpy as np

        root, one, half = (self.constant(np.float32(v)) for v in (2**0.5, 1, 0.5))
        y = self.op("Div", [x, root], quantized=False)
        y = self.op("Add", [self.op("Erf", [y], quantized=False), one], quantized=False)
        return self.op("Mul", [self.op("Mul", [x, y], quantized=False), half], quantized=False)

    def reshape(self, x: str, *shape: int) -> str:
        """Another shape, without Q/DQ."""
        import numpy as np

        return self.op("Reshape", [x, self.constant(np.array(shape))], shape, quantized=False)

    def swap(self, x: str, *order: int) -> str:
        """Axes in another order, without Q/DQ."""
        made = tuple(self.shapes[x][axis] for axis in order)
        return self.op("Transpose", [x], made, quantized=False, perm=list(order))

    def done(self, name: str, result: str) -> Probe:
        """The probe whose output is ``result``."""
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "probe",
            [helper.make_tensor_value_info("x", kind, self.shape)],
            [helper.make_tensor_value_info(result, kind, self.shapes[result])],
            self.weights,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, ir_version=9, opset_imports=opsets)
        return Probe(name, model.SerializeToString(), self.shape)
