from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecompress import target
from edgecompress.errors import TargetError
from edgecompress.machine.host import host
from edgecompress.measure import reachable
from edgecompress.target import Host

ALL = target.names()


def machine(arch: str, *isa: str) -> Host:
    return Host("a CPU", arch, frozenset(isa), 2, 4, 8 << 30, "an OS")


def write(folder: Path, text: str, name: str = "mine") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


MINIMAL = """
name = "mine"
description = "a test"
runtime = "onnxruntime"
provider = "CPUExecutionProvider"
[device]
kind = "host"
"""

WEIGHT_ONLY = """
[weight_only]
layout = "nbits"
bits = [4, 8]
block_sizes = [32]
"""


def test_profiles_of_the_first_house_are_there() -> None:
    assert {
        "cpu-x86-64",
        "cpu-arm64",
        "android-cpu",
        "ios-coreml",
        "web-wasm",
        "gpu-cuda",
        "qnn-htp",
    } <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_profile_loads_and_every_fact_has_a_source(name: str) -> None:
    profile = target.load(name)
    assert profile.name == name
    assert profile.facts
    assert all(fact.source.strip() and fact.name.strip() for fact in profile.facts)
    assert len({fact.name for fact in profile.facts}) == len(profile.facts)
    assert profile.int8 is not None or profile.int8_note, "say why there are no integer kernels"


def test_a_path_is_taken_as_well(tmp_path: Path) -> None:
    profile = target.load(write(tmp_path, MINIMAL))
    assert profile.measurement.threads == 1
    assert profile.int8 is None
    assert profile.constraints(host()).int8 is None
    assert profile.constraints(host()).int8_ops == frozenset()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "kindd = 1", r"key 'device\.kindd': unknown key; did you mean 'kind'\?"),
        ("provder = 'x'\n" + MINIMAL, r"key 'provder': unknown key; did you mean 'provider'\?"),
        (MINIMAL + "[[facts]]\nname='a'\nvalue=1\nunit=''\nsource='b'\nconfidence='c'\n", "facts"),
        (MINIMAL + "[[facts]]\nname='a'\nvalue=1\nunit=''\nconfidence='vendor'", "source.*missing"),
        (MINIMAL.replace('"host"', '"moon"'), r"key 'device\.kind'.*got 'moon'"),
        (MINIMAL.replace("[device]", "[device"), "is not valid TOML"),
        (MINIMAL.replace('"mine"', '"yours"'), "differs from the file's name"),
        (MINIMAL + "[measurement]\nthreads = 0", r"key 'measurement\.threads'.*got 0"),
        (MINIMAL + "[int8]\nweight_bits = 6", r"key 'int8\.activation': the key is missing"),
        (
            MINIMAL + WEIGHT_ONLY + "bitz = 1",
            r"'weight_only\.bitz': unknown key; did you mean 'bits'",
        ),
        (MINIMAL + WEIGHT_ONLY.replace("[4, 8]", "[3]"), r"key 'weight_only\.bits\.0'.*got 3"),
        (MINIMAL + WEIGHT_ONLY.replace("[4, 8]", "[8, 4]"), "positive numbers in ascending order"),
        (MINIMAL + WEIGHT_ONLY.replace("[32]", "[0]"), "positive numbers in ascending order"),
        (MINIMAL + "[half]\ndtype = 'float8'\nnative = true", r"key 'half\.dtype'.*got 'float8'"),
        (MINIMAL + "[half]\ndtype = 'float16'", r"key 'half\.native': the key is missing"),
        ("wide_activation = 'uint8'\n" + MINIMAL, r"key 'wide_activation'.*got 'uint8'"),
    ],
)
def test_broken_profiles_are_refused_with_file_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        target.load(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)


