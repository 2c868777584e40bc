"""Links: ways to run commands on a device and to move files to and from it.

A link needs nothing on the device but a POSIX shell with a few of its usual commands.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edgecompress.errors import MeasurementError

__all__ = ["Done", "Link", "LocalLink"]

_FOLDER = "edgecompress:"
_PATIENCE_S = 30.0
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class Done:
    """What a command said: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


class Link(ABC):
    """A connection to a device; a ``with`` block holds a scratch folder there.

    The folder belongs to a process on the device that waits for the end of its input and then
    removes it. So it is removed whatever becomes of this side: an error, Ctrl-C, a killed process
    or a connection that breaks.

    Attributes:
        address: As the user wrote it.
        base: Folder on the device for the scratch folder, as a word of its shell.
        folder: The scratch folder, once connected.
        prefix: Words put before programs there, such as an emulator.
    """

    def __init__(self, address: str, *, base: str = '"${TMPDIR:-/tmp}"') -> None:
        self.address = address
        self.base = base
        self.folder = ""
        self.prefix: tuple[str, ...] = ()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    @abstractmethod
    def command(self, line: str) -> list[str]:
        """What to start here so that the shell there runs ``line``, with our pipes as its own."""

    @abstractmethod
    def lost(self, code: int, said: str) -> bool:
        """Whether a command that ended so never reached the device, or lost it on the way."""

    @abstractmethod
    def refusal(self, said: str) -> MeasurementError:
        """The error for a connection that failed with these words."""

    def keeper_command(self, line: str) -> list[str]:
        """As :meth:`command`, for the process that lives as long as the connection."""
        return self.command(line)

    def __enter__(self) -> Self:
        """Connect, and make the scratch folder.

        Raises:
            MeasurementError: The device cannot be reached, or lets no folder be made.
        """
        made = f"d=$(mktemp -d {self.base}/edgecompress-XXXXXX) || exit 3"
        line = f"{made}; trap '' HUP INT TERM; echo {_FOLDER}$d; cat >/dev/null; rm -rf \"$d\""
        # A file, not a pipe: nobody reads it while the process lives.
        self._said = tempfile.TemporaryFile()
        try:
            self._keeper = self._popen(self.keeper_command(line), self._said)
            self.folder = self._wait_for_folder(self._keeper)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _popen(self, command: list[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C must not end the link before what hangs on it.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )

    def _wait_for_folder(self, keeper: subprocess.Popen[bytes]) -> str:
        assert keeper.stdout is not None
        assert self._said is not None
        # A login script may say something first.
        for raw in keeper.stdout:
            text = raw.decode("utf-8", errors="replace").strip()
            if text.startswith(_FOLDER):
                return text.removeprefix(_FOLDER)
        code = keeper.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", errors="replace").strip()
        if self.lost(code, said):
            raise self.refusal(said)
        raise MeasurementError(
            f"no folder can be made in {self.base} there: {_last(said)}",
            where=self.address,
            cure="free some space there, or make that folder writable",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the scratch folder, and disconnect."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                keeper.stdin.close()
            try:
                keeper.wait(_FAREWELL_S)
            except subprocess.TimeoutExpired:
                _end_session(keeper)
            keeper.stdout.close()
        if self._said is not None:
            self._said.close()
            self._said = None
        self.folder = ""

    def run(self, line: str, *, given: bytes = b"", timeout: float = _PATIENCE_S) -> Done:
        """Let the shell there run ``line`` and wait for its end.

        Args:
            line: A shell command; its working folder is unspecified.
            given: Its standard input.
            timeout: Longest wait, in seconds.

        Raises:
            MeasurementError: The connection was lost, or the command took too long.
        """
        try:
            done = subprocess.run(
                self.command(line), input=given, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise self._silent(timeout) from None
        return self._checked(done)

    def push(self, files: Sequence[tuple[Path, str]], *, timeout: float = 600.0) -> None:
        """Copy files into the scratch folder, under these names.

        Raises:
            MeasurementError: The connection was lost, or the device is full.
        """
        line = f"tar -xof - -C {shlex.quote(self.folder)}"
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                for file, name in files:
                    archive.add(file.resolve(), name)
            packed.seek(0)
            try:
                done = subprocess.run(
                    self.command(line),
                    stdin=packed,
                    capture_output=True,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise self._silent(timeout) from None
        self.pushed(self._checked(done), sum(file.stat().st_size for file, _ in files))

    def pushed(self, done: Done, size: int) -> None:
        """Refuse a copy of that many bytes that did not succeed.

        Raises:
            MeasurementError: It did not.
        """
        if done.code == 0:
            return
        said = f"{done.out}\n{done.err}"
        if "space left" in said or "quota" in said.lower():
            raise self.full(size, None)
        raise MeasurementError(
            f"files could not be copied to the device: {_last(said)}", where=self.address
        )

    def full(self, needed: int, free: int | None) -> MeasurementError:
        """The error for a device without space."""
        left = "no space is left" if free is None else f"{free / 1e6:,.1f} MB are free"
        return MeasurementError(
            f"{needed / 1e6:,.1f} MB have to be put on the device, but {left} in {self.folder}",
            where=self.address,
            cure="free some space there",
        )

    def pull(self, name: str, file: Path, *, timeout: float = 600.0) -> None:
        """Copy a file of the scratch folder, or one with an absolute path, to here.

        Raises:
            MeasurementError: The connection was lost, or there is no such file.
        """
        place = name if name.startswith("/") else f"{self.folder}/{name}"
        with file.open("wb") as target:
            try:
                done = subprocess.run(
                    self.command(f"cat {shlex.quote(place)}"),
                    stdout=target,
                    stderr=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise self._silent(timeout) from None
        answer = self._checked(done)
        if answer.code:
            raise MeasurementError(
                f"{place} could not be fetched: {_last(answer.err)}", where=self.address
            )

    def program(self, line: str) -> str:
        """A shell line that runs a program in the scratch folder, under :attr:`prefix`."""
        words = shlex.join(self.prefix)
        # Not by exec: so the shell tells by its code how the program ended.
        return f"cd {shlex.quote(self.folder)} && {words} {line}; exit $?"

    def _checked(self, done: subprocess.CompletedProcess[bytes]) -> Done:
        answer = Done(
            done.returncode,
            (done.stdout or b"").decode("utf-8", errors="replace"),
            (done.stderr or b"").decode("utf-8", errors="replace"),
        )
        if self.lost(answer.code, answer.err):
            raise self.refusal(answer.err.strip())
        return answer

    def _silent(self, timeout: float) -> MeasurementError:
        return MeasurementError(
            f"the device did not answer within {timeout:g} s",
            where=self.address,
            cure="see that it is awake and that the connection is good, then run again",
        )


class LocalLink(Link):
    """This machine as if it were a device: for tests, for emulated ones, and without Python.

    Args:
        prefix: Words put before programs, such as ``("qemu-aarch64", "-cpu", "cortex-a76")``.
        address: As errors name it.
    """

    def __init__(self, prefix: Sequence[str] = (), *, address: str = "this machine") -> None:
        super().__init__(address, base=shlex.quote(tempfile.gettempdir()))
        self.prefix = tuple(prefix)

    def command(self, line: str) -> list[str]:
        """See :meth:`Link.command`."""
        return ["sh", "-c", line]

    def lost(self, code: int, said: str) -> bool:
        """A shell of this machine cannot be lost."""
        return False

    def refusal(self, said: str) -> MeasurementError:
        """See :meth:`Link.refusal`."""
        return MeasurementError(said, where=self.address)

    def push(self, files: Sequence[tuple[Path, str]], *, timeout: float = 600.0) -> None:
        """Link the files where that can be done, else copy them."""
        for file, name in files:
            place = Path(self.folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), place)
            except OSError:  # another file system
                shutil.copyfile(file, place)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, with those that it started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it did not say why"
