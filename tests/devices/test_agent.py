"""The agent on this machine, over a link that is a shell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import target
from edgecompress.devices import DeviceFacts, connect, device_names
from edgecompress.devices._agent import AgentHost, System
from edgecompress.devices._agent_peer import _numpy_type
from edgecompress.devices._build import agent_program, compiler, elf_arch, sources
from edgecompress.devices._facts import device_facts, drift, warnings
from edgecompress.devices._library import VARIABLE, given_library, own_library
from edgecompress.devices._link import Link, LocalLink
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.model import Model
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._onnx_file import artifact_of
from edgecompress.target import machine_arch
from tests.devices.debian import unpacked
from tests.models import from_text, small_cnn
from tests.running import run

ARCH = machine_arch()
CPU = "CPUExecutionProvider"
OPTIONS: dict[str, Any] = {"provider": CPU, "threads": 1}
IMAGE = {"x": np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)}
# Prevents a compiler or onnxruntime of the machine from being found.
NOTHING = "/nonexistent"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or compiler(ARCH) is None,
    reason="the agent needs Linux and a C++ compiler",
)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with LocalLink() as connected:
        yield connected


@pytest.fixture(scope="module")
def host(link: Link) -> AgentHost:
    return AgentHost(link)


def start(host: AgentHost, model: Path | Artifact, feeds: dict[str, Any], **more: Any) -> Any:
    artifact = model if isinstance(model, Artifact) else Artifact((model,))
    options = {**OPTIONS, **more.pop("options", {})}
    return host.start(artifact, feeds, options, where="model", timeout_seconds=60, **more)


def saved(model: Model, folder: Path, **more: Any) -> Path:
    return model.save(folder / "model.onnx", **more)[0]


def reference(file: Path, feeds: dict[str, Any], **config: str) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(file, options, providers=[CPU])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def typed(kind: str) -> Model:
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        same ({kind}[N, 2] a, {kind}[N, 2] "b \\"c\\"") => ({kind}[N, 2] y, {kind}[2, N] z) {{
            y = Identity("b \\"c\\"")
            z = Transpose(a)
        }}
        """.replace('"b \\"c\\""', "b")
    )


def test_it_computes_what_onnxruntime_computes_here(host: AgentHost, tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    with start(host, file, IMAGE) as peer:
        found = peer.outputs()
        assert peer.loaded["providers"] == [CPU]
        assert len(peer.loaded["cpus"]) == 1
        times = peer.ask("run", count=3)
        memory = peer.ask("memory")
        other = {"x": IMAGE["x"][:1] + 1}
        peer.feed(other)
        second = peer.outputs()
    np.testing.assert_array_equal(found["y"], reference(file, IMAGE)["y"])
    np.testing.assert_array_equal(second["y"], reference(file, other)["y"])
    assert len(times["wall_ms"]) == len(times["cpu_ms"]) == 3
    assert min(times["wall_ms"]) > 0
    # Without Python, runner and model together hold less than its interpreter alone with numpy.
    assert 0 < peer.loaded["runner_mb"] < memory["peak_mb"] < 60
    assert memory["arena"]["MaxInUse"] > 0


def test_real_model(host: AgentHost, shared: Callable[[str], Path]) -> None:
    file = shared("resnet20_cifar10.onnx")
    feeds = {"input": np.random.default_rng(1).random((3, 3, 32, 32), dtype=np.float32)}
    with start(host, file, feeds) as peer:
        found = peer.outputs()
    np.testing.assert_array_equal(found["logits"], reference(file, feeds)["logits"])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float", [[1.5, -2.0]]),
        ("double", [[1.5, -2.0], [0.0, 1e300]]),
        ("float16", [[1.5, -2.0]]),
        ("bfloat16", [[1.5, -2.0]]),
        ("int64", [[1 << 40, -1]]),
        ("int32", [[3, -1]]),
        ("int8", [[3, -128]]),
        ("uint8", [[3, 255], [0, 1], [7, 7]]),
        ("uint16", [[3, 65535]]),
        ("bool", [[True, False]]),
    ],
)
def test_types_and_several_tensors(
    host: AgentHost, tmp_path: Path, kind: str, values: list[list[Any]]
) -> None:
    names = {"float": "float32", "double": "float64"}
    a = np.array(values, _numpy_type(names.get(kind, kind)))
    b = a[::-1].copy()
    with start(host, saved(typed(kind), tmp_path), {"b": b, "a": a}) as peer:
        found = peer.outputs()
    assert list(found) == ["y", "z"]
    assert found["y"].dtype == a.dtype
    np.testing.assert_array_equal(found["y"], b)
    np.testing.assert_array_equal(found["z"], a.T)


