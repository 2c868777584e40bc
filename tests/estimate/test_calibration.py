from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgecompress import target
from edgecompress.errors import OutputError
from edgecompress.estimate import calibration as module
from edgecompress.estimate.calibration import Calibration, cache_folder, cache_sizes, calibrated
from edgecompress.estimate.fitting import fit
from edgecompress.estimate.op_costs import CALL, RUN
from edgecompress.estimate.probes import probes
from edgecompress.saved_target import own_profile, write_own_profile
from edgecompress.target import Host

FEW = ("Add (64, 128)", "product 8 64 64 x2", "integer product 8 64 64 x2", "shallow 16 32")
HOST = Host('a "CPU" \\ 1', target.machine_arch(), frozenset({"avx2"}), 2, 4, 8 << 30, "an OS")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A calibration with a handful of probes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "probes", lambda: [p for p in probes() if p.name in FEW])
        return calibrated(folder=tmp_path_factory.mktemp("cache"))


def test_a_calibration_has_figures(known: Calibration) -> None:
    assert known.peak_float > 1e8
    assert known.peak_integer > 1e8
    assert known.bandwidth > 1e7
    assert known.error >= 1
    assert known.spread >= 1
    assert all(seconds >= 0 for seconds in known.seconds.values())
    assert {CALL, RUN} <= set(known.seconds)


def test_it_is_kept_and_used_again(
    known: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def calibrate(given: object, threads: int) -> Calibration:
        made.append(threads)
        return known

    monkeypatch.setattr(module, "calibrate", calibrate)
    monkeypatch.setattr(module, "probes", list)
    assert calibrated(folder=tmp_path) == known
    assert calibrated(folder=tmp_path) == known
    assert made == [1]
    calibrated(2, folder=tmp_path)
    assert made == [1, 2], "another number of threads is another calibration"
    for file in tmp_path.iterdir():
        file.write_text("{")
    calibrated(folder=tmp_path)
    assert made == [1, 2, 1], "a broken file is made again"


def test_a_folder_that_cannot_be_written_does_no_harm(
    known: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "calibrate", lambda given, threads: known)
    monkeypatch.setattr(module, "probes", list)
    (tmp_path / "file").write_text("")
    assert calibrated(folder=tmp_path / "file") == known


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edgecompress"


def test_sizes_of_caches(tmp_path: Path) -> None:
    for number, facts in enumerate(
        (("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2048K"))
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in zip(("type", "level", "size"), facts, strict=True):
            (folder / name).write_text(f"{value}\n")
    assert cache_sizes(tmp_path) == {1: 48 << 10, 2: 2048 << 10}
    assert cache_sizes(tmp_path / "none") == {}


def test_every_probe_is_of_its_own_name_and_small() -> None:
    made = probes()
    assert len({probe.name for probe in made}) == len(made)
    assert max(len(probe.model) for probe in made) < 50e6


def test_times_that_counts_explain_are_found_again() -> None:
    truth = {RUN: 5e-6, CALL: 4e-7, "binary: elements": 3e-10}
    runs = [
        {RUN: 1, CALL: n, "binary: elements": n * size} for n in (1, 4, 16) for size in (1e3, 1e5)
    ]
    seconds = [sum(truth[name] * count for name, count in run.items()) for run in runs]
    found = fit(runs, seconds)
    assert found.seconds == pytest.approx(truth, rel=0.1)
    assert 1 <= found.error < 1.1


def test_runs_that_matter_more_are_met_more_closely() -> None:
    runs = [{CALL: 10}, {CALL: 10}]
    seconds = [4e-6, 6e-6]
    even = fit(runs, seconds).seconds[CALL]
    first, second = (fit(runs, seconds, weights).seconds[CALL] for weights in ((4, 1), (1, 4)))
    assert 4e-7 < first < even < second < 6e-7


def test_whole_networks_matter_more_than_probes_of_a_kind() -> None:
    weights = {probe.name: probe.weight for probe in probes()}
    assert weights["inverted network 96"] > weights["Add (64, 128)"] == 1


def test_an_own_profile_loads_again(known: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "my-board.toml"
    file.write_text(own_profile("my-board", HOST, known))
    profile = target.load(file)
    assert profile.extends == target.host_target()
    assert profile.device.kind == "host"
    assert HOST.cpu in profile.description
    assert profile.int8 == target.load(target.host_target()).int8
    hardware = profile.hardware
    assert hardware.peak("float32") == pytest.approx(known.peak_float, rel=0.01)
    assert hardware.peak("int8") == pytest.approx(known.peak_integer, rel=0.01)
    assert hardware.bandwidth == pytest.approx(known.bandwidth, rel=0.01)
    measured = [fact for fact in profile.facts if fact.quantity in ("core_fp32", "bandwidth")]
    assert all(fact.confidence == "measured" for fact in measured)
    assert all("edgecompress" in fact.source for fact in measured)


def test_a_profile_is_written(
    known: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.estimate.calibrated", lambda: known)
    profile = write_own_profile(tmp_path / "mine.toml")
    assert profile == target.load(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", ["mine.json", "My Board.toml", "mine"])
def test_names_that_no_profile_may_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"small letters.*\.toml"):
        write_own_profile(tmp_path / name)
    assert not list(tmp_path.iterdir())
