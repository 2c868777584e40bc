from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from edgecompress import doctor
from edgecompress.doctor import diagnose
from edgecompress.results import Check, Diagnosis


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return diagnose()


def named(found: Diagnosis) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def test_this_installation_is_healthy(here: Diagnosis) -> None:
    assert here.healthy, [check for check in here.checks if check.status == "problem"]
    checks = named(here)
    assert checks["self check"].detail.endswith("exact")
    assert checks["onnxruntime telemetry"].detail == "switched off"
    assert "CPUExecutionProvider" in checks["onnxruntime providers"].detail
    assert "onnxruntime" in checks["runtimes"].detail


def test_every_declared_dependency_has_its_line(here: Diagnosis) -> None:
    for name in ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "pydantic", "click"):
        assert named(here)[name].detail == metadata.version(name)


def test_a_missing_extra_is_no_illness_and_names_its_command(here: Diagnosis) -> None:
    extras = [check for check in here.checks if check.name.startswith("extra ")]
    assert {check.name for check in extras} == {
        "extra transformers",
        "extra text",
        "extra mixed",
        "extra parallel",
        "extra dask",
        "extra ray",
        "extra demo",
        "extra images",
        "extra yaml",
        "extra browser",
        "extra coreml",
        "extra ethos",
        "extra litert",
        "extra mnn",
        "extra ncnn",
        "extra openvino",
        "extra qnn",
        "extra runtimes",
    }
    for check in extras:
        extra = check.name.removeprefix("extra ")
        expected = {"ok": None, "missing": f'pip install "edgecompress[{extra}]"'}
        assert check.cure == expected[check.status]


@pytest.mark.parametrize(
    ("name", "lowest", "detail"),
    [
        ("no-such-package", "1.2", "not installed, expected 1.2 or newer"),
        ("click", "999.1", f"{metadata.version('click')}, expected 999.1 or newer"),
    ],
)
def test_a_missing_or_old_dependency_is_a_problem(name: str, lowest: str, detail: str) -> None:
    check = doctor._dependency(name, lowest)
    assert (check.status, check.detail) == ("problem", detail)
    assert check.cure == f'pip install "{name}>={lowest}"'


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("1.24rc1", (1, 24)), ("", ())]
)
def test_versions_are_compared_by_number(version: str, numbers: tuple[int, ...]) -> None:
    assert doctor._numbers(version) == numbers


def test_telemetry_that_is_on_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    check = next(doctor._onnxruntime())
    assert check.status == "problem"
    assert check.cure == "export ORT_DISABLE_TELEMETRY=1"


def test_a_cache_folder_need_not_exist_yet(tmp_path: Path) -> None:
    found = named(diagnose(tmp_path / "a" / "b"))
    assert found["cache folder"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be_written() -> None:
    check = doctor._writable("cache folder", Path("/proc/edgecompress"))
    if not Path("/proc").is_dir():
        pytest.skip("no /proc on this system")
    assert check.status == "problem"
    assert "/proc cannot be written" in check.detail
