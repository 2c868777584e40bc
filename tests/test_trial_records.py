from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from edgecompress.measurement_records import Conditions, Memory
from edgecompress.runtimes._peer import Peer
from edgecompress.runtimes._trials import OperatorTimes, Trial
from edgecompress.trial_records import measurement, unsteady


class Told(Peer):
    """Answers of a device that were written down."""

    where = "model.onnx"

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        return {}

    def outputs(self) -> dict[str, Any]:
        return {}

    def __exit__(self, *raised: object) -> None: ...


@pytest.mark.parametrize(
    ("blocks", "waited_ms", "drift", "said"),
    [
        ([2.0, 2.0, 9.0, 2.0, 2.0, 2.0], 0.0, 1.0, []),
        ([2.0, 2.0, 2.4, 2.6, 3.0, 3.0], 0.0, 1.5, ["1.50 times as long as its first, as they do"]),
        ([3.0, 3.0, 3.0, 2.4, 2.4, 2.4], 0.0, 0.8, ["0.80 times as long as its first"]),
        ([1.0] * 6, 9.0, 1.0, ["had to wait for a processor for 50% of the time"]),
        ([1.0, 2.0], 0.0, None, []),
    ],
    ids=["one slow block", "hot", "faster", "waited", "too few blocks"],
)
def test_times_that_are_not_steady_are_told(
    blocks: list[float], waited_ms: float, drift: float | None, said: list[str]
) -> None:
    wall_ms = [[ms, ms, ms] for ms in blocks]
    trial = Trial(Told(), 1.0, wall_ms=wall_ms, cpu_ms=wall_ms, waited_ms=waited_ms)
    assert trial.drift == (None if drift is None else pytest.approx(drift))
    reasons = unsteady(trial)
    assert len(reasons) == len(said)
    for reason, part in zip(reasons, said, strict=True):
        assert part in reason


def test_a_devices_short_answer_is_enough() -> None:
    trial = Trial(
        Told(), 1.0, wall_ms=[[1.0]], cpu_ms=[[math.nan]], memory={"peak_mb": 5.0, "cpu_s": 1.0}
    )
    trial.worker.loaded = {"load_ms": 1.0, "runner_mb": 2.0}
    other = replace(trial)
    conditions = Conditions(
        cpu="a phone",
        os="Android",
        runtime="onnxruntime",
        runtime_version="1",
        provider="CPUExecutionProvider",
        threads=1,
        inputs={},
        quiet=True,
    )
    found = measurement(
        trial, OperatorTimes(), base=other, size_bytes=1, compressed_bytes=1, conditions=conditions
    )
    assert found.memory == Memory(peak_mb=5.0, basis="device", runner_mb=2.0)
    assert found.memory_over_runner_mb == 3.0
    assert found.latency_ratio == 1.0
    assert found.cpu_ratio is None
    assert found.latency_ms is not None
    assert found.latency_ms.cpu_min_ms is None