def test_weights_in_another_file(host: AgentHost, tmp_path: Path) -> None:
    file = saved(small_cnn(channels=16), tmp_path, external_data=True)
    artifact = artifact_of(file)
    assert len(artifact.files) == 2
    with start(host, artifact, IMAGE) as peer:
        found = peer.outputs()
    np.testing.assert_array_equal(found["y"], reference(file, IMAGE)["y"])


def test_session_entries_reach_the_runtime(host: AgentHost, tmp_path: Path) -> None:
    # Told that it is an ORT file, the runtime does not take an ONNX file.
    file = saved(small_cnn(), tmp_path)
    with pytest.raises(MeasurementError, match="could not load it"):
        start(host, file, IMAGE, options={"session.load_model_format": "ORT"})


def test_times_per_operator_are_fetched(host: AgentHost, tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    with start(host, file, IMAGE, trace=tmp_path / "trace") as peer:
        peer.ask("run", count=1)
        profile = Path(peer.ask("end_profiling")["profile"])
    assert profile.parent == tmp_path
    kinds = {event["args"].get("op_name") for event in json.loads(profile.read_text())}
    assert "Conv" in kinds or "FusedConv" in kinds


def test_facts(host: AgentHost) -> None:
    facts = device_facts(host.facts())
    assert facts.arch == ARCH
    assert facts.cores == os.cpu_count()
    assert facts.ram_bytes is not None
    assert facts.ram_bytes > 1e8
    assert "Linux" in facts.os


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({"y": IMAGE["x"]}, "Invalid input name"),
        ({"x": IMAGE["x"].astype("float64")}, "Unexpected input data type"),
        ({"x": np.array(["a"], object)}, "type object cannot be handed over"),
        ({}, "x"),
    ],
)
def test_inputs_that_do_not_fit(
    host: AgentHost, tmp_path: Path, feeds: dict[str, Any], match: str
) -> None:
    with (
        pytest.raises(MeasurementError, match=match),
        start(host, saved(small_cnn(), tmp_path), feeds) as peer,
    ):
        peer.ask("run", count=1)


