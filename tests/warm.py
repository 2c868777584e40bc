"""Processes that start in milliseconds: forked from one that has imported and used everything.

Each runs one command, and something may befall it at one of its steps: a step is whatever Python
tells the system of files (making, opening, renaming, removing), counted from one. So a fault hits
the same place in every run.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.warm_up"])
    return context


def start(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Call a function of an importable module in a process of its own."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.fspath(_ROOT), *([before] if before else [])])
    try:
        process = _context().Process(target=function, args=arguments)
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


@dataclass(frozen=True)
class Fault:
    """What befalls a process, at which step.

    Attributes:
        step: Its number; one that never comes lets the process count its steps.
        below: Only what happens to files in this folder counts.
        kill: The signal that it gets.
        wipe: The folder whose content is removed.
    """

    step: int
    below: Path
    kill: int | None = None
    wipe: Path | None = None

    def befall(self) -> None:
        if self.wipe is not None:
            for each in self.wipe.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        if self.kill is not None:
            os.kill(os.getpid(), self.kill)


def wait_for(fault: Fault) -> Callable[[], int]:
    """Let a fault befall this process; the answer tells how many steps there were so far."""
    steps = 0
    folder = os.fspath(fault.below)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in _STEPS and str(arguments[0]).startswith(folder):
            steps += 1
            if steps == fault.step:
                fault.befall()

    sys.addaudithook(hook)
    return lambda: steps


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and all that it wrote."""

    code: int
    text: str


def command(
    arguments: list[str], output: Path, temporary: Path | None, fault: Fault | None
) -> None:
    """Run the command line in this process, with all that it writes in the file ``output``."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if temporary is not None:
        os.environ["TMPDIR"] = os.fspath(temporary)
        tempfile.tempdir = None
    from edgecompress.cli import main

    steps = wait_for(fault) if fault is not None else None
    try:
        main(arguments)
    finally:
        if steps is not None:
            print(f"steps: {steps()}", flush=True)


def begin(
    arguments: list[str], output: Path, *, temporary: Path | None = None, fault: Fault | None = None
) -> ForkServerProcess:
    """Start :func:`command`."""
    return start(command, arguments, output, temporary, fault)


def end(process: ForkServerProcess, output: Path, seconds: float = 60) -> Ended:
    """Wait for what :func:`begin` started; whatever takes longer is killed, which its code tells.

    The processes that it started must have gone with it.
    """
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, output.read_text(encoding="utf-8", errors="replace"))


def was_killed(ended: Ended) -> bool:
    return ended.code == -signal.SIGKILL
