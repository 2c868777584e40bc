"""The agent, and what it needs, in the scratch folder of a device."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.devices._agent_peer import PROGRAM, AgentPeer
from edgecompress.devices._build import FLAGS, LIBRARIES, agent_program, sources
from edgecompress.devices._library import (
    VARIABLE,
    given_library,
    missing_library,
    own_library,
    unusable_library,
)
from edgecompress.devices._link import Done, Link
from edgecompress.devices._survey import System, survey
from edgecompress.errors import MeasurementError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.devices import Arrays
    from edgecompress.runtimes import Artifact

__all__ = ["AgentHost"]

_LIBRARY = "libonnxruntime.so"
_SPARE_BYTES = 4_000_000  # profiles and outputs have to find room, too
_COMPILE_S = 180.0
_FACTS = b'{"do": "facts"}\n'


class AgentHost:
    """The agent and onnxruntime in the scratch folder of a connected link.

    Args:
        link: The link; it stays the caller's.
        system: What programs there are for; None to ask the device.
        library: The device's libonnxruntime.so, on this machine; None for the one that
            ``EDGECOMPRESS_DEVICE_RUNTIME`` names, that lies on the device, or that is installed
            here, in this order.

    Attributes:
        first_facts: What the device told of itself when the agent was put there.

    Raises:
        MeasurementError: There is no agent or no onnxruntime for the device, or no room there.
    """

    def __init__(
        self, link: Link, *, system: System | None = None, library: Path | None = None
    ) -> None:
        self.link = link
        self._there = survey(link)
        self.system = system or self._there.system
        self._free = self._there.free_bytes
        self._put: dict[str, str] = {}
        self._peers = 0
        self._program = link.program(f"./{PROGRAM}")
        self.first_facts: dict[str, Any] | None = None
        with tempfile.TemporaryDirectory() as folder:
            library = library or self._library(Path(folder))
            program = agent_program(self.system.arch, android=self.system.android)
            wanted = [(program, PROGRAM), (library, _LIBRARY)]
            self._push([(file, name) for file, name in wanted if file is not None])
        self.runtime = f"{link.folder}/{_LIBRARY}" if library else str(self._there.runtime)
        self._check_agent(program)

    def _library(self, folder: Path) -> Path | None:
        """The library to bring, or None where the device has one."""
        arch, android = self.system.arch, self.system.android
        given = given_library(arch, folder)
        if given is not None:
            return given
        # What lies there is for the machine, not for what it emulates.
        if self._there.runtime is not None and self.system == self._there.system:
            return None
        own = None if android else own_library(arch)
        if own is None:
            raise missing_library(arch, self.link.address, android=android)
        return own

    def _check_agent(self, program: Path | None) -> None:
        trouble: str | None = f"there is no C++ compiler for {self.system.arch} here"
        if program is not None:
            trouble = self._trouble()
        # Another C library there, perhaps: a program that was made there fits.
        if trouble is not None and not self._compile_there():
            raise MeasurementError(
                f"the agent cannot be made for the device: {trouble}",
                where=self.link.address,
                cure=_compiler_cure(self.system),
            )

    def _trouble(self) -> str | None:
        """Why the agent does not start there, or None where it does."""
        place = shlex.quote(f"{self.link.folder}/{PROGRAM}")
        done = self.link.run(f"chmod 755 {place}; {self._program}", given=_FACTS)
        self.first_facts = _told(done)
        if self.first_facts is not None:
            return None
        if done.code == 0:
            raise self.link.refusal(done.err)
        return f"it ends with code {done.code}: {done.err.strip()}"

    def _compile_there(self) -> bool:
        if self._there.compiler is None or self.system != self._there.system:
            return False
        files = sources()
        self._push([(file, file.name) for file in files])
        words = [self._there.compiler, *FLAGS, files[0].name, "-o", PROGRAM, *LIBRARIES]
        place = shlex.quote(self.link.folder)
        done = self.link.run(f"cd {place} && {shlex.join(words)}", timeout=_COMPILE_S)
        return done.code == 0 and self._trouble() is None

    def _push(self, files: Sequence[tuple[Path, str]]) -> None:
        needed = sum(file.stat().st_size for file, _ in files)
        if self._free is not None:
            if self._free < needed + _SPARE_BYTES:
                raise self.link.full(needed + _SPARE_BYTES, self._free)
            self._free -= needed
        if files:
            self.link.push(files)

    def facts(self) -> dict[str, Any]:
        """What the device tells of itself, in the agent's words.

        Raises:
            MeasurementError: The connection was lost, or the agent failed.
        """
        done = self.link.run(self._program, given=_FACTS)
        told = _told(done)
        if told is None and done.code == 0:
            raise self.link.refusal(done.err)
        if told is None:
            raise MeasurementError(
                f"the agent ended with code {done.code}: {done.err.strip()}",
                where=self.link.address,
            )
        return told

    def start(
        self,
        artifact: Artifact,
        feeds: Arrays,
        options: Mapping[str, Any],
        *,
        where: str,
        timeout_seconds: float,
        trace: Path | None = None,
    ) -> AgentPeer:
        """An agent with a model loaded.

        Args:
            artifact: An ONNX or ORT file, with the files of its weights.
            feeds: The inputs.
            options: As for :meth:`edgecompress.runtimes.Engine.load`.
            where: The model, as errors name it.
            timeout_seconds: Longest wait for one answer.
            trace: Prefix, on this machine, of the file with times per operator.

        Raises:
            MeasurementError: It cannot be loaded there, or the connection was lost.
        """
        from edgecompress.runtimes._session import split_options

        model, inputs = self._place(artifact, feeds)
        config, provider_options = split_options(options)
        self._peers += 1
        peer = AgentPeer(
            self, f"peer{self._peers}", where=where, timeout_seconds=timeout_seconds, trace=trace
        )
        try:
            self._open(peer, options["provider"])
            peer.loaded = peer.ask(
                "load",
                model=model,
                provider=options["provider"],
                provider_options=provider_options,
                config={**config, **(options.get("config") or {})},
                threads=options["threads"],
                inputs=inputs,
                trace=None if trace is None else f"{peer.folder}/trace",
            )
        except BaseException:
            peer.__exit__(None, None, None)
            raise
        return peer

    def _open(self, peer: AgentPeer, provider: str) -> None:
        try:
            there = peer.ask("open", library=self.runtime)
        except MeasurementError as error:
            if peer.process.poll() is None:
                raise unusable_library(error.what, self.system.arch, peer.where) from error
            raise
        if provider not in there["available"]:
            raise MeasurementError(
                f"onnxruntime {there['version']} on the device has no {provider}, "
                f"but {', '.join(there['available'])}",
                where=peer.where,
                cure=f"take a target with one of these, or set {VARIABLE} to a build that has it",
            )

    def place_inputs(self, feeds: Arrays) -> list[dict[str, Any]]:
        """Put arrays on the device; what the agent is told of them.

        Raises:
            MeasurementError: There is no room for them, or the connection was lost.
        """
        return self._place(None, feeds)[1]

    def _place(self, artifact: Artifact | None, feeds: Arrays) -> tuple[str, list[dict[str, Any]]]:
        """Put a model and its inputs there, as far as they are not there yet, in one go."""
        with tempfile.TemporaryDirectory() as folder:
            files: list[tuple[Path, str]] = []
            model = "" if artifact is None else self._model(artifact, files)
            inputs = [
                {
                    "name": name,
                    "dtype": array.dtype.name,
                    "shape": list(array.shape),
                    "file": self._array(array, Path(folder), files),
                }
                for name, array in feeds.items()
            ]
            try:
                self._push(files)
            except BaseException:
                self._put.clear()
                raise
        return model, inputs

    def _model(self, artifact: Artifact, files: list[tuple[Path, str]]) -> str:
        own, root = artifact.files, artifact.path.parent
        key = repr([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in own])
        if key not in self._put:
            folder = f"model{len(self._put)}"
            # Weights in other files are named by their place relative to the model.
            names = [f.relative_to(root) if f.is_relative_to(root) else f.name for f in own]
            files += [(f, f"{folder}/{name}") for f, name in zip(own, names, strict=True)]
            self._put[key] = f"{self.link.folder}/{folder}/{names[0]}"
        return self._put[key]

    def _array(
        self, array: npt.NDArray[np.generic], folder: Path, files: list[tuple[Path, str]]
    ) -> str:
        data = array.tobytes()
        key = hashlib.sha256(data).hexdigest()
        if key not in self._put:
            name = f"input{len(self._put)}"
            (folder / name).write_bytes(data)
            files.append((folder / name, name))
            self._put[key] = f"{self.link.folder}/{name}"
        return self._put[key]


def _told(done: Done) -> dict[str, Any] | None:
    line = next((each for each in done.out.splitlines() if each.startswith("{")), None)
    told: dict[str, Any] | None = None if line is None else json.loads(line)
    return told


def _compiler_cure(system: System) -> str:
    if system.android:
        return "install Android's NDK and set ANDROID_NDK_HOME to its folder"
    package = f"g++-{system.arch.replace('_', '-')}-linux-gnu"
    return f"install one here (Debian: {package}) or there (g++)"