def test_a_file_that_is_no_model(host: AgentHost, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(MeasurementError, match="could not load it"):
        start(host, tmp_path / "model.onnx", IMAGE)


def test_a_provider_that_is_not_there(host: AgentHost, tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    with pytest.raises(
        MeasurementError, match=f"no XnnpackExecutionProvider, but .*{CPU}"
    ) as error:
        start(host, file, IMAGE, options={"provider": "XnnpackExecutionProvider"})
    assert VARIABLE in str(error.value.cure)


def test_an_older_runtime_with_another_provider(tmp_path: Path) -> None:
    # Debian's 1.21 has XNNPACK, and a shorter function table.
    if ARCH != "x86_64":
        pytest.skip("the packages are those for x86-64")
    folder = unpacked(["python3-onnxruntime", "python3-numpy"]) / "usr/lib/x86_64-linux-gnu"
    library = next(folder.glob("libonnxruntime.so.1*"))
    file = saved(small_cnn(), tmp_path)
    paths = ":".join(str(folder / each) for each in (".", "blas", "lapack"))
    prefix = (str(folder / "ld-linux-x86-64.so.2"), "--library-path", paths)
    provider = "XnnpackExecutionProvider"
    one = {"x": IMAGE["x"][:1]}  # with a symbolic batch, its XNNPACK answers for one row only
    with LocalLink(prefix) as own:
        there = AgentHost(own, library=library)
        options = {"provider": provider}
        with start(there, file, one, options=options, trace=tmp_path / "t") as peer:
            found = peer.outputs()
            assert peer.ask("memory")["arena"] == {}
            profile = json.loads(Path(peer.ask("end_profiling")["profile"]).read_text())
    assert peer.loaded["version"].startswith("1.2")
    assert peer.loaded["providers"] == [provider, CPU]
    ran = {(e["args"].get("op_name"), e["args"].get("provider")) for e in profile}
    assert ("Conv", provider) in ran
    # Other kernels add in another order.
    np.testing.assert_allclose(found["y"], reference(file, one)["y"], rtol=1e-4, atol=1e-5)


def test_a_library_that_is_not_onnxruntime(host: AgentHost, tmp_path: Path) -> None:
    other = AgentHost.__new__(AgentHost)
    other.__dict__.update(host.__dict__, runtime=f"{host.link.folder}/none.so")
    with pytest.raises(MeasurementError, match=r"cannot use it: .*none\.so") as error:
        start(other, saved(small_cnn(), tmp_path), IMAGE)
    assert "pip download onnxruntime" in str(error.value.cure)


def test_a_device_without_space(
    host: AgentHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_free", 2_000_000)
    with pytest.raises(MeasurementError, match=r"MB have to be put .* but 2\.0 MB are free"):
        start(host, saved(small_cnn(channels=64), tmp_path), IMAGE)


def test_an_agent_that_is_killed(host: AgentHost, tmp_path: Path) -> None:
    with start(host, saved(small_cnn(), tmp_path), IMAGE) as peer:
        place = f"{host.link.folder}/agent"
        for status in Path("/proc").glob("[0-9]*/exe"):
            with contextlib.suppress(OSError):
                if os.readlink(status) == place:
                    os.kill(int(status.parent.name), signal.SIGKILL)
        with pytest.raises(MeasurementError, match="killed by SIGKILL") as error:
            peer.ask("run", count=1)
    assert "memory" in str(error.value.cure)


def test_it_ends_with_its_input_even_while_it_runs(host: AgentHost, tmp_path: Path) -> None:
    with start(host, saved(small_cnn(), tmp_path), IMAGE) as peer:
        peer.process.stdin.write('{"do": "run", "count": 100000000}\n')
        peer.process.stdin.close()
        assert peer.process.wait(10) == 0


def test_nothing_is_written_outside_the_folder(
    host: AgentHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with start(host, saved(small_cnn(), tmp_path), IMAGE) as peer:
        peer.ask("run", count=2)
    assert list(home.iterdir()) == []


def test_the_folder_goes_whatever_happens() -> None:
    with contextlib.suppress(KeyboardInterrupt), LocalLink() as one:
        first = Path(one.folder)
        assert first.is_dir()
        raise KeyboardInterrupt
    assert not first.exists()
    code = (
        "from edgecompress.devices._link import LocalLink; import os, signal\n"
        "with LocalLink() as link: print(link.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    second = Path(done.stdout.strip())
    end = time.monotonic() + 10
    while second.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not second.exists()


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: NOTHING)
    broken = LocalLink()
    monkeypatch.undo()
    with pytest.raises(MeasurementError, match="no folder can be made"):
        broken.__enter__()


def test_a_command_that_hangs(link: Link) -> None:
    with pytest.raises(MeasurementError, match="did not answer within"):
        link.run("sleep 5", timeout=0.1)


def test_files_go_there_and_back(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "a b'c"
    file.write_bytes(os.urandom(1000))
    Link.push(link, [(file, "deep/a b'c")])
    link.pull("deep/a b'c", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    with pytest.raises(MeasurementError, match="could not be fetched"):
        link.pull("nothing", tmp_path / "back")


def test_the_agent_is_compiled_on_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = agent_program(ARCH)
    monkeypatch.setattr("edgecompress.devices._agent_host.agent_program", lambda *_, **__: None)
    # Compiling takes seconds: this compiler says that it was asked, and gives what was made before.
    fake = tmp_path / "c++"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked; ls >>{tmp_path}/asked; cp {program} agent'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    file = saved(small_cnn(), tmp_path)
    with LocalLink() as own, start(AgentHost(own), file, IMAGE) as peer:
        np.testing.assert_array_equal(peer.outputs()["y"], reference(file, IMAGE)["y"])
    asked, *there = (tmp_path / "asked").read_text().splitlines()
    assert "-std=c++17" in asked
    assert "agent.cc -o agent" in asked
    assert {"agent.cc", "json.h"} <= set(there)


def test_no_compiler_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # For another processor, what the device has makes no programs.
    other = "riscv64" if ARCH != "riscv64" else "aarch64"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if compiler(other) is not None:
        pytest.skip(f"there is a compiler for {other}")
    library = own_library(ARCH)
    with LocalLink() as own, pytest.raises(MeasurementError, match="no C\\+\\+ compiler") as error:
        AgentHost(own, system=System(other), library=library)
    assert f"g++-{other}-linux-gnu" in str(error.value.cure)


def test_the_program_is_for_its_architecture() -> None:
    for arch in (ARCH, "aarch64"):
        program = agent_program(arch)
        if program is not None:
            assert elf_arch(program.read_bytes()[:20]) == arch
    assert agent_program(ARCH, android=True) is None or "ANDROID_NDK_HOME" in os.environ
    assert [file.name for file in sources()] == ["agent.cc", "device.h", "json.h", "ort_api.h"]


def test_the_ndk_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "toolchains/llvm/prebuilt/linux-x86_64/bin"
    tools.mkdir(parents=True)
    clang = tools / "aarch64-linux-android24-clang++"
    clang.write_text("#!/bin/sh\necho 'x.cc:1: error: no such thing' >&2; exit 1\n")
    clang.chmod(0o755)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    assert compiler("aarch64", android=True) == [str(clang)]
    with pytest.raises(MeasurementError, match=r"could not be compiled by .*no such thing"):
        agent_program("aarch64", android=True)


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + b"rest"


def test_a_library_from_an_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "onnxruntime-android.aar"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("jni/x86_64/libonnxruntime.so", elf(62))
        archive.writestr("jni/arm64-v8a/libonnxruntime4j_jni.so", elf(40))
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", elf(183))
    monkeypatch.setenv(VARIABLE, str(file))
    place = given_library("aarch64", tmp_path)
    assert place is not None
    assert place.read_bytes() == elf(183)
    with pytest.raises(MeasurementError, match="is for aarch64, x86_64, but the device is riscv64"):
        given_library("riscv64", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("library.so", elf(62), "is for x86_64, but the device is aarch64"),
        ("library.so", b"text", "is for something else"),
        ("empty.whl", None, "holds no libonnxruntime.so"),
        ("absent.so", b"", "no such file"),
    ],
)
def test_a_library_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes | None, match: str
) -> None:
    file = tmp_path / name
    if content:
        file.write_bytes(content)
    elif content is None:
        zipfile.ZipFile(file, "w").close()
    monkeypatch.setenv(VARIABLE, str(file))
    with pytest.raises(MeasurementError, match=match) as error:
        given_library("aarch64", tmp_path)
    assert VARIABLE in str(error.value)


@pytest.mark.parametrize("android", [False, True])
def test_no_library_for_the_device(monkeypatch: pytest.MonkeyPatch, android: bool) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    other = System("aarch64" if ARCH != "aarch64" else "x86_64", android=android)
    with LocalLink() as own, pytest.raises(MeasurementError, match="was not found") as error:
        AgentHost(own, system=other)
    assert ("onnxruntime-android" if android else f"manylinux_2_28_{other.arch}") in str(
        error.value
    )


@pytest.fixture(scope="module")
def raw_agent() -> Iterator[Callable[[str], dict[str, Any]]]:
    program = agent_program(ARCH)
    assert program is not None
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe, encoding="utf-8") as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(line: str) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield ask
        process.stdin.close()
        assert process.wait(10) == 0


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.booleans())
def test_any_text_goes_through(raw_agent: Any, text: str, plain: bool) -> None:
    line = json.dumps({"a": [1, -2.5e3, {"b": [None, True, []]}], "do": text}, ensure_ascii=plain)
    known = text in ("facts", "open", "load", "run", "feed", "outputs", "memory", "end_profiling")
    if not known:
        assert raw_agent(line)["error"] == f"unknown request {text}"


@pytest.mark.parametrize(
    "line",
    ["", "{", "nonsense", '{"do": "run"} x', '{"do" "run"}', "[1, 2", '"\\u12"', "[" * 100, "tru"],
)
def test_what_is_not_json(raw_agent: Any, line: str) -> None:
    assert "not valid JSON" in raw_agent(line)["error"]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({}, 'no "do"'),
        ({"do": "open"}, 'no "library"'),
        ({"do": "run", "count": 1}, "no model is loaded"),
        ({"do": "load", "model": "x"}, "no runtime is open"),
    ],
)
def test_requests_out_of_place(raw_agent: Any, request_: dict[str, Any], match: str) -> None:
    assert match in raw_agent(json.dumps(request_))["error"]