def test_other_packages_add_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, MINIMAL)
    for place in (str(tmp_path), file):
        point = SimpleNamespace(load=lambda place=place: place)
        monkeypatch.setattr(target, "entry_points", lambda group, point=point: [point])
        assert "mine" in target.names()
        assert target.load("mine").description == "a test"


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(TargetError, match="did you mean 'cpu-arm64'"):
        target.load("cpu-arm")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        target.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "isa", "bits"),
    [
        ("cpu-x86-64", ("avx2",), 7),
        ("cpu-x86-64", ("avx512f", "avx512bw"), 7),
        ("cpu-x86-64", ("avx512_vnni",), 8),
        ("cpu-x86-64", ("avx2", "avx_vnni"), 8),
        ("cpu-arm64", (), 8),
        ("web-wasm", (), 8),
    ],
)
def test_seven_bits_where_the_kernels_saturate(name: str, isa: tuple[str, ...], bits: int) -> None:
    int8 = target.load(name).constraints(machine("x86_64", *isa)).int8
    assert int8 is not None
    assert int8.weight_bits == bits


@pytest.mark.parametrize(
    ("name", "activation", "symmetric"),
    [
        ("cpu-x86-64", "uint8", False),
        ("cpu-arm64", "int8", False),
        ("android-cpu", "int8", True),
        ("web-wasm", "uint8", False),
        ("gpu-tensorrt", "int8", True),
    ],
)
def test_integer_formats(name: str, activation: str, symmetric: bool) -> None:
    constraints = target.load(name).constraints(machine("x86_64"))
    assert constraints.int8 is not None
    assert constraints.int8.activation == activation
    assert constraints.int8.activation_symmetric is symmetric
    assert "Conv" in constraints.int8_ops


@pytest.mark.parametrize(
    ("name", "wide", "dynamic", "layout", "native"),
    [
        ("cpu-x86-64", None, True, "nbits", False),
        ("cpu-arm64", None, True, "nbits", False),
        ("android-cpu", None, True, "nbits", False),
        ("web-wasm", None, True, "nbits", False),
        ("gpu-cuda", None, False, "nbits", True),
        ("gpu-tensorrt", None, False, "qdq", True),
        ("ios-coreml", None, False, None, False),
        ("qnn-htp", "uint16", False, None, False),
    ],
)
def test_other_formats(
    name: str, wide: str | None, dynamic: bool, layout: str | None, native: bool
) -> None:
    constraints = target.load(name).constraints(machine("x86_64"))
    assert constraints.wide_activation == wide
    assert constraints.dynamic_int8 is dynamic
    weight_only, half = constraints.weight_only, constraints.half
    assert (None if weight_only is None else weight_only.layout) == layout
    assert half is not None
    assert half.dtype == "float16"
    assert half.native is native
    if layout == "nbits" and weight_only is not None:
        assert weight_only.bits == (4, 8)
        assert weight_only.embedding_bits == (4, 8)
        assert 32 in weight_only.block_sizes


def test_a_profile_that_says_nothing_takes_none_of_them(tmp_path: Path) -> None:
    constraints = target.load(write(tmp_path, MINIMAL)).constraints(host())
    assert not constraints.dynamic_int8
    assert constraints.wide_activation is None
    assert constraints.weight_only is None
    assert constraints.half is None


@pytest.mark.parametrize(
    ("name", "arch", "found", "said"),
    [
        ("cpu-x86-64", "x86_64", True, "this machine"),
        ("cpu-x86-64", "aarch64", False, "needs an x86_64 machine, this is aarch64"),
        ("cpu-arm64", "aarch64", True, "this machine"),
        ("cpu-arm64", "x86_64", False, "needs an aarch64 machine"),
        ("android-cpu", "aarch64", False, "cannot be reached"),
        ("ios-coreml", "aarch64", False, "cannot be reached"),
        ("raspberry-pi-5", "aarch64", False, "cannot be reached"),
    ],
)
def test_what_can_be_measured_where(
    name: str, arch: str, found: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.machine.host.host", lambda: machine(arch))
    really, reason = reachable(target.load(name))
    assert really is found
    assert said in reason


def test_a_provider_that_is_not_installed_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL.replace("CPUExecutionProvider", "NoSuchProvider"))
    found, reason = reachable(target.load(file))
    assert not found
    assert "has no NoSuchProvider" in reason
    assert "CPUExecutionProvider" in reason


def test_the_host_has_a_profile_and_can_be_measured() -> None:
    facts = host()
    assert facts.cpu
    assert facts.ram_bytes > 0
    assert reachable(target.load(target.host_target())) == (True, "this machine")
