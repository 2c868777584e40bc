"""What all verbs share: where text goes, how errors read, how progress is drawn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from edgecompress.errors import EdgeCompressError
from edgecompress.progress import Progress, silent

__all__ = ["Console", "common"]

F = TypeVar("F", bound=Callable[..., Any])

_BAR_CHARACTERS = 24
_REDRAW_SECONDS = 0.1
# No path is as long; a name in a file that somebody else has made may be.
_LONGEST_WORD, _WORD_SHOWN = 1000, 100


@dataclass
class Console:
    """Results go to stdout, everything else to stderr.

    Attributes:
        as_json: Write the result, or the error, as JSON.
        quiet: Write no progress and no remarks.
        debug: Show the traceback of an internal error.
        resumable: Whether the work keeps finished steps, so that the next run goes on from there.
        terminated: Whether the system asked for the end, not the person at the terminal.
    """

    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    resumable: bool = False
    terminated: bool = False

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> Console:
        """The console before the arguments are parsed, so that errors in them obey it too."""
        words = arguments[: arguments.index("--")] if "--" in arguments else arguments
        debug = os.environ.get("EDGECOMPRESS_DEBUG", "0") not in ("", "0")
        return cls(as_json="--json" in words, debug=debug or "--debug" in words)

    def show(self, result: Any, text: Callable[[], str]) -> None:
        """Write a result: as JSON, or as the text that ``text`` makes of it."""
        if self.as_json:
            from pydantic_core import to_json

            click.echo(to_json(result, indent=2, inf_nan_mode="null").decode())
        else:
            click.echo(text())

    def remark(self, text: str) -> None:
        """Write a line for the person at the terminal."""
        if not self.quiet and not self.as_json:
            click.echo(text, err=True)

    @contextlib.contextmanager
    def work(self, *, resumable: bool = False) -> Iterator[Progress]:
        """Draw progress while the block works; with ``--json`` keep stdout clean meanwhile.

        Args:
            resumable: See :attr:`Console.resumable`.
        """
        self.resumable = resumable
        bar = _Bar()
        with contextlib.ExitStack() as stack:
            if self.as_json:  # a print in the user's own code must not mix with the result
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(self._told_to_end())
            stack.callback(bar.clear)
            yield silent if self.quiet else bar

    @contextlib.contextmanager
    def _told_to_end(self) -> Iterator[None]:
        """Take SIGTERM as an interrupt, so that temporary files are removed and workers ended."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(*_: object) -> None:
            self.terminated = True
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def failed(self, error: Exception) -> int:
        """Tell about an error, and return the exit code."""
        if isinstance(error, click.Abort):
            rest = ", the next run continues from the cache" if self.resumable else ""
            word, code = ("terminated", 143) if self.terminated else ("interrupted", 130)
            self._tell(f"{word}; nothing was written{rest}", word.capitalize(), code)
            return code
        if isinstance(error, EdgeCompressError):
            if self.debug:
                traceback.print_exception(error)
            self._say(str(error))
            if self.as_json:
                click.echo(json.dumps(error.as_json(), indent=2))
            return error.exit_code
        if isinstance(error, click.ClickException):
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "edgecompress"
            message = error.format_message()
            self._tell(message, "UsageError", error.exit_code, cure=f"{path} --help")
            return error.exit_code
        if self.debug:
            traceback.print_exception(error)
        what = " ".join(str(error).split())
        self._tell(
            f"internal error: {type(error).__name__}: {what}".rstrip(": "),
            "InternalError",
            1,
            cure="this is a bug of edgecompress: run again with --debug for the traceback, and "
            "report it together with the command",
        )
        return 1

    def _say(self, message: str) -> None:
        if not message.startswith(("internal error", "interrupted", "terminated")):
            message = f"error: {message}"
        click.echo(click.style(_printable(message), fg="red"), err=True)

    def _tell(self, what: str, kind: str, code: int, cure: str | None = None) -> None:
        self._say(f"{what}\n  -> {cure}" if cure else what)
        if self.as_json:
            fields = {"error": kind, "what": what, "where": None, "cure": cure, "exit_code": code}
            click.echo(json.dumps(fields, indent=2))


def _printable(text: str) -> str:
    """Text that a terminal shows and does not obey: names in it come from files of others."""
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:_WORD_SHOWN]}...", text)
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class _Bar:
    """Progress on stderr: a bar that is redrawn on a terminal, else a line per piece of work."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._label: str | None = None
        self._drawn = 0.0
        self._width = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        new = label != self._label
        self._label = label
        if not self._terminal:
            if new:
                click.echo(f"{label} ...", err=True)
            return
        now = time.monotonic()
        if new or done >= total or now - self._drawn > _REDRAW_SECONDS:
            self._drawn = now
            self._draw(label, done, total)

    def _draw(self, label: str, done: int, total: int) -> None:
        share = min(done / total, 1.0) if total > 0 else 0.0
        full = round(share * _BAR_CHARACTERS)
        bar = "#" * full + "." * (_BAR_CHARACTERS - full)
        line = f"{label}  [{bar}] {done}/{total}"
        click.echo(f"\r{line.ljust(self._width)}", err=True, nl=False)
        self._width = len(line)

    def clear(self) -> None:
        """Take the bar away, so that the next text starts on a clean line."""
        if self._terminal and self._width:
            click.echo(f"\r{' ' * self._width}\r", err=True, nl=False)


def common(*, json: bool = True) -> Callable[[F], F]:
    """Give a command the options of all verbs, and the :class:`Console` as first argument."""

    def add(function: F) -> F:
        decorated = click.pass_obj(function)
        flags = [
            ("debug", ["--debug"], "Show the traceback of an error."),
            ("quiet", ["-q", "--quiet"], "No progress and no remarks."),
        ]
        if json:
            flags.append(("as_json", ["--json"], "Write the result as JSON to stdout."))
        for name, words, text in flags:
            decorated = click.option(
                *words, name, is_flag=True, expose_value=False, callback=_switch, help=text
            )(decorated)
        return decorated  # type: ignore[return-value]

    return add


def _switch(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    console = context.ensure_object(Console)
    if value and parameter.name is not None:
        setattr(console, parameter.name, True)
