from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import target
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.estimate import Calibration, estimate
from edgecompress.estimate.fitting import typical
from edgecompress.estimate.kernels import Kernel, Tensor, Trace
from edgecompress.estimate.op_costs import RUN, work_of
from edgecompress.estimate.processor import Machine, machine_of
from edgecompress.estimate.roofline import from_trace
from edgecompress.model import Model
from tests.models import small_cnn

KNOWN = Calibration(
    cpu="a CPU",
    runtime_version="1",
    threads=1,
    seconds={RUN: 5e-6, "kernel": 3e-7, "binary: elements": 2e-10, "binary: calls": 0.0},
    peak_float=1e11,
    peak_integer=4e11,
    bandwidth=1e10,
    caches={1: 32 << 10, 2: 1 << 20},
    error=1.3,
    spread=1.5,
)
OTHER = Machine(
    peak_float=2e10,
    peak_integer=8e10,
    bandwidth=5e9,
    cache_bytes=1e5,
    calls=2.0,
    own=False,
    note="a device",
)
FLOAT = "float"


def tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(FLOAT, shape) for shape in shapes)


RUN_OF_TWO = Trace(
    kernels=(
        Kernel("m", "MatMul", tensors((32, 256), (256, 512)), tensors((32, 512)), 524_288),
        Kernel("a", "Add", tensors((32, 512), (512,)), tensors((32, 512)), 2048),
    ),
    peak_bytes=1e6,
    inputs=1,
)
positive = st.floats(1e-3, 1e3)


def cnn_feeds() -> dict[str, np.ndarray]:
    return {"x": np.zeros((1, 3, 16, 16), np.float32)}


def latency(machine: Machine) -> float:
    return from_trace(RUN_OF_TWO, machine, KNOWN).latency_ms


@given(factor=st.floats(1, 1e3), bandwidth=positive, peak=positive)
def test_faster_hardware_is_never_slower(factor: float, bandwidth: float, peak: float) -> None:
    slow = replace(OTHER, bandwidth=1e9 * bandwidth, peak_float=1e9 * peak, peak_integer=4e9 * peak)
    assert slow.bandwidth is not None
    for faster in (
        replace(slow, bandwidth=factor * slow.bandwidth),
        replace(slow, bandwidth=None),
        replace(slow, peak_float=factor * slow.peak_float),
        replace(slow, cache_bytes=1e12),
        replace(slow, calls=slow.calls / factor),
    ):
        assert latency(faster) <= latency(slow) * (1 + 1e-9)


@given(rows=st.integers(1, 400), more=st.integers(1, 400), width=st.integers(2, 300))
def test_more_work_is_never_faster(rows: int, more: int, width: int) -> None:
    def run(rows: int) -> float:
        node = Kernel(
            "m", "MatMul", tensors((rows, width), (width, 8)), tensors((rows, 8)), width * 32
        )
        return from_trace(Trace((node,), 1e6, 1), OTHER, KNOWN).latency_ms

    assert run(rows + 1) <= run(rows + 1 + more) * (1 + 1e-9)


def test_an_estimate_adds_up() -> None:
    found = from_trace(RUN_OF_TWO, OTHER, KNOWN)
    total_us = sum(found.by_op.values()) + found.run_overhead_us
    assert found.latency_ms == pytest.approx(total_us / 1e3)
    assert list(found.by_op) == ["MatMul", "Add"]
    assert found.memory_mb == 1.0
    assert found.kernels[0].operations == 2 * 32 * 256 * 512


def test_a_kernel_is_held_against_the_peak_and_the_bandwidth() -> None:
    fast = replace(OTHER, peak_float=1e18, calls=0.0)
    found = from_trace(RUN_OF_TWO, fast, KNOWN)
    assert [kernel.bound for kernel in found.kernels] == ["memory", "memory"]
    moved = sum(kernel.bytes for kernel in found.kernels)
    assert found.latency_ms == pytest.approx(1e3 * moved / 5e9, rel=1e-3)
    wide = from_trace(RUN_OF_TWO, replace(OTHER, bandwidth=1e18), KNOWN)
    assert wide.kernels[0].bound == "compute"


