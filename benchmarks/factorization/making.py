"""Compressed files, ours and the peers', judged; finished runs are kept.

A run of ours is kept by the float file, the rows, the options, and the code that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from _common import REPOSITORY, in_fresh_process, note, recipe_of, tables_of

from factorization import peers
from factorization.judging import Judge, macs
from factorization.subjects import HOME, Subject, opened

__all__ = ["Given", "Maker", "Variant", "clocks", "compress", "in_short", "since"]

NOT_RUN = "not run yet"

_CODE = ("edgecompress/factorization", "edgecompress/numerics", "passes/factorize.py")


@dataclass(frozen=True)
class Variant:
    """One way to make a file.

    Attributes:
        title: As the table names it.
        keep: Share that is kept.
        options: Of the pass ``factorize``; None for a peer.
        peer: ``svd`` or ``svd_llm``; empty for ours.
    """

    title: str
    keep: float
    options: Mapping[str, Any] | None = None
    peer: str = ""

    @property
    def key(self) -> str:
        """Name among the figures."""
        return f"{self.title} {self.keep:g}"


@dataclass(frozen=True)
class Given:
    """What the command line says of runs.

    Attributes:
        quick: Few rows.
        fresh: Runs again what is there.
        kept: Shows finished runs only, whatever version of the code they are of.
    """

    quick: bool = False
    fresh: bool = False
    kept: bool = False


@dataclass
class Maker:
    """Makes and judges the files of one model."""

    subject: Subject
    given: Given
    threads: int = field(default_factory=lambda: int(os.environ.get("OMP_NUM_THREADS", "2")))

    def __post_init__(self) -> None:
        self.judge = Judge(self.subject)
        self.folder = HOME / "runs" / self.subject.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def reference(self) -> dict[str, Any]:
        """Figures of the float file."""
        return self._kept("float", self._float, code="")

    def made(self, variant: Variant) -> dict[str, Any]:
        """Figures and costs of a variant, or ``{"failed": reason}``."""
        name = f"{variant.key} {json.dumps(variant.options, sort_keys=True)}"
        return self._kept(name, lambda: self._make(variant), _code(variant.peer))

    def _kept(self, name: str, make: Any, code: str) -> dict[str, Any]:
        told = f"{name} {self.subject.digest}"
        stem = hashlib.sha256(told.encode()).hexdigest()[:20]
        record = self.folder / f"{stem}-{code[:8]}.json"
        if self.given.kept:
            older = sorted(self.folder.glob(f"{stem}-*.json"), key=lambda f: f.stat().st_mtime)
            return json.loads(older[-1].read_text()) if older else {"failed": NOT_RUN}
        if self.given.fresh or not record.exists():
            found = make()
            if "failed" in found:
                return dict(found)
            partial = record.with_suffix(".partial")
            partial.write_text(json.dumps(found, indent=1) + "\n")
            partial.replace(record)
        return dict(json.loads(record.read_text()))

    def _float(self) -> dict[str, Any]:
        note(f"{self.subject.name}: float")
        source = self.subject.source
        figures = self.judge.figures(os.fspath(source))
        return {"figures": figures, "macs": self._macs(source), "bytes": source.stat().st_size}

    def _macs(self, file: Path) -> int:
        return macs(file, self.subject.data.sample(1))

    def _make(self, variant: Variant) -> dict[str, Any]:
        note(f"{self.subject.name}: {variant.key}")
        started = time.perf_counter()
        output = self.folder / f"{os.getpid()}.onnx"
        try:
            found = self._peer(variant, output) if variant.peer else self._ours(variant, output)
            if "failed" not in found:
                found["figures"] = self.judge.figures(os.fspath(output))
                found["depth"] = self.judge.depth(os.fspath(output))
                found["bytes"] = output.stat().st_size
                found["macs"] = self._macs(output)
        finally:
            output.unlink(missing_ok=True)
        note(f"{time.perf_counter() - started:.0f} s: {found.get('figures', found)}")
        return found

    def _peer(self, variant: Variant, output: Path) -> dict[str, Any]:
        data = self.subject.data
        rows = (batch.inputs for batch in data.batches("calibration"))
        before = clocks()
        peers.factorize(
            self.subject.source, output, variant.keep, rows if variant.peer == "svd_llm" else None
        )
        return since(before)

    def _ours(self, variant: Variant, output: Path) -> dict[str, Any]:
        from edgecompress.graph_pass import pass_names

        if "factorize" not in pass_names():
            return {"failed": "missing: this version has no pass 'factorize'"}
        try:
            fresh = in_fresh_process(
                "factorization.making",
                "compress",
                recipe=tables_of(self.subject.recipe),
                options=dict(variant.options or {}),
                output=os.fspath(output),
                threads=self.threads,
            )
        except subprocess.CalledProcessError:
            return {"failed": "crashed; its traceback stands in the log"}
        return {**fresh.answer, "peak_mb": fresh.peak_mb}


def _code(peer: str) -> str:
    return _digest(("benchmarks/factorization/peers.py",) if peer else _CODE)


@cache
def _digest(paths: tuple[str, ...]) -> str:
    sha = hashlib.sha256()
    for path in paths:
        place = REPOSITORY / path
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            sha.update(file.read_bytes() if file.exists() else b"")
    return sha.hexdigest()


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds of this process, for :func:`since`."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


def since(before: tuple[float, float]) -> dict[str, Any]:
    """Seconds that have passed, by both clocks."""
    wall, cpu = clocks()
    return {"seconds": wall - before[0], "cpu_seconds": cpu - before[1]}


def compress(
    recipe: dict[str, Any],
    options: dict[str, Any],
    output: str,
    threads: int,
    target: str | None = None,
    forward: bool = False,
) -> dict[str, Any]:
    """In a fresh process: factorize a recipe's model with its rows.

    Args:
        recipe: Model and data.
        options: Of the pass.
        output: File of the result.
        threads: That torch may use.
        target: Whose constraints hold; None: ranks are not rounded for any.
        forward: Whether plain forward passes over all calibration rows are timed, too.

    Returns:
        Seconds and CPU seconds of the pass alone, its notes in short; or why it failed.
    """
    import torch

    from edgecompress.constraints import Constraints
    from edgecompress.errors import EdgeCompressError
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context, make_pass, run_pass
    from edgecompress.machine.host import host
    from edgecompress.model import Model

    torch.set_num_threads(threads)
    given = recipe_of(recipe)
    model, data = Model.load(given.base / given.source.model), opened(given)
    limits = Constraints() if target is None else load_target(target).constraints(host())
    context = Context(calibration=data, constraints=limits, seed=given.build.seed)
    found = {"forward": _forward(model, data)} if forward else {}
    before = clocks()
    try:
        applied = run_pass(make_pass("factorize", options), model, context)
    except EdgeCompressError as error:
        return {"failed": " ".join(str(error).split())[:200]}
    found |= since(before)
    if forward:
        found["forward_behind"] = _forward(model, data)
    applied.model.save(output)
    return {**found, **in_short(applied)}


def in_short(applied: Any) -> dict[str, Any]:
    """What a pass did, without spectra."""
    notes = applied.notes.get("factorization", {})
    return {
        "layers": len(applied.changed),
        "left": sorted({skip.reason for skip in applied.skipped}),
        "layer_parameters": notes.get("parameters"),
        "blocks": notes.get("blocks"),
    }


def _forward(model: Any, data: Any) -> dict[str, float]:
    """Seconds of plain forward passes of the torch graph over the calibration rows."""
    import torch

    from edgecompress.torchgraph import as_tensors, to_torch

    graph = to_torch(model)
    with torch.inference_mode():
        graph(as_tensors(next(data.batches("calibration")).inputs))  # the first run is slower
        before = clocks()
        for batch in data.batches("calibration"):
            graph(as_tensors(batch.inputs))
    return since(before)
