"""How long layers take on the target, as they are and in two factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgecompress.data.calibration import CalibrationSet
from edgecompress.factorization.parts import Layer
from edgecompress.graph_pass import Timer
from edgecompress.model import Model
from edgecompress.resources import Resources
from edgecompress.walk.step import Watch
from edgecompress.walk.walker import Walk

__all__ = ["LayerTimes", "input_shapes", "slower_words"]

_ROWS = 8
_POINTS = 6  # of a curve that are measured
_OPSET = 17
_IR_VERSION = 8

_Key = tuple[object, ...]


def input_shapes(
    model: Model,
    layers: Iterable[Layer],
    data: CalibrationSet | None,
    *,
    resources: Resources | None = None,
    device: str = "cpu",
) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers' inputs in a typical inference of one row, by name of the input.

    Args:
        model: The graph.
        layers: Of it.
        data: A few rows of it are looked at, and each dimension's mean is taken; None leaves it to
            what the graph says of its shapes.
        resources: Memory and scratch folder.
        device: torch device.
    """
    layers = list(layers)
    shapes = {layer.input: _stated(layer) for layer in layers}
    if data is None:
        return shapes
    seen: dict[str, list[tuple[int, ...]]] = {}
    given = resources or Resources()
    walk = Walk(
        model,
        data,
        rows=_ROWS,
        batch_size=1,
        device=device,
        memory=given.memory,
        scratch=given.scratch,
    )
    watch = Watch(set(shapes), lambda _, name, x: seen.setdefault(name, []).append(tuple(x.shape)))
    for step in walk:
        step.advance(watch)
    means = {name: tuple(np.mean(found, 0).round().astype(int)) for name, found in seen.items()}
    return shapes | {name: tuple(map(int, mean)) for name, mean in means.items()}


def _stated(layer: Layer) -> tuple[int, ...]:
    if layer.op == "Conv":
        lengths = layer.lengths[0] or (1,) * len(layer.kernel)
        return 1, layer.form.shape[1] * layer.groups, *lengths
    return max(round(layer.macs / layer.parameters), 1), layer.columns


def slower_words(layer: Layer, rank: int, ratio: float) -> str:
    """Why two factors are refused that take ``ratio`` of the dense layer's time."""
    return f"two {layer.op} of rank {rank} take {ratio:.2f} of the dense layer's time on the target"


@dataclass
class LayerTimes:
    """Seconds of layers, alone; what has the same shape is measured once.

    Attributes:
        timer: Measures on the target.
        shapes: Of the layers' inputs, by name.
    """

    timer: Timer
    shapes: Mapping[str, tuple[int, ...]]
    _known: dict[_Key, float] = field(default_factory=dict)

    def of(self, wanted: Sequence[tuple[Layer, int | None]]) -> list[float]:
        """Seconds of one run of each, measured in turn.

        A convolution in two is one of fewer output channels and a 1x1 behind it: other splits of
        the same cost are taken to be alike.

        Args:
            wanted: Layers, each with the rank of its two factors or None for the layer itself.

        Raises:
            MeasurementError: The runtime cannot run one of them.
        """
        self._measure(
            {self._key(*each): each for each in wanted if self._key(*each) not in self._known}
        )
        return [self._known[self._key(*each)] for each in wanted]

    def slower(
        self, wanted: Sequence[tuple[Layer, int]], margin: float
    ) -> dict[tuple[str, int], float]:
        """Those factors that take longer than ``margin`` times the layer, even if measured twice.

        Returns:
            Output of the layer and rank -> time over that of the layer.
        """
        for again in (False, True):
            pairs = [each for layer, rank in wanted for each in ((layer, None), (layer, rank))]
            if again:
                self._measure({self._key(*each): each for each in pairs})
            seconds = self.of(pairs)
            ratios = [two / one for one, two in zip(seconds[::2], seconds[1::2], strict=True)]
            found = [(each, r) for each, r in zip(wanted, ratios, strict=True) if r > margin]
            wanted = [each for each, _ in found]
        return {(layer.output, rank): ratio for (layer, rank), ratio in found}

    def curve(self, layer: Layer, ranks: Sequence[int]) -> list[float]:
        """Seconds of two factors at ascending ranks; some are measured, the others lie between."""
        places = np.linspace(0, len(ranks) - 1, _POINTS).round().astype(int)
        self.of([(layer, ranks[place]) for place in dict.fromkeys(places)])
        known = [rank for rank in ranks if self._key(layer, rank) in self._known]
        seconds = self.of([(layer, rank) for rank in known])
        rising = np.maximum.accumulate(np.interp(ranks, known, seconds))
        return [float(each) for each in rising]

    def _measure(self, wanted: Mapping[_Key, tuple[Layer, int | None]]) -> None:
        models = [_model(layer, rank, self._shape(layer)) for layer, rank in wanted.values()]
        for key, seconds in zip(wanted, self.timer(models) if models else (), strict=True):
            self._known[key] = min(seconds, self._known.get(key, seconds))

    def _shape(self, layer: Layer) -> tuple[int, ...]:
        shape = self.shapes[layer.input]
        return shape if layer.op == "Conv" else (math.prod(shape[:-1]), shape[-1])

    def _key(self, layer: Layer, rank: int | None) -> _Key:
        form = layer.form
        return self._shape(layer), layer.rows, layer.columns, form.groups, form.attributes, rank


def _model(layer: Layer, rank: int | None, shape: tuple[int, ...]) -> bytes:
    """A graph of nothing but the layer, or its two factors, of random weights."""
    if layer.op == "Conv":
        nodes = _convs(layer, rank)
    else:
        widths = [layer.columns, *(() if rank is None else (rank,)), layer.rows]
        pairs = itertools.pairwise(widths)
        nodes = [("MatMul", pair, {}) for pair in pairs]
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    value, made, weights = x, [], []
    for number, (op, size, attributes) in enumerate(nodes):
        array = rng.standard_normal(size, dtype=np.float32)
        weight = ir.Value(name=f"w{number}", const_value=ir.tensor(array, name=f"w{number}"))
        node = ir.node(op, [value, weight], attributes)
        value = node.outputs[0]
        value.name = f"y{number}"
        made.append(node)
        weights.append(weight)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape([None] * len(shape))
    graph = ir.Graph(
        [x], [value], nodes=made, initializers=weights, opset_imports={"": _OPSET}, name="layer"
    )
    model = ir.Model(graph, ir_version=_IR_VERSION)
    return bytes(ir.to_proto(model).SerializeToString())


def _convs(
    layer: Layer, rank: int | None
) -> list[tuple[str, tuple[int, ...], dict[str, int | str | tuple[int, ...]]]]:
    groups = layer.groups
    given = {name: value for name, value in layer.form.attributes or () if value is not None}
    first = {**given, "group": groups}
    if rank is None:
        return [("Conv", layer.form.shape, first)]
    ones = (1,) * len(layer.kernel)
    return [
        ("Conv", (rank * groups, *layer.form.shape[1:]), first),
        ("Conv", (layer.rows * groups, rank, *ones), {"group": groups}),
    ]
