"""Opaque blocks: onnxruntime behind the face of a torch graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecompress.errors import ModelError
from edgecompress.torchgraph import to_torch
from edgecompress.walk.opaque import OpaqueGraph
from tests.models import from_text, small_cnn


def feeds() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def test_slice_agrees_with_torch() -> None:
    model = small_cnn()
    nodes = list(model.ir.graph)
    first, second = OpaqueGraph(model, nodes[:4]), OpaqueGraph(model, nodes[4:])
    assert first.input_names == ("x",)
    assert set(second.input_names) == {"r1", "r2"}
    middle = first(feeds(), outputs=["r1", "r2"])
    found = second(middle, outputs=["y"])["y"]
    with torch.no_grad():
        expected = to_torch(model)(feeds())["y"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_values_inside_can_be_watched() -> None:
    model = small_cnn()
    seen: dict[str, torch.Tensor] = {}
    graph = OpaqueGraph(model, list(model.ir.graph))
    got = graph(feeds(), observe=seen.__setitem__, watch=["c1", "x", "elsewhere"], outputs=["y"])
    assert got.keys() == {"y"}
    assert [*seen] == ["x", "c1"]
    with torch.no_grad():
        expected = to_torch(model)(feeds(), outputs=["c1"])["c1"]
    torch.testing.assert_close(seen["c1"], expected, rtol=1e-5, atol=1e-5)


def test_unknown_operator_is_one_clear_error() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20, "my.domain" : 1]>
        g (float[N, 3] x) => (float[N, 3] y) { y = my.domain.Twist(x) }"""
    )
    graph = OpaqueGraph(model, list(model.ir.graph))
    with pytest.raises(ModelError, match="Twist"):
        graph({"x": torch.zeros(1, 3)}, outputs=["y"])


def test_wrong_shape_is_one_clear_error() -> None:
    model = small_cnn()
    graph = OpaqueGraph(model, list(model.ir.graph))
    with pytest.raises(ModelError, match="cannot run a part of the graph"):
        graph({"x": torch.zeros(1, 5, 16, 16)}, outputs=["y"])


def test_strings_do_not_pass() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N] x) => (string[N] y) { y = Cast<to=8>(x) }"""
    )
    graph = OpaqueGraph(model, list(model.ir.graph))
    with pytest.raises(ModelError, match="cannot pass between blocks"):
        graph({"x": torch.from_numpy(np.zeros(2, np.float32))}, outputs=["y"])
