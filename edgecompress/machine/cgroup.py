"""A memory control group of Linux around one process: the kernel's own peak, and a limit.

Version 1 and 2 of the kernel's interface (kernel documentation, ``cgroup-v1/memory.rst`` and
``cgroup-v2.rst``). A group counts anonymous memory, the kernel's own for the process, and the pages
of files that its processes were the first to read. A file that others have read already costs it
nothing: a model that is mapped into memory may be missing from its figures.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["MemoryGroup", "GroupMemory", "GROUP_VARIABLE"]

GROUP_VARIABLE = "EDGECOMPRESS_MEMORY_GROUP"
"""Environment variable in which a process finds the folder of the group that was made for it."""

_PREFIX = "edgecompress-"
_JOIN = 'echo $$ > "$0" && exec "$@"'
_REMOVAL_S = 2.0
_numbers = count()


class _Files(NamedTuple):
    """Names of one version's files, and of the entries in ``memory.stat``."""

    peak: str
    usage: str
    limit: str
    events: str
    anonymous: str
    file: str


_V1 = _Files(
    "memory.max_usage_in_bytes",
    "memory.usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.oom_control",
    "rss",
    "cache",
)
_V2 = _Files("memory.peak", "memory.current", "memory.max", "memory.events", "anon", "file")


@dataclass(frozen=True)
class GroupMemory:
    """What the kernel counts for a group, in bytes.

    Attributes:
        peak: Most that it held at once.
        usage: What it holds now.
        anonymous: Of that, what no file is behind.
        file: Of that, page cache and shared memory.
        oom_kills: Processes of it that were killed because memory ran out.
    """

    peak: int
    usage: int
    anonymous: int
    file: int
    oom_kills: int


class MemoryGroup:
    """A control group that one process is started in; :meth:`remove` ends it and what is in it.

    Args:
        folder: The group's folder in the file system of the control groups; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _V1 if (folder / _V1.usage).exists() else _V2
        self._peak: IO[str] | None = None

    @classmethod
    def make(cls) -> MemoryGroup | None:
        """A new group below that of this process, or None where the system does not let us."""
        home = _home()
        return None if home is None else _new(home)

    @classmethod
    def mine(cls) -> MemoryGroup | None:
        """The group that this process was started in, as its environment tells."""
        folder = os.environ.get(GROUP_VARIABLE)
        return cls(Path(folder)) if folder and Path(folder).is_dir() else None

    @property
    def command(self) -> tuple[str, ...]:
        """What to put before a command so that it runs in the group from its first page on."""
        return ("sh", "-c", _JOIN, str(self.folder / "cgroup.procs"))

    def limit(self, limit_bytes: int) -> bool:
        """Let the kernel kill what holds more than this; whether that could be set."""
        try:
            (self.folder / self._files.limit).write_text(str(limit_bytes))
        except OSError:
            return False
        # What is swapped out would not count.
        for name, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit_bytes)):
            with contextlib.suppress(OSError):
                if (self.folder / name).exists():
                    (self.folder / name).write_text(str(most))
        return True

    @property
    def most_bytes(self) -> int | None:
        """The tightest limit of the group and those above it; None where there is none."""
        if self._files is _V1:
            limits = [self._stat().get("hierarchical_memory_limit", 0)]
        else:
            texts = [_text(above / _V2.limit) for above in (self.folder, *self.folder.parents)]
            limits = [int(text) for text in texts if text.isdigit()]
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        set_ones = [limit for limit in limits if 0 < limit < here]
        return min(set_ones, default=None)

    def forget_peak(self) -> bool:
        """Let the peak start again at what is held now; whether the kernel can do that."""
        try:
            if self._files is _V1:
                (self.folder / _V1.peak).write_text("0")
                return True
            # Since Linux 6.12, and for the open file that it is written to only.
            peak = (self.folder / _V2.peak).open("r+", encoding="ascii")
        except OSError:
            return False
        try:
            peak.write("reset")
            peak.flush()
        except OSError:
            with contextlib.suppress(OSError):
                peak.close()
            return False
        self._peak = peak
        return True

    def memory(self) -> GroupMemory | None:
        """What the group holds and held; None where it cannot be read."""
        try:
            stat = self._stat()
            return GroupMemory(
                peak=self._read_peak(),
                usage=int((self.folder / self._files.usage).read_text()),
                anonymous=stat[self._files.anonymous],
                file=stat[self._files.file],
                oom_kills=_pairs(_text(self.folder / self._files.events)).get("oom_kill", 0),
            )
        except (OSError, ValueError, KeyError):
            return None

    def _read_peak(self) -> int:
        if self._peak is None:
            return int((self.folder / self._files.peak).read_text())
        self._peak.seek(0)
        return int(self._peak.read())

    def _stat(self) -> dict[str, int]:
        return _pairs(_text(self.folder / "memory.stat"))

    def remove(self) -> None:
        """Kill what still runs in the group, and remove it."""
        if self._peak is not None:
            self._peak.close()
        until = time.monotonic() + _REMOVAL_S
        while self.folder.is_dir():
            for pid in _text(self.folder / "cgroup.procs").split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self.folder.rmdir()
            except OSError:  # the kernel has not yet taken leave of the dead
                if time.monotonic() > until:
                    return
                time.sleep(0.005)


def _pairs(text: str) -> dict[str, int]:
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _new(parent: Path) -> MemoryGroup | None:
    folder = parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
    except OSError:
        return None
    return MemoryGroup(folder)


@cache
def _home() -> Path | None:
    """The group that new ones can be made in, as found out by trying."""
    for parent in _candidates():
        group = _new(parent)
        if group is None:
            continue
        try:
            joined = subprocess.run([*group.command, "true"], capture_output=True, check=False)
            if joined.returncode == 0 and group.memory() is not None:
                _remove_abandoned(parent)
                return parent
        except OSError:
            pass
        finally:
            group.remove()
    return None


def _remove_abandoned(parent: Path) -> None:
    """Remove empty groups of processes that were killed before they could do it themselves."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _candidates() -> Iterator[Path]:
    """Groups in which others might be made, best first."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder = _place("cgroup", "memory", path)
            if folder is not None:
                yield folder
        elif not controllers:
            folder = _place("cgroup2", "", path)
            # A group with processes in it cannot have counted ones below it, so the new one
            # stands beside that of this process.
            for parent in () if folder is None else (folder.parent, folder):
                if "memory" in _text(parent / "cgroup.subtree_control").split():
                    yield parent


def _place(kind: str, option: str, path: str) -> Path | None:
    """Where a group of ``/proc/self/cgroup`` is mounted: a container sees a part of the tree."""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        found, _, options = after.split()[:3]
        if found == kind and (not option or option in options.split(",")):
            inside = Path(path)
            below = inside.relative_to(root) if inside.is_relative_to(root) else Path()
            return Path(point) / below
    return None
