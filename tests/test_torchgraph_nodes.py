"""ONNX's own backend node tests: each is passed, or refused with an error of ours; never wrong."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from edgecompress.torchgraph import supported_operators
from tests.onnx_node_tests import outcomes


def of_kind(kind: str) -> dict[str, str]:
    return {outcome.name: outcome.reason for outcome in outcomes() if outcome.kind == kind}


def test_no_node_test_is_wrong() -> None:
    assert of_kind("wrong") == {}


def test_most_node_tests_pass() -> None:
    print(Counter(outcome.kind for outcome in outcomes()))
    print(Counter(of_kind("missing").values()).most_common())
    assert len(of_kind("passed")) >= 1766


def test_a_registered_operator_is_refused_only_for_a_type_or_mode_torch_lacks() -> None:
    reasons = (
        "has no torch counterpart",
        "draws random numbers",
        "the specification and onnxruntime differ",
    )
    unexplained = {
        name: text
        for name, text in of_kind("refused").items()
        if not any(reason in text for reason in reasons)
    }
    assert unexplained == {}


def test_the_documented_operators_are_the_known_ones() -> None:
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("conformance", root / "benchmarks/conformance.py")
    assert spec is not None
    assert spec.loader is not None
    conformance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conformance)
    assert conformance.problems((root / "docs/operators.md").read_text()) == []


@pytest.mark.parametrize("name", ["Conv", "MatMul", "LayerNormalization", "Attention", "Resize"])
def test_the_table_names_versions_in_rising_order(name: str) -> None:
    versions = supported_operators()["", name]
    assert versions == tuple(sorted(versions))
