"""Finished parts in one file, each of which can be measured again alone, and documents from it.

``results/factorization.json`` has for each part its figures (of some, by model), the conditions
that they were taken under, and the verdicts on the goals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common import REPOSITORY, RESULTS, Verdict, between, environment

from factorization import ablation, cnn, curves, large, latency, timing

__all__ = [
    "BY_MODEL",
    "PARTS",
    "WHOLE",
    "between",
    "document",
    "entries",
    "merged",
    "read",
    "readme",
    "save",
    "tables_of",
    "write",
]

PARTS = ("ablation", "time", "latency", "cnn", "large")
BY_MODEL: Mapping[str, Any] = {"ablation": ablation, "cnn": cnn}
WHOLE: Mapping[str, Any] = {"time": timing, "latency": latency, "large": large}

FIGURES = ("<!-- figures -->", "<!-- /figures -->")
README = ("<!-- factorization:begin -->", "<!-- factorization:end -->")
PICTURE = Path("docs") / "factorization_cnn.svg"

Record = dict[str, Any]


def read(*, quick: bool) -> Record:
    """What was measured before."""
    file = _file(quick)
    return dict(json.loads(file.read_text())) if file.exists() else {}


def save(record: Record, *, quick: bool) -> str:
    """Write what was measured; returns the file's name."""
    file = _file(quick)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    return file.name


def _file(quick: bool) -> Path:
    return RESULTS / ("factorization.quick.tmp" if quick else "factorization.json")


def merged(record: Record, part: str, name: str | None, figures: Any) -> Record:
    """A record with one part, or one model's share of it, replaced.

    Args:
        record: What was measured before.
        part: One of :data:`PARTS`.
        name: Of the model, for parts that have figures by model.
        figures: What was found now.
    """
    told = {"figures": figures, "environment": environment()}
    told["verdicts"] = [asdict(v) for v in _verdicts(part, name, figures)]
    if name is None:
        return {**record, part: told}
    return {**record, part: {**record.get(part, {}), name: told}}


def _verdicts(part: str, name: str | None, figures: Any) -> list[Verdict]:
    if name is not None:
        return list(BY_MODEL[part].verdicts(name, figures))
    return list(WHOLE[part].verdicts(figures))


def tables_of(part: str, name: str | None, figures: Any) -> list[Any]:
    """Title, head and cells of each table."""
    if name is not None:
        return list(BY_MODEL[part].as_tables(name, figures))
    return list(WHOLE[part].as_tables(figures))


def entries(record: Record) -> list[tuple[str, str | None, Record]]:
    """Part, model where a part has several, and what was told of it, in the usual order."""
    found: list[tuple[str, str | None, Record]] = []
    for part in (part for part in PARTS if part in record):
        if part in BY_MODEL:
            known = [name for name in BY_MODEL[part].MODELS if name in record[part]]
            found += [(part, name, record[part][name]) for name in known]
        else:
            found.append((part, None, record[part]))
    return found


def document(record: Record) -> str:
    """The section of figures in docs/factorization.md."""
    lines = [_PREFACE]
    last = ""
    for part, name, told in entries(record):
        if part != last:
            lines += ["", f"### {_TITLES[part][0]}", "", _TITLES[part][1]]
            last = part
        lines += ["", _conditions(told)]
        for title, head, rows in tables_of(part, name, told["figures"]):
            lines += ["", f"**{title}**", "", *_pipes(head, rows)]
    if "cnn" in record:
        lines += ["", f"![Top-1 against kept MACs]({PICTURE.name})"]
    lines += ["", "### Goals", ""]
    listed = [Verdict(**each) for _, _, told in entries(record) for each in told["verdicts"]]
    lines += _pipes(("goal", "found", "verdict"), [(v.goal, v.found, _word(v)) for v in listed])
    return "\n".join(lines)


_PREFACE = """\
Written by `make bench-factorization`; the same figures as data are in
`benchmarks/results/factorization.json`. Every part can be measured again alone: each tells the
conditions that it was taken under."""

_ABLATION = """\
All on the same calibration rows, judged by onnxruntime in float32. *Plain SVD* and *SVD-LLM*
(whitening alone) are written from their papers and share no code with ours. *Of whitening's*: the
increase over float's figure, as a share of SVD-LLM's. Ranks are uniform, but for *defaults*: the
pass as it is, which chooses them. *Perplexity* is on text
that neither training nor calibration saw, *of other text* on sentences of STS-B dev. *Squared
distance* is the mean over all sentences of STS-B dev of the squared distance between a sentence's
embedding and the float model's, while sentences of STS-B train calibrate; *STS loss* is the mean
squared difference of a pair's cosine and a fifth of its score. Errors along the depth are on
validation rows."""

