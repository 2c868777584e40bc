"""A headless Chromium of our own: found, started, spoken to through a pipe, and ended.

It speaks the Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol/, over
two pipes (``--remote-debugging-pipe``): JSON objects, each ended by a zero byte. It has a profile
folder of its own, and finds no host but this machine.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecompress.errors import MeasurementError

__all__ = ["Chromium", "Lost", "Tab", "find_chromium"]

Lost = Callable[[str, bool], None]
"""Told why a page is gone, and whether it crashed of itself."""

_NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
_ANSWER_S = 30.0
_END_S = 5.0
_TAIL = 400
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-startup-window",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    # Nothing but this machine: no names are resolved, and nothing is looked for at home.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-extensions-with-background-pages",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--password-store=basic",
    "--use-mock-keychain",
    # No part of the work on a graphics processor or with low priority.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-features=MediaRouter,OptimizationHints,Translate",
    "--enable-precise-memory-info",
)
# Puts the pipes where Chromium wants them, at 3 and 4, and becomes Chromium.
_BECOME = """
import fcntl, os, sys
given = [int(number) for number in sys.argv[1:3]]
apart = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in given]
for number in given:
    os.close(number)
for number, place in zip(apart, (3, 4)):
    os.dup2(number, place)
    os.close(number)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """Path of Chromium: ``EDGECOMPRESS_CHROMIUM``, or one of the usual names; None if absent."""
    named = os.environ.get("EDGECOMPRESS_CHROMIUM")
    if named:
        return shutil.which(named)
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page in a renderer process of its own."""

    def __init__(self, browser: Chromium, target: str, context: str) -> None:
        self._browser, self._target, self._context = browser, target, context

    def throttle(self, rate: float) -> None:
        """Let the page run ``rate`` times slower."""
        session = self._browser.call("Target.attachToTarget", targetId=self._target, flatten=True)[
            "sessionId"
        ]
        self._browser.call("Emulation.setCPUThrottlingRate", session=session, rate=rate)

    def close(self) -> None:
        """Close the page; its process ends."""
        self._browser.forget(self._target)
        with contextlib.suppress(MeasurementError):
            self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)


class Chromium:
    """A headless Chromium; a ``with`` block starts and ends it, and removes its profile folder.

    Attributes:
        version: What it calls itself, e.g. ``Chrome/156.0.8078.79``.
    """

    def __init__(self) -> None:
        self.version = ""
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._on_end: dict[str, Lost] = {}
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            MeasurementError: There is none, or it does not start.
        """
        path = find_chromium()
        if path is None:
            named = os.environ.get("EDGECOMPRESS_CHROMIUM")
            raise MeasurementError(
                f"there is no program {named!r}, which EDGECOMPRESS_CHROMIUM names"
                if named
                else f"no browser is installed here: looked for {', '.join(_NAMES)}",
                where="browser",
                cure="install Chromium (apt-get install chromium), or set EDGECOMPRESS_CHROMIUM "
                "to the path of Chromium or Chrome",
            )
        if os.name != "posix":
            raise MeasurementError(
                "Chromium is started here on Linux and macOS only",
                where="browser",
                cure="use the address browser:serve and open the page in a browser yourself",
            )
        self._folder = tempfile.TemporaryDirectory(
            prefix="edgecompress-browser-", ignore_cleanup_errors=True
        )
        try:
            self._start(path)
            self.version = str(self.call("Browser.getVersion")["product"])
            self.call("Target.setDiscoverTargets", discover=True)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self, path: str) -> None:
        folder = Path(self._folder.name)
        for name in ("profile", "tmp"):
            (folder / name).mkdir()
        self._stderr = (folder / "stderr").open("w+b")
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        flags = [*_FLAGS, *root, f"--user-data-dir={folder / 'profile'}"]
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", _BECOME, str(read), str(write), path, *flags],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            # What it writes into its user's folders belongs into ours.
            env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder / "tmp")}
            | {name: str(folder) for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")},
            start_new_session=True,
        )
        os.close(read)
        os.close(write)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the result.

        Raises:
            MeasurementError: Chromium ended, refused, or did not answer.
        """
        number = next(self._numbers)
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        with self._lock:
            if self._ended:
                raise self._death(method)
            self._waiting[number] = answer
            with contextlib.suppress(BrokenPipeError):
                os.write(self._write, json.dumps(message).encode() + b"\0")
        try:
            found = answer.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise MeasurementError(
                f"Chromium did not answer within {_ANSWER_S:g} s ({method})", where="browser"
            ) from None
        finally:
            self._waiting.pop(number, None)
        if not found:
            raise self._death(method)
        if "error" in found:
            raise MeasurementError(
                f"Chromium refused {method}: {found['error'].get('message')}", where="browser"
            )
        result: dict[str, Any] = found["result"]
        return result

    def _death(self, method: str) -> MeasurementError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        said = f"; its last line: {lines[-1][-_TAIL:]}" if lines else ""
        return MeasurementError(
            f"Chromium ended ({method}){said}",
            where="browser",
            cure="start it by hand with --headless --remote-debugging-port=0 to see what it lacks",
        )

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(self._read, 1 << 16):
            *messages, rest = (rest + piece).split(b"\0")
            for message in messages:
                self._heard(json.loads(message))
        with self._lock:
            self._ended = True
            for answer in list(self._waiting.values()):
                answer.put({})
        for tell in list(self._on_end.values()):
            tell("the browser ended", False)

    def _heard(self, message: dict[str, Any]) -> None:
        if "id" in message:
            if (answer := self._waiting.get(message["id"])) is not None:
                answer.put(message)
            return
        tell = self._on_end.get(message.get("params", {}).get("targetId", ""))
        if tell is not None and message["method"] == "Target.targetCrashed":
            status = message["params"].get("status", "crashed")
            tell(f"the page's process ended ({status})", status == "crashed")

    def open(self, url: str, on_end: Lost) -> Tab:
        """Open a page in a browser context, and so a process, of its own.

        Args:
            url: Its address.
            on_end: Called in another thread when the page or Chromium dies.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url=url, browserContextId=context)["targetId"]
        self._on_end[target] = on_end
        return Tab(self, target, context)

    def forget(self, target: str) -> None:
        """Tell nobody any more when that page dies."""
        self._on_end.pop(target, None)

    def processes(self) -> list[dict[str, Any]]:
        """Its processes: ``type``, ``id``, and ``cpuTime`` in seconds."""
        found: list[dict[str, Any]] = self.call("SystemInfo.getProcessInfo")["processInfo"]
        return found

    def renderers(self) -> set[int]:
        """Processes that show pages."""
        return {each["id"] for each in self.processes() if each["type"] == "renderer"}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_end.clear()
        with contextlib.suppress(MeasurementError):
            self.call("Browser.close")
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):  # all gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._write)
        self._reader.join(_END_S)
        os.close(self._read)
        self._stderr.close()
        self._folder.cleanup()
