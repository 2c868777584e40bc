"""Devices over ssh: ``ssh://user@host[:port][/folder]``.

OpenSSH's own client does the work, with the user's configuration, keys and known hosts; nothing
asks for a password. One connection carries everything.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from edgecompress.devices._agent import AddressedDevice
from edgecompress.devices._link import Link
from edgecompress.errors import MeasurementError, TargetError

__all__ = ["OPTIONS", "Ssh", "SshLink"]

OPTIONS = "EDGECOMPRESS_SSH_OPTIONS"
"""Environment variable: more options for ssh, such as ``-i ~/.ssh/board``."""

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>\[[0-9a-fA-F:.]+\]|\w[\w.-]*)"
    r"(?::(?P<port>\d{1,5}))?(?P<folder>/.*)?"
)
_LAST_PORT = 65535
_FAILED = 255  # ssh's own exit code; all others are the command's
_ALIVE = ("ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")

# What ssh says, what that means, and what to do about it.
_REASONS = (
    (
        r"IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known for it",
        "if you know why it changed, remove the old one: ssh-keygen -R {host}; else do not connect",
    ),
    (
        r"Host key verification failed|host key is known",
        "its host key is unknown",
        "connect once by hand and compare the fingerprint: {by_hand}",
    ),
    (
        r"Permission denied|Too many authentication failures",
        "it refuses our key",
        "bring your key there: ssh-copy-id {to}; if it has a passphrase, ssh-agent must hold it",
    ),
    (
        r"Could not resolve hostname",
        "there is no host of that name",
        "check the name, or give it an entry in ~/.ssh/config",
    ),
    (
        r"Connection refused",
        "nothing answers at that port",
        "start sshd there, or give its port: ssh://{to}:PORT",
    ),
    (
        r"Connection timed out|Operation timed out|No route to host|Network is unreachable",
        "it cannot be reached",
        "see that it is awake and that both are in one network",
    ),
)


class SshLink(Link):
    """A connection by OpenSSH.

    Args:
        address: ``ssh://user@host[:port][/folder]``; the scratch folder is made in ``folder``.

    Raises:
        TargetError: It is malformed.
    """

    def __init__(self, address: str) -> None:
        parts = _ADDRESS.fullmatch(address)
        port = parts and parts["port"]
        if parts is None or (port and not 0 < int(port) <= _LAST_PORT):
            raise TargetError(
                "expected ssh://user@host, perhaps with :port and /folder behind it",
                where=f"device {address!r}",
                cure="write for example ssh://pi@kitchen or ssh://pi@192.168.0.7:2222",
            )
        folder = (parts["folder"] or "").rstrip("/")
        if folder:
            super().__init__(address, base=shlex.quote(folder))
        else:
            super().__init__(address)
        self._host = parts["host"].strip("[]")
        self._to = f"{parts['user']}@{self._host}" if parts["user"] else self._host
        self._port = ("-p", port) if port else ()
        self._sockets: str | None = None

    def _ssh(self, line: str, *more: str) -> list[str]:
        options = ["BatchMode=yes", *_ALIVE, *more]
        # The first value of an option counts, so the user's own stand before ours.
        return [
            "ssh",
            "-T",
            *shlex.split(os.environ.get(OPTIONS, "")),
            *(word for option in options for word in ("-o", option)),
            *self._port,
            self._to,
            f"sh -c {shlex.quote(line)}",  # whatever the login shell is
        ]

    def _shared(self, master: str) -> tuple[str, ...]:
        if self._sockets is None:
            return ()
        path = Path(self._sockets) / "socket"
        return (f"ControlMaster={master}", f"ControlPath={path}", "ControlPersist=no")

    def command(self, line: str) -> list[str]:
        """See :meth:`Link.command`."""
        return self._ssh(line, *self._shared("no"))

    def keeper_command(self, line: str) -> list[str]:
        """The first connection; the others go through it."""
        command = self._ssh(line, *self._shared("yes"))
        if self._sockets is None:
            return command
        # Its shell outlives this process, should somebody kill it, and clears up here as well.
        after = f"rm -rf {shlex.quote(self._sockets)}"
        return ["sh", "-c", f'"$@"; code=$?; {after}; exit $code', "sh", *command]

    def lost(self, code: int, said: str) -> bool:
        """See :meth:`Link.lost`."""
        return code == _FAILED

    def refusal(self, said: str) -> MeasurementError:
        """See :meth:`Link.refusal`."""
        by_hand = " ".join(["ssh", *self._port, self._to])
        for pattern, what, cure in _REASONS:
            if re.search(pattern, said):
                cure = cure.format(host=self._host, to=self._to, by_hand=by_hand)
                return MeasurementError(what, where=self.address, cure=cure)
        lines = [line for line in said.splitlines() if line.strip()]
        detail = f": {lines[-1].strip()}" if lines else ""
        return MeasurementError(
            f"the connection was lost{detail}" if self.folder else f"it cannot be reached{detail}",
            where=self.address,
            cure=f"see that it is on, and that this works: {by_hand}",
        )

    def __enter__(self) -> Self:
        """See :meth:`Link.__enter__`."""
        if shutil.which("ssh") is None:
            raise MeasurementError(
                "ssh is not installed here", where=self.address, cure="install OpenSSH's client"
            )
        if os.name == "posix":  # elsewhere ssh cannot share a connection
            self._sockets = tempfile.mkdtemp(prefix="edgecompress-ssh-")
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See :meth:`Link.__exit__`."""
        super().__exit__(kind, error, trace)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None


class Ssh(AddressedDevice):
    """A device over ssh."""

    scheme: ClassVar[str] = "ssh"
    link_type = SshLink
