"""Android devices by adb: ``adb:SERIAL``, where the serial may be ``host:port``."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import ClassVar, Self

from edgecompress.devices._agent import AddressedDevice
from edgecompress.devices._link import Done, Link
from edgecompress.errors import MeasurementError, TargetError

__all__ = ["Adb", "AdbLink"]

_BASE = "/data/local/tmp"  # the one folder in which Android lets the shell run programs
_ADDRESS = re.compile(r"adb:(?P<serial>[\w.\[][\w.:\[\]-]*)")
_NETWORK = re.compile(r".+:\d{1,5}")
_PATIENCE_S = 30.0
_FAILED = 255  # of adb itself, where the device is gone before the command has ended

# What adb says, what that means, and what to do about it.
_REASONS = (
    (
        r"unauthorized|failed to authenticate",
        "it does not trust this machine yet",
        "unlock it and allow debugging in the dialog that it shows",
    ),
    (
        r"offline",
        "it is offline, perhaps asleep",
        "wake it, plug it in again, or run adb reconnect",
    ),
    (
        r"no permissions",
        "this user may not use its USB port",
        "add yourself to the group plugdev and install Android's udev rules",
    ),
    (
        r"[Cc]onnection refused|failed to connect|cannot connect to \S+:\d|No route to host",
        "nothing answers at that address",
        "turn on wireless debugging there, or plug it in once and run: adb tcpip 5555",
    ),
    (
        r"not found|no devices",
        "adb does not see it",
        "allow USB debugging there, and see that it is in the list of: adb devices",
    ),
    (
        r"cannot connect to daemon|failed to start daemon|failed to check server",
        "adb's server does not start here",
        "see what this says: adb start-server",
    ),
)
_GONE = re.compile(
    "|".join(pattern for pattern, _, _ in _REASONS[:1])
    + r"|error: device (offline|'.*' not found|still)|error: closed|no devices|protocol fault"
    r"|[Cc]onnection reset|cannot connect to daemon"
)


class AdbLink(Link):
    """A connection by the adb client.

    Args:
        address: ``adb:SERIAL``, with the serial as ``adb devices`` lists it.

    Raises:
        TargetError: It is malformed.
    """

    def __init__(self, address: str) -> None:
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            raise TargetError(
                "expected adb:SERIAL",
                where=f"device {address!r}",
                cure="adb devices lists the serials; write for example adb:R58M123ABC or "
                "adb:192.168.0.7:5555",
            )
        super().__init__(address, base=_BASE)
        self.serial = parts["serial"]
        self._connected = False

    def command(self, line: str) -> list[str]:
        """See :meth:`Link.command`."""
        return ["adb", "-s", self.serial, "shell", "-T", line]

    def lost(self, code: int, said: str) -> bool:
        """See :meth:`Link.lost`."""
        return code == _FAILED or (code != 0 and _GONE.search(said) is not None)

    def refusal(self, said: str) -> MeasurementError:
        """See :meth:`Link.refusal`."""
        if not self.folder:
            for pattern, what, cure in _REASONS:
                if re.search(pattern, said):
                    return MeasurementError(what, where=self.address, cure=cure)
        lines = [line for line in said.splitlines() if line.strip()]
        detail = f": {lines[-1].strip()}" if lines else ""
        return MeasurementError(
            f"the connection was lost{detail}" if self.folder else f"adb cannot reach it{detail}",
            where=self.address,
            cure="see that it is on and plugged in, and that it is in the list of: adb devices",
        )

    def __enter__(self) -> Self:
        """See :meth:`Link.__enter__`."""
        if shutil.which("adb") is None:
            raise MeasurementError(
                "adb is not installed here",
                where=self.address,
                cure="install Android's platform tools (Debian: apt install adb)",
            )
        self._see()
        return super().__enter__()

    def _see(self) -> None:
        """Have adb see the device, by network if the serial is an address there."""
        state = self._adb("-s", self.serial, "get-state")
        if state.code and _NETWORK.fullmatch(self.serial):
            # It succeeds in words only.
            said = self._adb("connect", self.serial)
            self._connected = said.out.startswith("connected")
            state = self._adb("-s", self.serial, "get-state")
            if state.code:
                raise self.refusal(f"{said.out}\n{said.err}")
        if state.code or state.out.strip() != "device":
            raise self.refusal(state.err.strip() or f"device {state.out.strip()}")

    def _adb(self, *words: str, timeout: float = _PATIENCE_S) -> Done:
        try:
            done = subprocess.run(
                ["adb", *words], capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise self._silent(timeout) from None
        out, err = (text.decode("utf-8", errors="replace") for text in (done.stdout, done.stderr))
        return Done(done.returncode, out, err)

    def push(self, files: Sequence[tuple[Path, str]], *, timeout: float = 600.0) -> None:
        """See :meth:`Link.push`."""
        for file, name in files:
            place = PurePosixPath(self.folder) / name
            if str(place.parent) != self.folder:
                self.run(f"mkdir -p {shlex.quote(str(place.parent))}")
            done = self._adb("-s", self.serial, "push", str(file), str(place), timeout=timeout)
            if self.lost(done.code, done.err):
                raise self.refusal(done.err)
            self.pushed(done, file.stat().st_size)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See :meth:`Link.__exit__`."""
        super().__exit__(kind, error, trace)
        if self._connected:
            self._connected = False
            with contextlib.suppress(MeasurementError):
                self._adb("disconnect", self.serial)


class Adb(AddressedDevice):
    """An Android device by adb."""

    scheme: ClassVar[str] = "adb"
    link_type = AdbLink