def test_facts_of_a_phone() -> None:
    told = {
        "system": "Linux", "release": "5.15", "arch": "aarch64", "host": "localhost",
        "parts": ["0x41 0xd46"] * 3 + ["0x41 0xd4d"] * 4 + ["0x41 0xd4e", "0x61 0x022"],
        "isa": "fp asimd asimddp i8mm", "cores": 8, "ram_bytes": 8e9, "clock_mhz": 2910,
        "android_maker": "Google", "android_model": "Pixel 8", "android_version": "15",
        "soc": "Tensor G3", "temperature_c": 41.5,
    }  # fmt: skip
    assert device_facts(told) == DeviceFacts(
        name="Google Pixel 8",
        cpu="Tensor G3 (3x Cortex-A510 + 4x Cortex-A715 + 1x Cortex-X3 + "
        "1x ARM implementer 0x61 part 0x022)",
        arch="aarch64",
        isa=frozenset({"fp", "asimd", "asimddp", "i8mm"}),
        cores=8,
        ram_bytes=8_000_000_000,
        os="Android 15, Linux 5.15",
        clock_mhz=2910,
        temperature_c=41.5,
    )


def test_doubtful_states_are_told() -> None:
    limited = {"clock_limit_mhz": 1500, "clock_most_mhz": 2400}
    assert warnings(limited) == ["the clock is limited to 1500 of 2400 MHz"]
    assert warnings({"battery": "Discharging", "battery_percent": 9})[0].startswith("the battery")
    assert warnings({"battery": "Charging", "battery_percent": 9}) == []

    def state(clock: float | None, heat: float | None) -> DeviceFacts:
        return DeviceFacts("x", "y", ARCH, clock_mhz=clock, temperature_c=heat)

    assert drift(state(2400, 50), state(2390, 53)) == []
    assert drift(state(None, None), state(1000, 90)) == []
    assert "fell from 2400 to 1500 MHz" in drift(state(2400, 50), state(1500, 52))[0]
    assert "12 degrees warmer" in drift(state(2400, 50), state(2400, 62))[0]


