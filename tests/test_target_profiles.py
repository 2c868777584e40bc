"""The profiles of real devices, what programs read of them, and how a profile extends another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress import target
from edgecompress.errors import TargetError
from edgecompress.runtimes import runtime_names
from edgecompress.target_tables import UNITS

DEVICES = (
    *("pixel-6", "pixel-8", "galaxy-s23", "galaxy-s23-npu", "galaxy-s24", "galaxy-s24-npu"),
    *("iphone-13", "iphone-15", "iphone-15-pro", "snapdragon-695", "dimensity-700"),
    *("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "rk3588", "rk3588-npu"),
    *("intel-n100", "laptop-i7-1165g7", "xeon-vm", "coral-usb", "stm32n6", "ethos-u55-256"),
)
MINIMAL = """
name = "{name}"
description = "a test"
runtime = "onnxruntime"
provider = "CPUExecutionProvider"
[device]
kind = "none"
"""
CHILD = 'name = "{name}"\nextends = "{parent}"\ndescription = "a child"\n'


def write(folder: Path, text: str, name: str = "mine", parent: str = "") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text.format(name=name, parent=parent))
    return file


def fact(**fields: object) -> str:
    table = {
        "name": "a figure",
        "quantity": "bandwidth",
        "value": 17,
        "unit": "GB/s",
        "source": "a book",
        "confidence": "vendor",
    }
    lines = []
    for key, value in {**table, **fields}.items():
        if value is not None:
            text = "inf" if value == float("inf") else json.dumps(value)
            lines.append(f"{key} = {text}")
    return "[[facts]]\n" + "\n".join(lines) + "\n"


def test_there_are_profiles_of_enough_real_devices() -> None:
    assert len(DEVICES) >= 16
    assert set(DEVICES) <= set(target.names())


@pytest.mark.parametrize("name", DEVICES)
def test_devices_have_figures_and_cannot_be_taken_for_this_machine(name: str) -> None:
    profile = target.load(name)
    assert profile.device.kind == "none"
    figures = [fact for fact in profile.facts if fact.quantity is not None]
    assert figures
    for figure in figures:
        assert figure.source
        assert figure.confidence != "computed" or figure.note or "clang" in figure.source
    assert profile.name == "galaxy-s23-npu" or profile.hardware.figures


@pytest.mark.parametrize("name", target.names())
def test_every_profile_names_a_runtime_that_there_is(name: str) -> None:
    assert target.load(name).runtime in runtime_names()


@pytest.mark.parametrize("name", target.names())
def test_a_quantity_is_told_once(name: str) -> None:
    quantities = [fact.quantity for fact in target.load(name).facts if fact.quantity]
    assert len(set(quantities)) == len(quantities)


def test_a_core_is_a_part_of_the_whole() -> None:
    for name in target.names():
        hardware = target.load(name).hardware
        for dtype in ("float32", "int8"):
            one, many = hardware.peak(dtype, 1), hardware.peak(dtype, 64)
            if one is not None and many is not None:
                assert one <= many * 1.001, name


def test_hardware_in_bytes_and_operations() -> None:
    pi = target.load("raspberry-pi-5").hardware
    assert pi.peak("float32") == pytest.approx(38.4e9)
    assert pi.peak("float32", 2) == pytest.approx(76.8e9)
    assert pi.peak("float32", 16) == pytest.approx(153.6e9)
    assert pi.peak("int8", 4) == pytest.approx(614.4e9)
    assert pi.bandwidth == 17e9
    assert pi.last_cache_bytes == 2048 * 1024
    phone = target.load("pixel-8").hardware
    assert phone.peak("float32", 1) == pytest.approx(93.1e9)
    assert phone.peak("float32", 3) == pytest.approx(93.1e9 + 2 * (249.9e9 - 93.1e9) / 4)
    assert phone.peak("float32", 8) == pytest.approx(249.9e9)
    jetson = target.load("jetson-orin-nano").hardware
    assert jetson.peak("int8") == 20e12
    assert jetson.peak("float32") == 1280e9
    assert target.load("stm32n6").hardware.last_cache_bytes == 4300 * 1024
    unknown = target.load("pixel-8").hardware
    assert unknown.bandwidth is None
    assert target.load("iphone-13").hardware.peak("float32") is None


def test_cores_without_a_figure_for_one_share_the_whole() -> None:
    small = target.load("intel-n100").hardware
    assert small.peak("float32") == pytest.approx(217.6e9 / 4)
    assert small.peak("int8") is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"unit": None}, "the unit is missing: bandwidth is given in GB/s"),
        ({"unit": "MB/s"}, "expected the unit 'GB/s' for bandwidth, got 'MB/s'"),
        ({"quantity": "bandwith"}, "unknown quantity 'bandwith'; did you mean 'bandwidth'"),
        ({"value": 0}, "expected a positive number of GB/s for bandwidth, got 0"),
        ({"value": -1.5}, "expected a positive number of GB/s for bandwidth, got -1.5"),
        ({"value": "fast"}, "expected a positive number of GB/s for bandwidth, got 'fast'"),
        ({"value": float("inf")}, "expected a positive number of GB/s for bandwidth, got inf"),
    ],
)
def test_broken_figures_are_refused_with_file_fact_and_unit(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    file = write(tmp_path, MINIMAL + fact(**fields))
    with pytest.raises(TargetError, match=said) as caught:
        target.load(file)
    assert str(file) in str(caught.value)
    assert "fact 'a figure'" in str(caught.value)


@pytest.mark.parametrize("quantity", UNITS)
def test_every_quantity_is_taken_in_its_unit(tmp_path: Path, quantity: str) -> None:
    value = "avx2" if quantity == "isa" else 2.5
    text = fact(quantity=quantity, value=value, unit=UNITS[quantity])
    profile = target.load(write(tmp_path, MINIMAL + text))
    assert profile.hardware.figures == {quantity: value}


def test_facts_for_people_need_no_quantity(tmp_path: Path) -> None:
    text = fact(quantity=None, value=True, unit="")
    assert target.load(write(tmp_path, MINIMAL + text)).hardware.figures == {}


def test_a_profile_takes_what_it_does_not_say_from_another(tmp_path: Path) -> None:
    more = "opset_max = 20\n[measurement]\nruns = 7\nwarmup = 2\n"
    above = (
        MINIMAL.replace("[device]", more + "[device]")
        + fact()
        + fact(name="old", quantity="ram", unit="GB")
    )
    write(tmp_path, above, "above")
    child = (
        CHILD
        + "[measurement]\nruns = 9\n"
        + fact(value=50)
        + fact(name="old", quantity=None, value=1, unit="")
    )
    profile = target.load(write(tmp_path, child, "below", "above.toml"))
    assert profile.name == "below"
    assert profile.description == "a child"
    assert profile.opset_max == 20
    assert profile.device.kind == "none"
    assert (profile.measurement.runs, profile.measurement.warmup) == (9, 2)
    assert [fact.value for fact in profile.facts] == [50, 1], "own figures go before inherited ones"


def test_a_profile_can_extend_an_installed_one(tmp_path: Path) -> None:
    profile = target.load(write(tmp_path, CHILD, "mine", "raspberry-pi-5"))
    above = target.load("raspberry-pi-5")
    assert profile.int8 == above.int8
    assert profile.hardware == above.hardware
    assert profile.extends == "raspberry-pi-5"


@pytest.mark.parametrize(
    ("parent", "said"),
    [
        ("cpu-arm", "unknown target 'cpu-arm'; did you mean 'cpu-arm64'"),
        ("none.toml", "cannot be read"),
        ("mine.toml", "extends itself: mine -> mine"),
        ("broken.toml", "broken.toml, key 'provder': unknown key"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, parent: str, said: str) -> None:
    write(tmp_path, "provder = 1\n" + MINIMAL, "broken")
    with pytest.raises(TargetError, match=said):
        target.load(write(tmp_path, CHILD, "mine", parent))


def test_a_circle_of_profiles_is_told(tmp_path: Path) -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        write(tmp_path, CHILD, name, f"{parent}.toml")
    with pytest.raises(TargetError, match="extends itself: a -> b -> c -> a"):
        target.load(tmp_path / "a.toml")


def test_limits_of_memory_are_positive(tmp_path: Path) -> None:
    text = MINIMAL + "[measurement]\nmemory_limit_mb = {limit}\n"
    profile = target.load(write(tmp_path, text.replace("{limit}", "256")))
    assert profile.measurement.memory_limit_mb == 256
    with pytest.raises(TargetError, match="memory_limit_mb"):
        target.load(write(tmp_path, text.replace("{limit}", "0")))