_TIME = """\
*Forward*: plain forward passes over the same rows through the same torch graph. *Defaults* choose
ranks, too; else they are uniform."""

_LATENCY = """\
Least CPU time of one inference, one thread, all files in turn in one process. *Promised*:
multiply-accumulates of the whole float file over those of the whole compressed file."""

_CNN = f"""\
*Asked for* is a share of the layers' multiply-accumulates, in brackets stands the share of the
whole file's that came out. SqueezeNet: {cnn.LEFT_OUT["squeezenet"]}."""

_LARGE = """\
All layers in closed form in a process of its own, with a limit for weights and activations as a
user gives it."""

_TITLES = {
    "ablation": ("Objectives and refinement", _ABLATION),
    "time": ("Time", _TIME),
    "latency": ("Latency", _LATENCY),
    "cnn": ("Convolutional networks", _CNN),
    "large": ("Bigger than memory", _LARGE),
}


def _conditions(told: Record) -> str:
    machine, figures = told["environment"], told["figures"]
    rows = ""
    if "calibration_rows" in figures:
        tokens = figures.get("calibration_tokens")
        words = "" if tokens is None else f" ({tokens:,} tokens)"
        rows = (
            f"{figures['calibration_rows']} calibration rows{words}, "
            f"{figures['validation_rows']} validation rows. "
        )
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{rows}Machine: {machine['cpu']} ({', '.join(machine['instruction_sets'])}), "
        f"{machine['logical_cores']} logical cores, {machine['torch_threads']} threads, "
        f"{machine['os']}, Python {machine['python']}; taken {machine['taken']}. {versions}."
    )


def _pipes(head: Any, rows: Any) -> list[str]:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def _word(verdict: Verdict) -> str:
    return {True: "met", False: "**missed**", None: "not judged"}[verdict.met]


_SHORT = (
    "The same calibration rows for all; *kept* is the share of the factorized layers' parameters; "
    "*closed form* and *refined* are edgecompress with its defaults, without and with refinement. "
    "All objectives, errors along the depth, time, latency and memory: "
    "[docs/factorization.md](docs/factorization.md)."
)


def readme(record: Record) -> str:
    """The short table for README: whitening alone against our defaults, and the picture."""
    rows = []
    for name, told in record.get("ablation", {}).items():
        rows += _short(name, told["figures"])
    head = ("model", "metric", "kept", "float", "plain SVD", "SVD-LLM", "closed form", "refined")
    lines = _pipes(head, rows)
    lines += ["", _SHORT]
    if "cnn" in record:
        text = "Top-1 of convolutional networks against kept multiply-accumulates"
        lines += ["", f"![{text}]({PICTURE.as_posix()})"]
    return "\n".join(lines)


def _short(name: str, found: Record) -> list[list[str]]:
    shown = {
        "llama10m": ("perplexity", "perplexity", 1),
        "minilm": ("spearman", "Spearman x 100", 100),
    }
    figure, label, scale = shown[name]
    titles = (ablation.PLAIN, ablation.BASELINE, ablation.UNREFINED, ablation.DEFAULTS)
    listed = []
    for keep in dict.fromkeys(each["keep"] for each in found["rows"]):
        cells = []
        for title in titles:
            each = ablation.row(found, title, keep)
            cells.append("-" if each is None else f"{scale * each['figures'][figure]:.2f}")
        if set(cells) == {"-"}:
            continue  # nothing was run at this share
        reference = f"{scale * found['float']['figures'][figure]:.2f}"
        cells[-1] = f"**{cells[-1]}**"
        listed.append([found["title"], label, f"{keep:g}", reference, *cells])
    return listed


def write(record: Record, file: Path | None, *, short: bool) -> None:
    """Fill the marked sections, and draw the picture.

    Args:
        record: What was measured.
        file: With the section of figures; None: not written.
        short: Whether README's table is written.
    """
    if file is not None:
        file.write_text(between(file.read_text("utf-8"), FIGURES, document(record)), "utf-8")
        if "cnn" in record:
            networks = {
                name: record["cnn"][name]["figures"] for name in cnn.MODELS if name in record["cnn"]
            }
            (REPOSITORY / PICTURE).write_text(curves.svg(networks), "utf-8")
    if short:
        place = REPOSITORY / "README.md"
        place.write_text(between(place.read_text("utf-8"), README, readme(record)), "utf-8")
