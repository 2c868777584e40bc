"""ONNX's own backend node tests: each is passed, or refused with an error of ours; never wrong."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import supported_operators, to_torch
from edgecompress.torchgraph.values import to_tensor

# Half-precision results may differ in the last bit or two, wherever the sums are ordered
# differently: rtol for the 8 and 11 significant bits of the formats.
_HALF_RTOL = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


class _NotATensorError(Exception):
    """The case is about sequences, optionals or strings."""


def _tensor(data: Any) -> torch.Tensor:
    if isinstance(data, onnx.TensorProto):
        return to_tensor(ir.from_proto(data))
    if isinstance(data, list) or data is None or np.asarray(data).dtype.kind in "OUS":
        raise _NotATensorError
    return to_tensor(ir.tensor(np.asarray(data)))


def _check(got: torch.Tensor, expected: torch.Tensor, rtol: float, atol: float) -> None:
    assert got.dtype == expected.dtype
    torch.testing.assert_close(
        got.double(),
        expected.double(),
        rtol=max(rtol, _HALF_RTOL.get(got.dtype, 0.0)),
        atol=max(atol, _HALF_RTOL.get(got.dtype, 0.0) / 8),
        equal_nan=True,
    )


def _run(case: Any) -> None:
    proto = case.model or onnx.load(f"{case.model_dir}/model.onnx")
    module = to_torch(Model(ir.from_proto(proto)))
    for inputs, outputs in case.data_sets:
        names = [value.name for value in proto.graph.input]
        feeds = {name: _tensor(data) for name, data in zip(names, inputs, strict=False)}
        with torch.no_grad():
            results = module(feeds)
        for value, expected in zip(proto.graph.output, outputs, strict=True):
            _check(results[value.name], _tensor(expected), case.rtol, case.atol)


@cache
def _outcomes() -> dict[str, dict[str, str]]:
    from onnx.backend.test.loader import load_model_tests

    outcomes: defaultdict[str, dict[str, str]] = defaultdict(dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of cases about overflow and division by zero
        for case in load_model_tests(kind="node"):
            try:
                _run(case)
            except UnsupportedOperatorError as error:
                outcomes["missing"][case.name] = ", ".join(error.operators)
            except ModelError as error:
                outcomes["refused"][case.name] = error.what
            except _NotATensorError:
                outcomes["not tensors"][case.name] = ""
            except Exception as error:
                outcomes["wrong"][case.name] = f"{type(error).__name__}: {error}"
            else:
                outcomes["passed"][case.name] = ""
    return outcomes


def test_no_node_test_is_wrong() -> None:
    assert _outcomes()["wrong"] == {}


def test_most_node_tests_pass() -> None:
    outcomes = _outcomes()
    print({kind: len(cases) for kind, cases in outcomes.items()})
    print(Counter(outcomes["missing"].values()).most_common())
    assert len(outcomes["passed"]) >= 1400


def test_a_registered_operator_is_refused_only_for_a_type_or_mode_torch_lacks() -> None:
    reasons = (
        "not implemented for 'UInt64'",
        "not implemented for 'UInt16'",
        "has no torch counterpart",
        "without saturation",
        "draws random numbers",
        "the specification and onnxruntime differ",
    )
    unexplained = {
        name: text
        for name, text in _outcomes()["refused"].items()
        if not any(reason in text for reason in reasons)
    }
    assert unexplained == {}


@pytest.mark.parametrize("name", ["Conv", "MatMul", "LayerNormalization", "Attention", "Resize"])
def test_the_table_names_versions_in_rising_order(name: str) -> None:
    versions = supported_operators()["", name]
    assert versions == tuple(sorted(versions))