def test_half_the_peak_is_twice_the_time_of_compute() -> None:
    quick = replace(OTHER, bandwidth=None, calls=0.0)
    slow = replace(quick, peak_float=quick.peak_float / 2)
    assert latency(slow) == pytest.approx(2 * latency(quick))


def test_the_error_is_larger_where_efficiencies_are_carried_over() -> None:
    own = machine_of(target.load(target.host_target()), KNOWN, 1)
    assert own.own
    assert from_trace(RUN_OF_TWO, own, KNOWN).expected_error == 1.3
    other = from_trace(RUN_OF_TWO, OTHER, KNOWN)
    assert other.expected_error == pytest.approx(1.3 * 1.5)
    assert "expected error" in other.note


def test_a_model_on_this_machine() -> None:
    found = estimate(small_cnn(), target.load(target.host_target()), cnn_feeds(), calibration=KNOWN)
    assert 0 < found.latency_ms < 100
    assert math.isfinite(found.latency_ms)
    assert found.expected_error >= 1
    assert found.memory_mb > 0.001
    assert all(kernel.latency_us > 0 for kernel in found.kernels)
    assert {"Conv", "Gemm"} <= set(found.by_op)


def test_slower_devices_are_slower() -> None:
    names = ("raspberry-pi-4", "raspberry-pi-5", "galaxy-s24")
    times = [
        estimate(small_cnn(), target.load(name), cnn_feeds(), calibration=KNOWN).latency_ms
        for name in names
    ]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("galaxy-s24-npu", "nothing of those of its NPU"),
        ("iphone-15", "nothing of those of its NPU"),
        ("rk3588-npu", "nothing of those of its NPU"),
        ("jetson-orin-nano", "nothing of those of its GPU"),
        ("gpu-cuda", "nothing of those of its GPU"),
        ("web-wasm", "no peak of its CPU"),
    ],
)
def test_what_there_is_no_estimate_for(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("edgecompress.estimate.roofline.calibrated")  # refused before that
    with pytest.raises(TargetError, match=f"no estimate is possible for {name}.*{why}"):
        estimate(small_cnn(), target.load(name), cnn_feeds())
    with pytest.raises(TargetError, match=why):
        machine_of(target.load(name), KNOWN, 1)


def test_of_published_peaks_a_part_is_reached_and_of_measured_ones_all() -> None:
    published = target.load("raspberry-pi-4")
    machine = machine_of(published, KNOWN, 1)
    assert machine.peak_float == pytest.approx(0.6 * 14.4e9)
    assert machine.peak_integer == pytest.approx(0.6 * 28.8e9)
    assert machine.bandwidth == pytest.approx(0.6 * 12.8e9)
    assert "60% of published peaks" in machine.note
    server = target.load("xeon-vm")
    machine = machine_of(server, KNOWN, 1)
    assert machine.peak_float == server.hardware.peak("float32")
    assert machine.bandwidth == server.hardware.bandwidth
    assert "published" not in machine.note


@pytest.mark.parametrize("name", ["raspberry-pi-4", "pixel-8", "snapdragon-695", "intel-n100"])
def test_more_threads_are_faster_but_not_by_their_number(name: str) -> None:
    profile = target.load(name)
    peaks = [machine_of(profile, KNOWN, threads).peak_float for threads in (1, 2, 4, 8)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[1] < 2 * peaks[0]
    assert peaks[2] < 3.3 * peaks[0]
    calls = {machine_of(profile, KNOWN, threads).calls for threads in (1, 2, 4)}
    assert len(calls) == 1


@pytest.mark.parametrize(("isa", "factor"), [("avx2 avx_vnni", 4), ("avx2", 1)])
def test_an_unknown_peak_of_integers_follows_from_dot_products(isa: str, factor: int) -> None:
    profile = target.load("intel-n100")
    facts = [f for f in profile.facts if f.quantity != "isa"]
    facts += [f.model_copy(update={"value": isa}) for f in profile.facts if f.quantity == "isa"]
    machine = machine_of(profile.model_copy(update={"facts": tuple(facts)}), KNOWN, 1)
    assert machine.peak_integer == pytest.approx(factor * machine.peak_float)


def test_an_unknown_peak_of_floats_is_half_of_that_of_integers() -> None:
    profile = target.load("raspberry-pi-5")
    facts = tuple(f for f in profile.facts if f.quantity not in ("core_fp32", "peak_fp32"))
    machine = machine_of(profile.model_copy(update={"facts": facts}), KNOWN, 1)
    assert machine.peak_float == pytest.approx(machine.peak_integer / 2)
    assert "half of that of int8" in machine.note


@pytest.mark.parametrize("integer", [False, True])
def test_no_kernel_is_faster_than_the_peak(integer: bool) -> None:
    node = Kernel("m", "MatMul", tensors((64, 512), (512, 512)), tensors((64, 512)))
    if integer:
        small = [Tensor("uint8", shape) for shape in ((64, 512), (), (), (512, 512))]
        node = Kernel("m", "QLinearMatMul", tuple(small), (Tensor("uint8", (64, 512)),))
    counts = work_of(node, 1e6, 0.0).counts
    known = KNOWN.model_copy(update={"seconds": {RUN: 0.0, **dict.fromkeys(counts, 1e-18)}})
    found = from_trace(Trace((node,), 1.0, 1), OTHER, known).kernels[0]
    assert found.latency_us == pytest.approx(1e6 * found.operations / OTHER.peak(integer), rel=0.01)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("intel-n100", "no int8 peak is known: four times that of float"),
        ("pixel-8", "no bandwidth is known"),
        ("openvino-cpu", "stand in for those of openvino"),
    ],
)
def test_what_was_assumed_is_said(name: str, said: str) -> None:
    assert said in machine_of(target.load(name), KNOWN, 1).note


