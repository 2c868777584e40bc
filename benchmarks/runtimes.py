"""A MobileNet and a BERT-like encoder, float and int8, on every runtime that runs here.

The files are made by the recipes' own passes; each runtime is given the same ones through its
target profile, its outputs are held against onnxruntime's on a real image and a real sentence, and
float and int8 are measured in turn. What does not run here is named with the reason.

::

    python benchmarks/runtimes.py --write docs/targets.md --readme
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import DATA, EXAMPLES, REPOSITORY, RESULTS, between, environment, note

from edgecompress import load_recipe

if TYPE_CHECKING:
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.model import Model
    from edgecompress.report.profile_data import ProfileResult

MARKERS = ("<!-- runtimes:begin -->", "<!-- runtimes:end -->")
KEPT = REPOSITORY / ".benchmark-peers" / "runtimes"
SUBJECTS = {
    "MobileNet v1": EXAMPLES / "mobilenet_v1_imagenet.toml",
    "MiniLM": EXAMPLES / "minilm" / "recipe.toml",
}
TARGETS = (
    "cpu-x86-64",
    "ort-format",
    "openvino-cpu",
    "litert-cpu",
    "mnn-cpu",
    "ncnn-cpu",
    "web-wasm",
    "galaxy-s23-npu",
    "rk3588-npu",
    "ios-mlpackage",
    "ethos-u55-256",
)


def subject(recipe: Path, folder: Path) -> tuple[list[Path], CalibrationSet]:
    """The float and the int8 file of a recipe, and its data."""
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context, run_pass
    from edgecompress.machine.host import host
    from edgecompress.sources import load

    given = load_recipe(recipe)
    assert given.data is not None
    source = load(given.source.model, base=given.base)
    data = CalibrationSet.open(
        given.data,
        source.model.signature,
        base=given.base,
        seed=given.build.seed,
        folder=source.folder,
        preprocess=source.preprocess,
    )
    files = [folder / "float.onnx", folder / "int8.onnx"]
    if not all(file.is_file() for file in files):
        constraints = load_target("cpu-x86-64").constraints(host())
        model: Model = source.model
        model.save(files[0])
        for step in given.passes:
            model = run_pass(step, model, Context(data, constraints)).model
        model.save(files[1])
    return files, data


def rows_of(name: str, target: str, files: Sequence[Path], data: CalibrationSet) -> list[Any]:
    """Both files on one target; what goes wrong is in the rows."""
    from edgecompress.errors import EdgeCompressError
    from edgecompress.evaluation import Evaluator, load_target
    from edgecompress.model import Model
    from edgecompress.profiling import profile_in_turn

    models = {file.stem: Model.load(file) for file in files}
    try:
        with Evaluator(load_target(target), data=data) as evaluator:
            found = profile_in_turn(models, evaluator)
    except EdgeCompressError as error:
        note(f"{name} on {target}: {error}")
        return []
    return [{"subject": name, **json.loads(row.model_dump_json())} for row in found]


def records(names: Sequence[str], targets: Sequence[str]) -> list[dict[str, Any]]:
    """All rows; those of earlier runs are kept and replaced one by one."""
    kept = KEPT / "rows.json"
    old = json.loads(kept.read_text("utf-8")) if kept.is_file() else []
    for name in names:
        folder = KEPT / name.replace(" ", "-").lower()
        folder.mkdir(parents=True, exist_ok=True)
        files, data = subject(SUBJECTS[name], folder)
        for target in targets:
            note(f"{name} on {target}")
            new = rows_of(name, target, files, data)
            old = [r for r in old if (r["subject"], r["target"]) != (name, target)] + new
            kept.write_text(json.dumps(old, indent=1), "utf-8")
    return old


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the lists of all kernels and nodes, for the published record."""
    measurement = {k: v for k, v in row["measurement"].items() if k != "operators"}
    placement = None
    if row["placement"] is not None:
        placement = {k: v for k, v in row["placement"].items() if k != "nodes"}
    return {**row, "measurement": measurement, "placement": placement}


def profiles(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ProfileResult]]:
    """The rows as records, in the order of subjects and targets."""
    from edgecompress.report.profile_data import ProfileResult

    found = [
        (r["subject"], ProfileResult.model_validate({k: v for k, v in r.items() if k != "subject"}))
        for r in rows
    ]
    order = {name: place for place, name in enumerate(TARGETS)}
    return sorted(
        found, key=lambda each: (each[0], order.get(each[1].target, 99), each[1].model != "float")
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the README."""
    from edgecompress.report import format as fmt
    from edgecompress.report.profile_table import cells as cells_of
    from edgecompress.report.profile_table import outputs_text, status

    lines = [
        "| model | target | runtime | p50 | int8 / float | peak memory | size | outputs | note |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, row in profiles(rows):
        measured = row.measurement
        under = measured.conditions
        runtime = f"{under.runtime} {under.runtime_version}" if under else ""
        cells = [
            f"{name}, {row.model}",
            f"`{row.target}`",
            runtime,
            cells_of(row)[2],
            fmt.ratio(measured.latency_ratio) if measured.latency_ratio else "",
            fmt.megabytes(measured.peak_memory_mb) if measured.peak_memory_mb else "",
            fmt.size(measured.size_bytes),
            outputs_text(row),
            _remark(row, status(row)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _remark(row: ProfileResult, word: str) -> str:
    """Why there is no time, or what to know about it."""
    if row.error is not None:
        return str(row.error["what"]).replace("|", "/")[:160]
    if row.unsupported:
        first = row.unsupported[0]
        return f"{word}: {first.op}: {first.reason}".replace("|", "/")[:160]
    if row.measurement.basis == "estimated":
        return f"time and memory by {row.measurement.note}"
    if row.measurement.basis == "unknown":
        return row.notes[0] if row.agreement is None and row.notes else "emulator: no times"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--kept", action="store_true", help="run nothing; write what is kept")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put the table there")
    parser.add_argument("--readme", action="store_true", help="and into README.md")
    given = parser.parse_args()
    if not DATA.is_dir():
        sys.exit("the models and data in ../shared/data are needed, and are not there")
    targets = [] if given.kept else given.targets.split(",")
    names = [] if given.kept else given.models.split(",")
    KEPT.mkdir(parents=True, exist_ok=True)
    if given.kept:
        rows = json.loads((KEPT / "rows.json").read_text("utf-8"))
    else:
        rows = records(names, targets)
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    record = {"environment": environment(), "rows": [short(row) for row in rows]}
    (RESULTS / "runtimes.json").write_text(json.dumps(record, indent=1), "utf-8")
    places = [given.write] if given.write else []
    places += [REPOSITORY / "README.md"] if given.readme else []
    for place in places:
        text = between(Path(place).read_text("utf-8"), MARKERS, table(rows))
        Path(place).write_text(text, "utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
