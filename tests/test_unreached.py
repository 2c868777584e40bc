"""Targets that are not at hand: estimates, and what is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.estimate import Estimate, KernelEstimate
from edgecompress.model import Model
from edgecompress.runtimes.onnxruntime import OnnxRuntime
from edgecompress.target import TargetProfile
from edgecompress.unreached import estimated
from tests.models import small_cnn

FEEDS = {"x": np.zeros((1, 3, 16, 16), np.float32)}
KERNELS = (
    KernelEstimate("a", "Conv", "conv", 10, 10, 20.0, "computing"),
    KernelEstimate("b", "Gemm", "gemm", 10, 10, 60.0, "memory"),
)


def found(name: str, runtime: OnnxRuntime) -> Any:
    return estimated(
        small_cnn(), runtime, target.load(name), FEEDS, size_bytes=7, why="it is elsewhere"
    )


class Vendors(OnnxRuntime):
    """A runtime whose maker estimates."""

    def estimate(self, model: Model, profile: TargetProfile) -> Mapping[str, Any]:
        return {"latency_ms": 3.0, "memory_mb": 2.0, "source": "the maker's tool"}


class Failing(OnnxRuntime):
    """One whose maker's tool does not take the model."""

    def estimate(self, model: Model, profile: TargetProfile) -> Mapping[str, Any]:
        raise MeasurementError("the tool takes no Conv")


def test_the_vendors_own_estimate_goes_first() -> None:
    told = found("raspberry-pi-4", Vendors())
    assert (told.basis, told.reason, told.note) == (
        "estimated",
        "it is elsewhere",
        "the maker's tool",
    )
    assert (told.latency_ms.p50, told.latency_ms.runs, told.peak_memory_mb) == (3.0, 0, 2.0)
    assert told.expected_error is None


def test_a_roofline_carries_its_expected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Estimate(0.08, 1.9, 5.0, KERNELS, 0.0, "from another processor")
    monkeypatch.setattr("edgecompress.estimate.estimate", lambda *_: made)
    told = found("raspberry-pi-4", OnnxRuntime())
    assert (told.basis, told.expected_error) == ("estimated", 1.9)
    assert told.note == "from another processor"
    assert [(each.name, each.share) for each in told.operators] == [("b", 0.75), ("a", 0.25)]


@pytest.mark.parametrize(
    ("name", "runtime", "said"),
    [
        ("galaxy-s23-npu", OnnxRuntime(), "no estimate is possible for galaxy-s23-npu"),
        ("raspberry-pi-4", Failing(), "the tool takes no Conv"),
    ],
)
def test_what_cannot_be_estimated_is_unknown(name: str, runtime: OnnxRuntime, said: str) -> None:
    told = found(name, runtime)
    assert (told.basis, told.latency_ms, told.size_bytes) == ("unknown", None, 7)
    assert told.reason.startswith("it is elsewhere; ")
    assert said in told.reason