def test_of_a_branch_what_is_taken_counts() -> None:
    model = ir.from_onnx_text(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        branches (float[64, 64] x, bool which) => (float[64, 64] y) {
            y = If(which) <
                then_branch = dear () => (float[64, 64] a) { a0 = MatMul(x, x) a = MatMul(a0, x) },
                else_branch = cheap () => (float[64, 64] b) { b = Relu(x) }
            >
        }
        """
    )
    profile = target.load(target.host_target())
    x = np.ones((64, 64), np.float32)
    dear, cheap = (
        estimate(Model(model), profile, {"x": x, "which": np.array(which)}, calibration=KNOWN)
        for which in (True, False)
    )
    assert set(dear.by_op) == {"If", "MatMul"}
    assert set(cheap.by_op) == {"If", "Relu"}
    assert dear.latency_ms > cheap.latency_ms


def test_a_model_that_does_not_run_is_an_error() -> None:
    with pytest.raises(MeasurementError):
        estimate(
            small_cnn(),
            target.load(target.host_target()),
            {"x": np.zeros((1, 4, 16, 16), np.float32)},
            calibration=KNOWN,
        )


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "silero_vad.onnx"])
def test_real_models(shared: Callable[[str], Path], name: str) -> None:
    feeds: dict[str, np.ndarray] = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    if name.startswith("silero"):
        feeds = {
            "input": np.zeros((1, 512), np.float32),
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000),
        }
    profile = target.load(target.host_target())
    found = estimate(Model.load(shared(name)), profile, feeds, calibration=KNOWN)
    weights = Model.load(shared(name)).weight_bytes / 1e6
    assert found.memory_mb > 0.5 * weights
    assert 0 < found.latency_ms < 1000


@given(st.sampled_from(["dense convolution: MACs", "integer pointwise convolution: MACs", RUN]))
def test_typical_times_are_those_of_a_processor(count: str) -> None:
    assert 1e-13 < typical(count) < 1e-4
