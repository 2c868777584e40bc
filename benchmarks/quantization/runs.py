"""The peers: their methods, their environments, and their runs, each of which is done only once.

A run is kept by peer version, method, model and data. What a peer costs is taken from its own
process: wall time, CPU time and peak memory, start and imports included.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _common import note

from quantization.models import HOME, Kind, Prepared, UnavailableError

__all__ = ["METHODS", "PEERS", "Method", "Peer", "Run", "key", "python_of", "run"]

_HERE = Path(__file__).resolve().parent
_FOLDER = _HERE / "peers"

# onnxruntime's histogram calibrators, in whatever peer, keep every activation of every row: on a
# machine that cannot hold them they would be killed, and others with them.
_ROOM_BYTES = 12e9
_LONGEST_SECONDS = 3600


@dataclass(frozen=True)
class Peer:
    """A package: its name on the package index, and the version that its requirements pin."""

    package: str
    version: str


PEERS = {
    "onnxruntime": Peer("onnxruntime", "1.31.1"),
    "nncf": Peer("nncf", "3.4.0"),
    "neural_compressor": Peer("onnx-neural-compressor", "1.0"),
    "modelopt": Peer("nvidia-modelopt", "0.47.0"),
    "aimet": Peer("aimet-onnx", "2.42.0"),
}


@dataclass(frozen=True)
class Method:
    """One call of one peer.

    Attributes:
        peer: Key in :data:`PEERS`.
        name: Key in the ``METHODS`` of its driver.
        format: ``W8A8`` (static), ``dynamic``, ``int8`` or ``int4`` (weights alone).
        kinds: Models that it is for.
        keeps_activations: It holds those of all rows in memory.
        only: Names of the models that it is run on, where it takes too long for all.
    """

    peer: str
    name: str
    format: str
    kinds: tuple[Kind, ...]
    keeps_activations: bool = False
    only: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As the table names it."""
        return f"{PEERS[self.peer].package} {self.name}"

    def fits(self, model: Prepared) -> bool:
        """Whether it is run on a model."""
        return model.about.kind in self.kinds and (not self.only or model.name in self.only)


_BOTH: tuple[Kind, ...] = ("vision", "encoder")
_TEXT: tuple[Kind, ...] = ("encoder", "language")
_VISION: tuple[Kind, ...] = ("vision",)
_ENCODER: tuple[Kind, ...] = ("encoder",)

METHODS = (
    Method("onnxruntime", "static minmax", "W8A8", _BOTH),
    Method("onnxruntime", "static defaults", "W8A8", _BOTH),
    # Dynamic quantization of convolutions is ten times slower than float: two models show it.
    Method("onnxruntime", "dynamic", "dynamic", _BOTH, only=("minilm", "mobilenet_v1", "resnet20")),
    Method("onnxruntime", "dynamic per channel", "dynamic", _ENCODER),
    Method("onnxruntime", "int4", "int4", _TEXT),
    Method("onnxruntime", "int8", "int8", _TEXT),
    Method("nncf", "full bias correction", "W8A8", _VISION),
    Method("nncf", "transformer", "W8A8", _ENCODER),
    Method("nncf", "default", "W8A8", _BOTH),
    Method("nncf", "mixed preset", "W8A8", _VISION),
    Method("nncf", "weights int8", "int8", _TEXT),
    Method("nncf", "weights int4", "int4", _TEXT),
    Method("neural_compressor", "static", "W8A8", _BOTH),
    Method("neural_compressor", "dynamic", "dynamic", _BOTH),
    Method("neural_compressor", "int4 RTN", "int4", _TEXT),
    Method("neural_compressor", "int4 GPTQ", "int4", _TEXT),
    Method("modelopt", "int8 max", "W8A8", _BOTH),
    Method("modelopt", "int4 RTN", "int4", _TEXT),
    Method("modelopt", "int4 AWQ", "int4", _TEXT),
    Method("aimet", "minmax", "W8A8", _BOTH),
    Method("aimet", "TF-enhanced", "W8A8", _BOTH),
    Method("aimet", "CLE", "W8A8", _VISION),
    Method("onnxruntime", "static entropy", "W8A8", _BOTH, keeps_activations=True),
    Method("onnxruntime", "static percentile", "W8A8", _BOTH, keeps_activations=True),
    Method("modelopt", "int8 entropy", "W8A8", _BOTH, keeps_activations=True),
    Method("aimet", "AdaRound", "W8A8", _VISION, only=("mobilenet_v1",)),
)


@dataclass(frozen=True)
class Run:
    """What a compression left and cost.

    Attributes:
        files: The model and its data files, the model first; empty where it failed.
        bytes: Of all files.
        seconds: Wall time of its process.
        cpu_seconds: CPU time of its process, over all threads.
        peak_mb: Largest resident set of its process, in 10^6 bytes.
        load: Processes that wanted a core when it began; above the number of cores, wall time
            says little.
        failed: Why there is no file, or None.
    """

    files: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    load: float | None = None
    failed: str | None = None


