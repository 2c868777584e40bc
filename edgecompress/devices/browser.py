"""A web browser: a headless Chromium here, or that of a phone that opens a printed address.

Addresses:

- ``browser``: Chromium here, found by ``EDGECOMPRESS_CHROMIUM`` or on the path;
- ``browser:throttle=4``: the same, slowed down four times: a stand-in for a phone, and named so;
- ``browser:serve``: any browser that opens the printed address, on any free port;
- ``browser:HOST:PORT``: the same, listening there, e.g. ``browser:0.0.0.0:8080``.

The page served is open to whoever has its address, which holds a random word; only the first two
listen on this machine alone.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from edgecompress.devices import Device, DeviceFacts
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.runtimes._browser import Browser as Pages
from edgecompress.runtimes._browser import HeadlessBrowser, VisitingBrowser

if TYPE_CHECKING:
    from edgecompress.devices import Arrays
    from edgecompress.runtimes import Artifact
    from edgecompress.runtimes._client import Peer
    from edgecompress.target import TargetProfile

__all__ = ["Browser"]

_RUNTIME = "onnxruntime_web"
_PROVIDER = "wasm"
_CURE = "write browser, browser:throttle=4, browser:serve or browser:0.0.0.0:8080"


class Browser(Device):
    """A browser; each model is loaded in a page of its own.

    Attributes:
        patience_seconds: Longest wait for somebody to open the printed address.
    """

    scheme: ClassVar[str] = "browser"
    patience_seconds: ClassVar[float] = 300.0

    def __init__(self, address: str) -> None:
        super().__init__(address)
        meant = _parse(address)
        self._throttle = meant if isinstance(meant, float) else 1.0
        self._serve = None if isinstance(meant, float) else meant
        self.here = self._serve is None

    def __enter__(self) -> Self:
        """Start Chromium, or print the address and wait for a visitor."""
        if self._serve is None:
            self._pages: Pages = HeadlessBrowser(self._throttle)
        else:
            self._pages = VisitingBrowser(*self._serve, self.patience_seconds)
        self._pages.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pages.__exit__(kind, error, trace)

    def facts(self) -> DeviceFacts:
        """What the browser tells; of Chromium here also the machine that it runs on."""
        page = self._pages.page_facts()
        if self._serve is not None:
            gigabytes = page["memory_gb"]  # browsers round it, and say at most 8 or 32
            return DeviceFacts(
                name="the visitor's browser",
                cpu="not told by the browser",
                arch="wasm32",
                cores=page["cores"],
                ram_bytes=None if gigabytes is None else int(gigabytes * 2**30),
                os=page["agent"],
            )
        from edgecompress.machine.host import host

        here = host()
        slowed = "" if self._throttle == 1 else f", slowed down {self._throttle:g} times"
        proxy = " as a stand-in for a phone" if slowed else ""
        return DeviceFacts(
            name=f"headless {self._version()} on this machine{slowed}{proxy}",
            cpu=here.cpu,
            arch="wasm32",
            cores=page["cores"],
            ram_bytes=here.ram_bytes,
            os=here.os,
        )

    def _version(self) -> str:
        assert isinstance(self._pages, HeadlessBrowser)
        return self._pages.chromium.version

    def start(
        self,
        artifact: Artifact,
        profile: TargetProfile,
        feeds: Arrays,
        *,
        where: str,
        trace: Path | None = None,
    ) -> Peer:
        """A page with the model loaded; see :meth:`Device.start`."""
        if profile.runtime != _RUNTIME or profile.provider != _PROVIDER:
            raise MeasurementError(
                f"a browser runs {_RUNTIME} with the provider {_PROVIDER}, not {profile.runtime} "
                f"with {profile.provider}",
                where=where,
                cure="name a target for browsers, such as web-wasm, or another device",
            )
        return self._pages.start(artifact, profile, feeds, where=where, trace=trace)


def _parse(address: str) -> float | tuple[str, int]:
    """How many times slower pages run here, or where to listen for visitors."""
    _, _, rest = address.partition(":")
    if rest in ("", "serve"):
        return ("0.0.0.0", 0) if rest else 1.0
    key, _, value = rest.partition("=")
    host, _, port = rest.rpartition(":")
    try:
        if key == "throttle":
            rate = float(value)
            if 1 <= rate <= 100:
                return rate
        elif host and 0 <= int(port) <= 65535:
            return host, int(port)
    except ValueError:
        pass
    raise TargetError(
        f"expected an address of a browser, with a rate from 1 to 100 or a port, got {address!r}",
        where=f"device {address!r}",
        cure=_CURE,
    )
