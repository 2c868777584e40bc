"""Debian packages unpacked into the user's cache folder, for tests; nothing is installed.

apt resolves, downloads and checks the signatures in folders of its own, for any release and
architecture, and needs no root. Where a thing cannot be had, the test that asked is skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["cache_folder", "filled_once", "host_suite", "unpacked"]

_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECONDS = 300
_MERGED = ("bin", "lib", "lib64", "sbin")


def cache_folder() -> Path:
    """Where unpacked packages stay from one test run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgecompress-tests"


def host_suite() -> str:
    """Name of the Debian release that the tests run on; skips on other systems."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    if facts.get("ID") != "debian" or "VERSION_CODENAME" not in facts:
        pytest.skip("this system is not Debian, so packages for it cannot be unpacked")
    return facts["VERSION_CODENAME"].strip('"')


@contextmanager
def filled_once(name: str) -> Iterator[tuple[Path, Path | None]]:
    """A folder of the cache that is filled by one process, once, or not at all.

    Yields:
        The folder, and where to put its contents now: None if it is there already.
    """
    target = cache_folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield target, None
            return
        aside = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
        try:
            yield target, aside
            aside.chmod(0o755)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def unpacked(packages: Sequence[str], suite: str = "trixie", arch: str = "amd64") -> Path:
    """A folder like ``/`` with these packages and all that they depend on.

    Args:
        packages: Names; one with ``-`` behind it is left out with what it alone needs.
        suite: Debian release.
        arch: Debian's name of the architecture, e.g. ``arm64``.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so Debian packages cannot be unpacked")
    if not _KEYRING.is_file():
        pytest.skip(f"{_KEYRING} is absent: Debian packages could not be verified")
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    with filled_once(f"debian/{suite}-{arch}-{key}") as (folder, aside):
        if aside is not None:
            with tempfile.TemporaryDirectory(dir=aside.parent) as scratch:
                for deb in _download(packages, suite, arch, Path(scratch)):
                    _unpack(deb, aside)
            (aside / "packages").write_text("\n".join(packages) + "\n", encoding="utf-8")
    return folder


def _download(packages: Sequence[str], suite: str, arch: str, folder: Path) -> list[Path]:
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    source = f"deb [arch={arch} signed-by={_KEYRING}] {_MIRROR} {suite} main\n"
    (folder / "sources.list").write_text(source, encoding="utf-8")
    options = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "0",
        "Acquire::Languages": "none",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
    }
    apt = ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update", "--error-on=any"])
    _run([*apt, "install", "--yes", "--download-only", *packages])
    return sorted((folder / "archives").glob("*.deb"))


def _unpack(deb: Path, folder: Path) -> None:
    # Debian's / has these links, and packages of trixie rely on them; dpkg would put folders there.
    for name in _MERGED:
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"usr/{name}")
    packed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
    with packed:
        _run(
            ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", os.fspath(folder)],
            stdin=packed,
        )


def _run(command: Sequence[str], stdin: subprocess.Popen[bytes] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=None if stdin is None else stdin.stdout,
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"Debian packages could not be had: {command[0]} took over {_SECONDS} s")
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["unknown"]
        reason = next((line for line in said if "Failed to fetch" in line), said[-1])
        pytest.skip(f"Debian packages could not be had: {reason}")
