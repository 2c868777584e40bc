"""ONNX's own backend node tests, run in the bridge; shared by a test and by the benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import to_torch
from edgecompress.torchgraph.values import to_tensor

KINDS = ("passed", "missing", "refused", "strings", "wrong")
"""What becomes of a case; ``missing``: an operator without a translation, ``refused``: a form."""

# Half-precision results may differ in the last bit or two, wherever the sums are ordered
# differently: rtol for the 8 and 11 significant bits of the formats.
_HALF_RTOL = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        name: Of the case.
        kind: One of :data:`KINDS`.
        reason: Why it did not pass.
        operators: (domain, operator) of the nodes of its main graph.
    """

    name: str
    kind: str
    reason: str
    operators: frozenset[tuple[str, str]]


class NotANumberError(Exception):
    """The case is about strings."""


def value_of(data: Any) -> Any:
    """A tensor, a list of them for a sequence, or None for an empty optional."""
    if data is None:
        return None
    if isinstance(data, list):
        return [value_of(element) for element in data]
    if isinstance(data, onnx.TensorProto):
        return to_tensor(ir.from_proto(data))
    if np.asarray(data).dtype.kind in "OUS":
        raise NotANumberError
    return to_tensor(ir.tensor(np.asarray(data)))


def _check(got: Any, expected: Any, rtol: float, atol: float) -> None:
    if expected is None:
        assert got is None
        return
    if isinstance(expected, list):
        for element, wanted in zip(got, expected, strict=True):
            _check(element, wanted, rtol, atol)
        return
    assert got.dtype == expected.dtype
    torch.testing.assert_close(
        got.double(),
        expected.double(),
        rtol=max(rtol, _HALF_RTOL.get(got.dtype, 0.0)),
        atol=max(atol, _HALF_RTOL.get(got.dtype, 0.0) / 8),
        equal_nan=True,
    )


def proto_of(case: Any) -> onnx.ModelProto:
    return case.model or onnx.load(f"{case.model_dir}/model.onnx")


def feeds_of(proto: onnx.ModelProto, inputs: Any) -> dict[str, Any]:
    names = [value.name for value in proto.graph.input]
    return {name: value_of(data) for name, data in zip(names, inputs, strict=False)}


def _atol(case: Any, proto: onnx.ModelProto, expected: Any) -> float:
    """The case's own, but of a transform one rounding of its largest frequency.

    Where the others are exactly zero, numpy's float32 transform left noise of that size in the
    expected numbers.
    """
    if any(node.op_type == "DFT" for node in proto.graph.node):
        return max(case.atol, float(expected.double().abs().max()) * 2.0**-24)
    return float(case.atol)


def _run(case: Any, proto: onnx.ModelProto) -> None:
    module = to_torch(Model(ir.from_proto(proto)))
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            results = module(feeds_of(proto, inputs))
        for value, data in zip(proto.graph.output, outputs, strict=True):
            expected = value_of(data)
            _check(results[value.name], expected, case.rtol, _atol(case, proto, expected))


@cache
def cases() -> dict[str, Any]:
    """Name -> case, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of cases about overflow and division by zero
        return {case.name: case for case in load_model_tests(kind="node")}


def _outcome(case: Any) -> Outcome:
    proto = proto_of(case)
    operators = frozenset((node.domain, node.op_type) for node in proto.graph.node)

    def end(kind: str, reason: str = "") -> Outcome:
        return Outcome(case.name, kind, reason, operators)

    try:
        _run(case, proto)
    except UnsupportedOperatorError as error:
        return end("missing", ", ".join(error.operators))
    except ModelError as error:
        return end("refused", error.what)
    except NotANumberError:
        return end("strings")
    except Exception as error:
        return end("wrong", f"{type(error).__name__}: {error}")
    return end("passed")


def _outcomes() -> Iterator[Outcome]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases().values():
            yield _outcome(case)


@cache
def outcomes() -> tuple[Outcome, ...]:
    """All cases, each run once."""
    return tuple(_outcomes())