def key(peer: str, version: str, method: str, model: str, data: str) -> str:
    """Name of the folder of a run: all that its result depends on.

    Args:
        peer: Key in :data:`PEERS`.
        version: Of the peer.
        method: Of the peer.
        model: Digest of the float file.
        data: Digest of the rows.
    """
    told = json.dumps([peer, version, method, model, data])
    return f"{peer}-{method}-{hashlib.sha256(told.encode()).hexdigest()[:16]}".replace(" ", "-")


def python_of(peer: str) -> Path:
    """The Python of a peer's virtual environment, which is made where it is absent.

    Raises:
        UnavailableError: pip could not install it; not tried again before its requirements change.
    """
    requirements = _FOLDER / f"{peer}.txt"
    folder = HOME / peer
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return python
    refused = HOME / f"{peer}.refused.json"
    if refused.exists():
        told = json.loads(refused.read_text())
        if told["requirements"] == requirements.read_text():
            raise UnavailableError(told["why"])
    note(f"installing {peer}: minutes")
    subprocess.run([sys.executable, "-m", "venv", os.fspath(folder)], check=True)
    command = [os.fspath(python), "-m", "pip", "install", "--quiet", "-r", os.fspath(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "pip could not install it: " + _last_line(done.stderr)
        record = {"requirements": requirements.read_text(), "why": why}
        refused.write_text(json.dumps(record))
        raise UnavailableError(why)
    refused.unlink(missing_ok=True)
    stamp.write_text(requirements.read_text())
    return python


def run(method: Method, model: Prepared, *, fresh: bool, kept: bool = False) -> Run:
    """A peer's run on a model, from the folder of finished runs where it is there.

    Args:
        method: The call.
        model: What is compressed.
        fresh: Run it again, even so.
        kept: Run nothing that is not there.
    """
    folder = HOME / "runs" / model.name / _key(method, model)
    record = folder / "run.json"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if kept and not record.exists():
        return Run(failed="not run yet")
    if not record.exists():
        try:
            python = python_of(method.peer)
        except UnavailableError as error:
            return Run(failed=str(error))
        if method.keeps_activations and (free := _free()) < _ROOM_BYTES:
            why = f"keeps all activations, and only {free / 1e9:.1f} GB of memory are free"
            return Run(failed=why)
        note(f"{model.name}: {method.title}")
        found = _compress(python, method, model, folder)
        record.write_text(json.dumps(asdict(found), indent=2) + "\n")
    found = json.loads(record.read_text())
    return Run(**{**found, "files": tuple(found["files"])})


def _key(method: Method, model: Prepared) -> str:
    version = PEERS[method.peer].version
    return key(method.peer, version, method.name, model.digest, model.data.digest)


def _free() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _compress(python: Path, method: Method, model: Prepared, folder: Path) -> Run:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        # ModelOpt writes into the file that it is given: each run gets a copy.
        source, answer = Path(scratch) / "float.onnx", Path(scratch) / "answer.json"
        shutil.copyfile(model.source, source)
        job = {
            "driver": os.fspath(_FOLDER / f"{method.peer}.py"),
            "method": method.name,
            "source": os.fspath(source),
            "rows": os.fspath(model.rows),
            "output": os.fspath(folder / "model.onnx"),
            "answer": os.fspath(answer),
        }
        told = Path(scratch) / "job.json"
        told.write_text(json.dumps(job))
        command = [os.fspath(python), "-P", os.fspath(_HERE / "drive.py"), os.fspath(told)]
        found = _timed(command, scratch)
        if isinstance(found, str):
            shutil.rmtree(folder)
            folder.mkdir()
            return Run(failed=found)
        peak = json.loads(answer.read_text())["peak_mb"]
    files = sorted(folder.iterdir(), key=lambda file: (file.name != "model.onnx", file.name))
    listed, size = tuple(map(os.fspath, files)), sum(file.stat().st_size for file in files)
    cost = (found["seconds"], found["cpu_seconds"], peak, found["load"])
    return Run(listed, size, *cost)


def _timed(command: Sequence[str], folder: str) -> dict[str, float] | str:
    """Time and load of a command, or why it failed."""
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    # The process writes into a file: a pipe that fills up would stop it.
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, **_environment()},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=_LONGEST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {_LONGEST_SECONDS} s"
        seconds = time.perf_counter() - started
        if done.returncode:
            errors.seek(0)
            last = _last_line(errors.read())
            return f"killed by signal {-done.returncode}" if done.returncode < 0 else last
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "load": load}


def _environment() -> Mapping[str, str]:
    """Nothing is reported to anyone, nothing is downloaded."""
    return {
        "ORT_DISABLE_TELEMETRY": "1",
        "NNCF_CI": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
