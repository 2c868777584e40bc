from __future__ import annotations

import ipaddress
import os
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from edgecompress import target
from edgecompress.devices import Device, connect
from edgecompress.devices.browser import Browser
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.measure import measure
from edgecompress.measurement_records import Measurement
from edgecompress.model import Model
from edgecompress.runtimes import Artifact, runtime_class
from edgecompress.runtimes._browser import VisitingBrowser
from edgecompress.runtimes._browser_chromium import Chromium
from edgecompress.runtimes._faults import RuntimeCrashError
from edgecompress.runtimes.onnxruntime import OnnxRuntime
from tests.browsers import browser_processes, need_browser, web_profile
from tests.models import small_cnn

PROFILE = web_profile()
FEEDS = {"x": np.random.default_rng(0).random((1, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Device]:
    need_browser()
    with connect("browser") as device:
        yield device


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    file = tmp_path_factory.mktemp("browser") / "cnn.onnx"
    return Artifact(tuple(small_cnn().save(file)))


@pytest.fixture(scope="module")
def resnets(shared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # type: ignore[no-untyped-def]
    """ResNet-20 in float and, by onnxruntime's own tool, in int8."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    source = shared("resnet20_cifar10.onnx")
    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        rows = iter(np.random.default_rng(0).normal(size=(4, 1, 3, 32, 32)).astype(np.float32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row}

    file = tmp_path_factory.mktemp("resnet") / "int8.onnx"
    quantize_static(source, file, Rows(), extra_options={"QuantizeBias": True})
    return {"float": source, "int8": file}


def integer_kernels(measurement: Measurement) -> Counter[str]:
    """As the browser's profile tells them."""
    return Counter(each.op for each in measurement.operators if each.op.startswith("Q"))


def native_integer_kernels(file: Path) -> Counter[str]:
    """Of the CPU provider here, which stands in for the browser where fusion is asked for."""
    nodes = OnnxRuntime().optimized_nodes(Model.load(file), PROFILE)
    return Counter(each.op_type for each in nodes if each.op_type.startswith("Q"))


def test_a_measurement_in_a_browser_is_whole(resnets: dict[str, Path]) -> None:
    need_browser()
    name = onnx.load(resnets["int8"]).graph.input[0].name
    feeds = {name: np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)}
    before = browser_processes()
    addresses = set()
    folders = set(Path(tempfile.gettempdir()).glob("edgecompress-browser-*"))

    def look(label: str, done: int, total: int) -> None:
        for process in (psutil.Process(), *browser_processes()):
            for each in process.net_connections("inet"):
                addresses.update(end.ip for end in (each.laddr, each.raddr) if end)

    found = measure(resnets, PROFILE, feeds, device="browser", reference="float", progress=look)
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)
    assert addresses
    assert browser_processes() == before
    assert set(Path(tempfile.gettempdir()).glob("edgecompress-browser-*")) == folders
    for each in found.values():
        assert each.basis == "measured"
        assert each.latency_ms is not None
        assert each.latency_ms.runs >= 3
        assert each.latency_ms.min > 0
        assert each.load_ms is not None
        assert each.load_ms > 0
        assert each.peak_memory_mb is not None
        assert (
            each.peak_memory_mb > 50
        )  # the page's process has WebAssembly and a JavaScript engine
        assert each.memory is not None
        assert each.memory.arena_mb["wasm_committed"] >= 16
        assert each.conditions is not None
        assert each.conditions.runtime_version.count(".") == 2
        assert each.operators
    assert found["int8"].latency_ratio is not None
    assert integer_kernels(found["int8"]) == native_integer_kernels(resnets["int8"])
    assert {len(each.output_names) for each in found["float"].operators} >= {1}


@pytest.mark.parametrize("which", ["float", "int8"])
def test_outputs_are_those_of_onnxruntime(
    browser: Device, resnets: dict[str, Path], which: str
) -> None:
    artifact = Artifact((resnets[which],))
    model = onnx.load(artifact.path)
    name = model.graph.input[0].name
    feeds = {name: np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)}
    native = runtime_class("onnxruntime")().session(artifact, PROFILE).run(feeds)
    with browser.start(artifact, PROFILE, feeds, where=which) as peer:
        found = peer.outputs()
    assert list(found) == list(native)
    (output,) = found
    scales = {each.name: each for each in model.graph.initializer}
    # In float the order of sums differs; int8 rounds alike but for ties, so within one step.
    step = scales.get(f"{output}_scale")
    atol = 1e-4 if step is None else 1.01 * float(onnx.numpy_helper.to_array(step))
    np.testing.assert_allclose(found[output], native[output], atol=atol)