def test_only_onnxruntime_runs_on_devices(tmp_path: Path) -> None:
    profile = target.load("cpu-x86-64").model_copy(update={"runtime": "openvino"})
    from edgecompress.devices._agent import _check_runtime

    with pytest.raises(MeasurementError, match="over ssh run onnxruntime, not openvino"):
        _check_runtime(profile, "ssh://board")


@pytest.mark.parametrize("address", ["ssh:", "ssh://", "ssh://a b", "ssh://-oProxyCommand=x",
    "ssh://-l@host", "ssh://u:password@host", "ssh://host:99999", "ssh://host:0", "ssh://host?x",
    "adb:", "adb:-s", "adb:a b", "adb:a;b"])  # fmt: skip
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(TargetError, match="expected") as error:
        connect(address)
    assert address in str(error.value)


def test_devices_are_known() -> None:
    assert {"ssh", "adb", "local"} <= set(device_names())
    for address in ("ssh://pi@kitchen:22/mnt/usb", "ssh://[::1]:2222", "ssh://Board", "adb:R58M12"):
        assert connect(address).address == address


def test_the_library_is_that_of_this_environment() -> None:
    import onnxruntime

    library = own_library(ARCH)
    assert library is not None
    assert onnxruntime.__version__ in library.name
    assert run(small_cnn(), IMAGE)  # and it is not disturbed by being looked for
