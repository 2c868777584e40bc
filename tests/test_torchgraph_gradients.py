"""Gradients against central finite differences in float64, over ONNX's own node tests."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.torchgraph.registry import find
from tests.onnx_node_tests import NotANumberError, cases, feeds_of, proto_of

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_STEP = 1e-6
"""Truncation 1e-12 and rounding 1e-10 relative: far below the tolerance."""

# Operators of which no derivative can be taken, with the reason. All others must agree.
_LEFT_OUT = {
    "BitCast": "looks at bits",
    "Cast": "rounds to a number format",
    "CastLike": "rounds to a number format",
}


def _widen(graph: onnx.GraphProto) -> None:
    """Turn every float constant, and every request for a float type, into float64."""
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
            elif attribute.name in ("to", "dtype", "output_dtype", "output_datatype"):
                if attribute.i in _FLOATS:
                    attribute.i = TensorProto.DOUBLE
            elif attribute.name in ("softmax_precision", "stash_type", "precision"):
                attribute.i = TensorProto.DOUBLE
            elif attribute.name in ("value_float", "value_floats"):
                _to_tensor(attribute)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        array = numpy_helper.to_array(tensor).astype("float64")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _to_tensor(attribute: onnx.AttributeProto) -> None:
    values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
    tensor = numpy_helper.from_array(np.array(values, np.float64))
    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


class _NoSlopeError(Exception):
    """There is nothing to compare, for the reason given."""


@dataclass
class Point:
    """A case in float64, at a place beside its own: kinks and ties are left to either side."""

    module: TorchGraph
    feeds: dict[str, Any]
    weights: dict[str, torch.Tensor]

    def value(self, moved: dict[str, torch.Tensor]) -> torch.Tensor:
        """A random projection of all float outputs."""
        results = self.module(self.feeds | moved)
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64)
        found = False
        for result in results.values():
            for tensor in result if isinstance(result, list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    share = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                    total = total + (tensor.double() * share).sum()
                    found = True
        if not found:
            raise _NoSlopeError("no float output")
        if not total.isfinite():
            raise _NoSlopeError("the result is infinite or not a number")
        return total


def _read_as_numbers(proto: onnx.ModelProto) -> set[str]:
    """Inputs that operators read on the host, as sizes and bounds: they have no gradient."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    found = set()
    for node in proto.graph.node:
        operator = find(node.domain, node.op_type, opsets.get(node.domain, 1))
        if operator is not None:
            found.update(name for i, name in enumerate(node.input) if i in operator.host)
    return found


def _point(case: Any) -> Point:
    proto = onnx.ModelProto()
    proto.CopyFrom(proto_of(case))
    for node in proto.graph.node:
        if node.op_type in _LEFT_OUT:
            raise _NoSlopeError(_LEFT_OUT[node.op_type])
    _widen(proto.graph)
    generator = torch.Generator().manual_seed(0)
    fixed = _read_as_numbers(proto)
    feeds, weights = {}, {}
    for name, value in feeds_of(proto, case.data_sets[0][0]).items():
        feeds[name] = value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            feeds[name] = wide = value.double()
            if name not in fixed:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                weights[name] = feeds[name] = wide * (1 + 1e-3 * noise) + 1e-4 * noise
    if not weights:
        raise _NoSlopeError("no float input")
    return Point(to_torch(Model(ir.from_proto(proto))), feeds, weights)


def _slopes(point: Point) -> dict[str, tuple[float, float]]:
    """Input -> slope by autograd and by finite differences, along a random direction."""
    leaves = {name: value.clone().requires_grad_() for name, value in point.weights.items()}
    total = point.value(leaves)
    gradients: tuple[Any, ...] = (None,) * len(leaves)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(2)
    slopes = {}
    with torch.no_grad():
        for (name, value), gradient in zip(point.weights.items(), gradients, strict=True):
            way = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            ahead = point.value({name: value + _STEP * way})
            behind = point.value({name: value - _STEP * way})
            slope = 0.0 if gradient is None else float((gradient * way).sum())
            slopes[name] = slope, float(ahead - behind) / (2 * _STEP)
    return slopes


def _agree(slope: float, expected: float) -> bool:
    return abs(slope - expected) <= 1e-4 * max(1.0, abs(expected))


def sample() -> list[str]:
    """Each third case by name, and the first case of each operator; functions written out twice
    (``_expanded``) are left to the operators that they consist of.
    """
    names = sorted(name for name in cases() if "_expanded" not in name)
    first: dict[str, str] = {}
    for name in names:
        for node in proto_of(cases()[name]).graph.node:
            first.setdefault(node.op_type, name)
    return sorted({*names[::3], *first.values()})


def test_gradients_agree_with_finite_differences() -> None:
    wrong: dict[str, Any] = {}
    left_out: Counter[str] = Counter()
    compared = 0
    for name in sample():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's, of constants that overflow
                slopes = _slopes(_point(cases()[name]))
        except _NoSlopeError as reason:
            left_out[str(reason)] += 1
        except (ModelError, NotANumberError):
            left_out["refused"] += 1
        else:
            compared += 1
            apart = {input_: pair for input_, pair in slopes.items() if not _agree(*pair)}
            if apart:
                wrong[name] = apart
    print(compared, left_out)
    assert wrong == {}
    assert compared >= 250


@pytest.mark.parametrize(
    "file", ["resnet20_cifar10.onnx", "mobilenet_v1_075_224.onnx", "mobilenet_v2_cifar10_224.onnx"]
)
def test_every_weight_of_a_real_model_has_a_gradient(
    shared: Callable[[str], Path], file: str
) -> None:
    model = Model.load(shared(file))
    graph = to_torch(model)
    (name,) = graph.input_names
    shape = [n if isinstance(n, int) else 2 for n in model.ir.graph.inputs[0].shape]
    generator = torch.Generator().manual_seed(0)
    (logits,) = graph({name: torch.randn(shape, generator=generator)}).values()
    labels = torch.zeros(len(logits), dtype=torch.int64)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    weights = graph.parameters_by_initializer
    assert len(weights) >= 40
    bad = [
        name
        for name, weight in weights.items()
        if weight.grad is None or not weight.grad.isfinite().all() or not weight.grad.any()
    ]
    assert bad == []
