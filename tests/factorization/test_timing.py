"""Layers by themselves: the graphs that are timed, and times on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import MeasurementError
from edgecompress.evaluation import Evaluator, load_target
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.parts import Layer
from edgecompress.factorization.timing import LayerTimes, input_shapes
from edgecompress.graph_pass import Timer
from edgecompress.model import Model
from tests.factorization.factor_runs import chain, rows, tokens
from tests.models import from_text, small_cnn
from tests.running import rows_of, run


def layers_of(model: Model) -> dict[str, Layer]:
    return {layer.output: layer for layer in find_layers(model, lambda node: True)[0]}


class Shelf:
    """Keeps the models that it is asked for; the n-th one takes n seconds."""

    def __init__(self) -> None:
        self.models: list[Model] = []

    def __call__(self, models: Sequence[bytes]) -> list[float]:
        first = len(self.models) + 1
        protos = [ir.serde.onnx.ModelProto.FromString(each) for each in models]
        self.models += [Model(ir.from_proto(each)) for each in protos]
        return [float(first + i) for i in range(len(models))]


def grouped() -> Model:
    rng = np.random.default_rng(0)
    return from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 8, 9, 7] x, float[12, 4, 3, 3] w) => (float[N, 12, 5, 4] y)
        { y = Conv<group=2, pads=[1, 1, 1, 1], strides=[2, 2]>(x, w) }
        """,
        w=rng.normal(0, 1, (12, 4, 3, 3)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("model", "output", "rank", "shape", "sizes", "result"),
    [
        (small_cnn(), "c1", None, (1, 3, 16, 16), [(8, 3, 3, 3)], (1, 8, 8, 8)),
        (small_cnn(), "c1", 3, (1, 3, 16, 16), [(3, 3, 3, 3), (8, 3, 1, 1)], (1, 8, 8, 8)),
        (small_cnn(), "y", 5, (1, 8), [(8, 5), (5, 10)], (1, 10)),
        (grouped(), "y", 2, (1, 8, 9, 7), [(4, 4, 3, 3), (12, 2, 1, 1)], (1, 12, 5, 4)),
    ],
)
def test_what_is_timed(
    model: Model,
    output: str,
    rank: int | None,
    shape: tuple[int, ...],
    sizes: list[tuple[int, ...]],
    result: tuple[int, ...],
) -> None:
    layer, shelf = layers_of(model)[output], Shelf()
    LayerTimes(shelf, {layer.input: shape}).of([(layer, rank)])
    (made,) = shelf.models
    made.check()
    weights = made.ir.graph.initializers.values()
    assert [tuple(v.const_value.shape.numpy()) for v in weights if v.const_value] == sizes
    (found,) = run(made, {"x": np.ones(shape, np.float32)}).values()
    assert found.shape == result
    assert np.isfinite(found).all()


def test_the_same_shape_is_timed_once() -> None:
    layers, shelf = layers_of(chain()), Shelf()
    times = LayerTimes(shelf, {x.input: (1, 5, x.columns) for x in layers.values()})
    first = times.of([(layers["h1"], None), (layers["h1"], 4), (layers["m1"], None)])
    assert first == [1.0, 2.0, 3.0]
    again = times.of([(layers["h2"], 4), (layers["h2"], None), (layers["m2"], None)])
    assert again == [2.0, 1.0, 3.0]
    assert len(shelf.models) == 3


def test_slower_factors_are_measured_twice() -> None:
    seconds = iter([[1.0, 1.5, 2.0], [1.0, 1.02, 2.2]])
    times = LayerTimes(lambda models: next(seconds), {"x": (5, 16), "r1": (5, 32)})
    layers = layers_of(chain())
    wanted = [(layers["h1"], 4), (layers["h1"], 8)]
    assert times.slower(wanted, 1.03) == {("h1", 8): 2.0}
    # The shortest time counts.
    assert times.of([(layers["h1"], None), *wanted]) == [1.0, 1.02, 2.0]


def test_times_between_those_measured() -> None:
    layer = layers_of(chain(width=64))["h1"]
    asked: list[int] = []

    def timer(models: Sequence[bytes]) -> list[float]:
        asked.append(len(models))
        return [1.0 + i for i in range(len(models))]

    curve = LayerTimes(timer, {"x": (5, 64)}).curve(layer, range(1, 42))
    assert asked == [6]
    assert curve == pytest.approx(np.linspace(1, 6, 41))


def test_shapes_of_a_typical_row(tmp_path: Path) -> None:
    model = chain()
    layers = list(layers_of(model).values())
    data = rows(tmp_path, model, tokens(rows=12, length=5))
    assert input_shapes(model, layers, data) == {
        "x": (1, 5, 16),
        "r1": (1, 5, 32),
        "s1": (1, 5, 16),
        "r2": (1, 5, 32),
    }
    assert input_shapes(model, layers, None)["x"] == (1, 16)
    images = small_cnn()
    x = np.zeros((9, 3, 16, 16), np.float32)
    found = input_shapes(images, layers_of(images).values(), rows_of(tmp_path, images, {"x": x}))
    assert found == {"x": (1, 3, 16, 16), "r2": (1, 8, 8, 8), "v": (1, 8)}
    assert input_shapes(images, layers_of(images).values(), None) == found


def host_timer() -> Timer:
    timer = Evaluator(load_target("host")).timer
    assert timer is not None
    return timer


def test_times_on_this_machine() -> None:
    model = small_cnn()
    layers = layers_of(model)
    times = LayerTimes(host_timer(), input_shapes(model, layers.values(), None))
    found = times.of([(layer, rank) for layer in layers.values() for rank in (None, 2)])
    assert len(found) == 6
    assert all(0 < seconds < 1 for seconds in found)
    assert host_timer()([]) == []


def test_a_model_that_cannot_be_timed() -> None:
    with pytest.raises(MeasurementError, match="single layers"):
        host_timer()([b"nothing"])


def test_no_timer_where_the_target_is_not_at_hand() -> None:
    assert Evaluator(load_target("qnn-htp")).timer is None
