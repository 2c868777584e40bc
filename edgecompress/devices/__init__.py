"""Ways to reach hardware, one per file: this machine, others over ssh or adb, a browser, emulation.

An address such as ``ssh://pi@kitchen`` or ``adb:R58M`` names a device: what stands before the first
colon is the name of the member. A device starts *peers*: processes that have loaded one model each,
run it when asked, and tell times and memory. Models are compared by peers that take turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from edgecompress import members
from edgecompress.errors import TargetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.runtimes import Artifact
    from edgecompress.runtimes._client import Peer
    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = ["Device", "DeviceFacts", "device_names", "connect"]


@dataclass(frozen=True)
class DeviceFacts:
    """What a device tells of itself; None where it does not.

    Attributes:
        name: What people call it, e.g. ``Pixel 8``.
        cpu: Name of the processor.
        arch: ``x86_64``, ``aarch64``, ``wasm32``, or what the system calls it.
        isa: Names of instruction-set extensions, as Linux writes them.
        cores: Processors.
        ram_bytes: Main memory.
        os: Name and version of the system.
        clock_mhz: Clock of the fastest core at the moment.
        temperature_c: Of the hottest sensor, in degrees Celsius.
    """

    name: str
    cpu: str
    arch: str
    isa: frozenset[str] = frozenset()
    cores: int | None = None
    ram_bytes: int | None = None
    os: str = ""
    clock_mhz: float | None = None
    temperature_c: float | None = None


class Device(ABC):
    """A place where models run; a ``with`` block connects, and leaves nothing behind there.

    Attributes:
        scheme: Name of the member, and first part of its addresses.
        timed: Whether times taken there mean anything; emulation is for outputs only.
        here: Whether it runs on this machine's processors, so that their other load disturbs it.
        address: What the user wrote.
    """

    scheme: ClassVar[str]
    timed: ClassVar[bool] = True
    here: bool = False

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def __enter__(self) -> Self:
        """Connect.

        Raises:
            MeasurementError: The device cannot be reached, refuses us, or lacks something; says
                what, and what to do about it.
        """

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was put there, and disconnect. Raises nothing where the device is gone."""

    @abstractmethod
    def facts(self) -> DeviceFacts:
        """What it is, and how it is at the moment.

        Raises:
            MeasurementError: The connection was lost.
        """

    def warnings(self) -> list[str]:
        """What to know about times taken since it was connected, such as that it got hot."""
        return []

    @abstractmethod
    def start(
        self,
        artifact: Artifact,
        profile: TargetProfile,
        feeds: Arrays,
        *,
        where: str,
        trace: Path | None = None,
    ) -> Peer:
        """Load a model in a process of its own there.

        Args:
            artifact: Files that the profile's runtime loads.
            profile: The target: runtime, provider, options, threads.
            feeds: The inputs of all runs.
            where: The model, as errors name it.
            trace: Take times per operator, with files of this prefix (on this machine).

        Raises:
            MeasurementError: It cannot be loaded there, or the connection was lost.
        """


def device_names() -> list[str]:
    """Names of all kinds of devices, sorted."""
    return members.names("edgecompress.devices")


def connect(address: str) -> Device:
    """The device of an address; it is connected to in a ``with`` block.

    Raises:
        TargetError: There is no such kind of device, or the address is malformed.
    """
    scheme = address.partition(":")[0]
    cls = members.load(
        "edgecompress.devices",
        scheme,
        Device,  # type: ignore[type-abstract]
        lambda message: TargetError(
            message,
            where=f"device {address!r}",
            cure="write local, ssh://user@host[:port], adb:SERIAL, browser or arm64",
        ),
        attribute="scheme",
    )
    return cls(address)
