"""Commands on mutants: each ends in success or in one clear error.

Each mutant gets a process of its own, with limits of time and memory, so that a crash or a hang is
seen and hits nobody else.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

from tests.mutants import Kind, make_mutant
from tests.recipes import BROKEN_OFF, DELIVERED, names
from tests.warm import start

Verdict = Literal[
    "success", "one clear error", "traceback", "unclear", "left-over", "hang", "crash"
]

FINE = ("success", "one clear error")
DEFECTS: tuple[Verdict, ...] = ("traceback", "unclear", "left-over", "hang", "crash")

_MEMORY = 4 * 2**30
_LONGEST_ERROR = 5000
_RESULTS = (set(), DELIVERED, {"rejected.onnx", *BROKEN_OFF}, set(BROKEN_OFF))


@dataclass(frozen=True)
class Outcome:
    """How one command on one mutant ended.

    Attributes:
        number: The mutant's number.
        mutant: The mutant in words.
        kind: What was spoilt.
        command: The verb.
        verdict: How it ended.
        text: What it said.
    """

    number: int
    mutant: str
    kind: Kind
    command: str
    verdict: Verdict
    text: str

    @property
    def fine(self) -> bool:
        return self.verdict in FINE


def fuzz(
    numbers: Iterable[int],
    bases: Path,
    folder: Path,
    *,
    small: bool = False,
    jobs: int = 2,
    seconds: int = 60,
) -> Iterator[Outcome]:
    """Run all commands on the mutants of these numbers.

    Args:
        numbers: See :func:`tests.mutants.make_mutant`.
        bases: What :func:`tests.mutants.save_bases` wrote.
        folder: Where the mutants lie while they are worked on.
        small: Whether to spoil the structure of small models alone.
        jobs: Mutants at a time.
        seconds: A mutant that takes longer hangs: of the processor's time, or five times that.
    """
    waiting = iter(numbers)
    running: dict[int, tuple[int, ForkServerProcess, float]] = {}
    while True:
        while len(running) < jobs and (number := next(waiting, None)) is not None:
            process = start(_work, number, bases, folder / str(number), small, seconds)
            running[process.sentinel] = (number, process, time.monotonic() + 5 * seconds)
        if not running:
            return
        wait(list(running), timeout=1)
        for sentinel, (number, process, deadline) in list(running.items()):
            if process.is_alive() and time.monotonic() > deadline:
                os.kill(process.pid or 0, signal.SIGXCPU)
                process.join()
            if not process.is_alive():
                del running[sentinel]
                yield from _judged(number, folder / str(number), process.exitcode)


def _judged(number: int, place: Path, code: int | None) -> Iterator[Outcome]:
    """What the process told of its commands; the last one tells nothing where it died."""
    notes = place.with_suffix(".jsonl")
    told = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    for note in told:
        if note["verdict"] is not None:
            yield Outcome(**note)
    if code:
        last = told[-1] if told else {"number": number, "mutant": f"mutant {number}"}
        last = {"kind": "structure", "command": "making it", **last}
        text = f"ended with {code}: " + _tail(place.with_suffix(".log"))
        verdict: Verdict = "hang" if code == -signal.SIGXCPU else "crash"
        yield Outcome(**{**last, "verdict": verdict, "text": text})


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""


def _work(number: int, bases: Path, place: Path, small: bool, seconds: int) -> None:
    log = place.with_suffix(".log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    mutant = make_mutant(number, bases, place, small)
    os.chdir(place)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    with place.with_suffix(".jsonl").open("w", buffering=1) as notes:
        for verb, arguments in _commands(mutant.kind, place).items():
            about = {"number": number, "mutant": str(mutant), "kind": mutant.kind, "command": verb}
            started = {**about, "verdict": None, "text": ""}
            notes.write(json.dumps(started) + "\n")
            before = log.stat().st_size
            code = _run(arguments)
            text = log.read_bytes()[before:].decode("utf-8", errors="replace")
            verdict, said = _verdict(code, text, place / "out")
            outcome = Outcome(**about, verdict=verdict, text=said)
            notes.write(json.dumps(asdict(outcome)) + "\n")


def _commands(kind: Kind, place: Path) -> dict[str, list[str]]:
    recipe = "recipe.toml"
    if kind == "recipe":
        commands = {"build --dry-run": ["build", recipe, "--dry-run"]}
        # What the recipe asks for may be to time a model on this machine for years.
        if 'name = "android-cpu"' in (place / recipe).read_text(encoding="utf-8", errors="replace"):
            commands["build"] = ["build", recipe, "-o", "out"]
        return commands
    compress = ["compress", "cnn.onnx", "-p", "cleanup", "-p", "quantize", "-o", "out"]
    target = ["--target", "android-cpu", "--no-cache"]
    return {
        "inspect": ["inspect", "cnn.onnx"],
        "cleanup": ["compress", "cnn.onnx", "-p", "cleanup", "-o", "out", *target],
        "compress": [*compress, "--data", "rows.npz", *target],
    }


def _run(arguments: list[str]) -> int:
    from edgecompress.cli import main

    code = main([*arguments, "--quiet", "--debug"], standalone_mode=False)
    return int(code)


def _verdict(code: int, text: str, output: Path) -> tuple[Verdict, str]:
    """Judge what a command said and left."""
    found = names(output)
    if found not in _RESULTS:
        return "left-over", f"{sorted(found)}"
    said = max((found.start() for found in re.finditer("^error: ", text, re.M)), default=-1)
    if "internal error: " in text or code not in (0, 1, 2):
        return "traceback", text[-3000:]
    if code == 0:
        return "success", ""
    if said < 0:  # a budget that was not met
        return ("success", "") if "FAILED" in text else ("unclear", text[-1500:])
    message = text[said:].strip()
    if "\n  -> " not in message and ":" not in message[7:]:
        return "unclear", message[-1500:]
    if len(message) > _LONGEST_ERROR or not message.replace("\n", "").isprintable():
        return "unclear", message[:1500]
    return "one clear error", message