def test_short_runs_are_timed_in_groups(browser: Device, cnn: Artifact) -> None:
    with browser.start(cnn, PROFILE, FEEDS, where="cnn") as peer:
        for _ in range(3):
            answer = peer.ask("run", count=500)
    tick = peer.loaded["clock_ms"]
    assert answer["group"] * min(answer["wall_ms"]) >= 20 * tick
    assert len(answer["wall_ms"]) == -(-500 // answer["group"])
    assert all(each > 0 for each in answer["cpu_ms"])


@pytest.mark.parametrize(
    ("sent", "error", "cure"),
    [(signal.SIGKILL, MeasurementError, "memory"), (signal.SIGSEGV, RuntimeCrashError, "")],
)
def test_a_page_that_dies_is_told(
    browser: Device, cnn: Artifact, sent: int, error: type[MeasurementError], cure: str
) -> None:
    with browser.start(cnn, PROFILE, FEEDS, where="cnn") as peer:
        os.kill(peer._tab.pid, sent)  # type: ignore[attr-defined]
        with pytest.raises(MeasurementError, match="the page's process ended") as death:
            peer.ask("run", count=1)
    assert type(death.value) is error
    assert death.value.where == "cnn"
    assert cure in (death.value.cure or "")


def test_a_browser_that_dies_is_told(cnn: Artifact) -> None:
    need_browser()
    with (
        connect("browser") as device,
        device.start(cnn, PROFILE, FEEDS, where="cnn") as peer,
    ):
        device._pages.chromium.process.kill()  # type: ignore[attr-defined]
        with pytest.raises(MeasurementError, match="the browser ended"):
            peer.ask("run", count=1)


def test_a_slowed_browser_calls_itself_a_stand_in() -> None:
    need_browser()
    with connect("browser:throttle=4") as device:
        facts = device.facts()
    assert "slowed down 4 times as a stand-in for a phone" in facts.name
    assert facts.arch == "wasm32"
    assert facts.cores is not None


@pytest.mark.parametrize(
    "address",
    [
        "browser:nonsense",
        "browser:throttle=0.5",
        "browser:throttle=x",
        "browser:h:99999",
        "browser:h:",
    ],
)
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(TargetError, match="expected an address of a browser"):
        connect(address)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EDGECOMPRESS_CHROMIUM", "no-such-browser", "no program 'no-such-browser'"),
        ("EDGECOMPRESS_CHROMIUM", "true", "Chromium ended"),
        ("EDGECOMPRESS_ORT_WEB", "nowhere", "no dist/ort.wasm.min.mjs in nowhere"),
    ],
)
def test_a_browser_that_cannot_start_is_told(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_browser()
    monkeypatch.setenv(variable, value)
    with pytest.raises(MeasurementError, match=said) as refused, connect("browser"):
        pass
    assert refused.value.cure


def test_no_browser_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECOMPRESS_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasurementError, match="no browser is installed here"), Chromium():
        pass


def test_another_runtime_is_refused(browser: Device, cnn: Artifact) -> None:
    with pytest.raises(MeasurementError, match="a browser runs onnxruntime_web"):
        browser.start(cnn, target.load(target.host_target()), FEEDS, where="cnn")


def test_a_visitor_that_never_comes_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_browser()
    monkeypatch.setattr(Browser, "patience_seconds", 0.1)
    with pytest.raises(MeasurementError, match=r"nobody opened http://.* within 0.1 s"):
        connect("browser:127.0.0.1:0").__enter__()
    assert "Open this page" in capsys.readouterr().err


def test_a_port_in_use_is_told() -> None:
    need_browser()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MeasurementError, match=f"cannot listen on 127.0.0.1:{port}"):
            connect(f"browser:127.0.0.1:{port}").__enter__()


def test_a_visiting_browser_is_measured(cnn: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    need_browser()
    before = browser_processes()
    leave = threading.Event()
    visitors: list[threading.Thread] = []

    def visit(url: str) -> None:
        with Chromium() as phone:
            phone.open(url, lambda reason, crashed: None)
            leave.wait(60)

    def invite(url: str) -> None:
        visitors.append(threading.Thread(target=visit, args=(url,)))
        visitors[0].start()

    monkeypatch.setattr("edgecompress.runtimes._browser._print_qr_code", invite)
    native = runtime_class("onnxruntime")().session(cnn, PROFILE).run(FEEDS)
    try:
        with connect("browser:127.0.0.1:0") as device:
            assert isinstance(device._pages, VisitingBrowser)  # type: ignore[attr-defined]
            assert "Chrome" in device.facts().os
            with (
                device.start(cnn, PROFILE, FEEDS, where="one") as one,
                device.start(cnn, PROFILE, FEEDS, where="other") as other,
            ):
                assert other.ask("run", count=2)["wall_ms"]
                np.testing.assert_allclose(one.outputs()["y"], native["y"], atol=1e-5)
                memory = one.ask("memory")
                assert memory["peak_mb"] is None
                assert memory["arena"]["wasm_committed"] >= 1 << 24
    finally:
        leave.set()
        for each in visitors:
            each.join()
    assert browser_processes() == before
