"""Devices that run the agent: a small native program that loads libonnxruntime.so.

The device needs no Python, and Python's memory is not in the figures. Any
:class:`edgecompress.devices._link.Link` carries the agent; its sources are in ``agent/``.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from edgecompress.devices import Device, DeviceFacts
from edgecompress.devices._agent_host import AgentHost
from edgecompress.devices._agent_peer import AgentPeer
from edgecompress.devices._facts import device_facts, drift, warnings
from edgecompress.devices._link import Link
from edgecompress.devices._survey import System
from edgecompress.errors import MeasurementError
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._client import Peer
from edgecompress.runtimes._remote import engine_options

if TYPE_CHECKING:
    from edgecompress.devices import Arrays
    from edgecompress.runtimes import Artifact
    from edgecompress.target import TargetProfile

__all__ = ["AddressedDevice", "AgentDevice", "AgentHost", "AgentPeer", "System"]


class AgentDevice(Device):
    """A device that is reached over a link and runs the agent."""

    @abstractmethod
    def link(self) -> Link:
        """A new link to the device, not yet connected."""

    def host(self, link: Link) -> AgentHost:
        """The agent on the connected link."""
        return AgentHost(link)

    def __enter__(self) -> Self:
        """See :meth:`Device.__enter__`."""
        with contextlib.ExitStack() as stack:
            self._host = self.host(stack.enter_context(self.link()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def facts(self) -> DeviceFacts:
        """See :meth:`Device.facts`."""
        return device_facts(self._host.facts())

    def warnings(self) -> list[str]:
        """See :meth:`Device.warnings`: a limited or fallen clock, heat, a low battery."""
        now, first = self._host.facts(), self._host.first_facts
        found = warnings(now)
        if first is not None:
            found += drift(device_facts(first), device_facts(now))
        return found

    def start(
        self,
        artifact: Artifact,
        profile: TargetProfile,
        feeds: Arrays,
        *,
        where: str,
        trace: Path | None = None,
    ) -> Peer:
        """See :meth:`Device.start`."""
        _check_runtime(profile, self.address)
        return self._host.start(
            artifact,
            feeds,
            engine_options(profile),
            where=where,
            timeout_seconds=profile.measurement.timeout_seconds,
            trace=trace,
        )


class AddressedDevice(AgentDevice):
    """A device whose link is made of nothing but its address.

    Attributes:
        link_type: The link; it refuses malformed addresses.
    """

    link_type: ClassVar[type[Link]]

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.link_type(address)

    def link(self) -> Link:
        """See :meth:`AgentDevice.link`."""
        return self.link_type(self.address)


def _check_runtime(profile: TargetProfile, address: str) -> None:
    from edgecompress.runtimes._session import OnnxRuntimeEngine

    module, _, name = runtime_class(profile.runtime).engine.partition(":")
    if not issubclass(getattr(importlib.import_module(module), name), OnnxRuntimeEngine):
        raise MeasurementError(
            f"devices over {address.partition(':')[0]} run onnxruntime, not {profile.runtime}",
            where=f"target {profile.name}",
            cure="measure this target on this machine, or take one whose runtime is onnxruntime",
        )
