"""Models in the pages of a browser: a headless one here, or the one of a visitor.

Both hold one model per page: here each page is a tab with a renderer process of its own, whose
processor time and memory the kernel tells; a visitor's page keeps each model in a frame of its own.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._browser_chromium import Chromium, Tab
from edgecompress.runtimes._browser_peer import BrowserPeer
from edgecompress.runtimes._browser_server import Channel, PageServer
from edgecompress.runtimes._browser_tab import OwnTab

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.target import TargetProfile

__all__ = ["Browser", "HeadlessBrowser", "VisitingBrowser", "ort_web_folder", "needed_ort_web"]

INSTALL = "npm install onnxruntime-web"
_ENTRY = "ort.wasm.min.mjs"
_START_S = 60.0


def ort_web_folder() -> Path | None:
    """The ``dist`` folder of onnxruntime-web, or None where it is not installed.

    ``EDGECOMPRESS_ORT_WEB`` names the npm package; otherwise it is looked for in ``node_modules``
    of the current folder and those above it, as Node.js does.
    """
    named = os.environ.get("EDGECOMPRESS_ORT_WEB")
    here = Path.cwd()
    packages = (
        [Path(named)]
        if named
        else [each / "node_modules" / "onnxruntime-web" for each in (here, *here.parents)]
    )
    places = (place for package in packages for place in (package / "dist", package))
    return next((place for place in places if (place / _ENTRY).is_file()), None)


def needed_ort_web() -> Path:
    """The same, where one cannot go on without it.

    Raises:
        MeasurementError: It is not installed.
    """
    folder = ort_web_folder()
    if folder is None:
        named = os.environ.get("EDGECOMPRESS_ORT_WEB")
        raise MeasurementError(
            f"there is no dist/{_ENTRY} in {named}, which EDGECOMPRESS_ORT_WEB names"
            if named
            else "onnxruntime-web is not installed in node_modules of this folder or one above it",
            where="browser",
            cure=f"{INSTALL}, or set EDGECOMPRESS_ORT_WEB to the folder of the package",
        )
    return folder


class Browser(ABC):
    """A browser that models are loaded in; a ``with`` block starts and ends it."""

    def __init__(self, server: PageServer) -> None:
        self._server = server
        self._stack = ExitStack()
        self._numbers = itertools.count(1)

    @abstractmethod
    def _open(self, name: str, channel: Channel, timeout_seconds: float) -> OwnTab | None:
        """Open the page of that name."""

    @abstractmethod
    def _close(self, name: str) -> None:
        """Close the page of that name; nothing where it is gone."""

    @abstractmethod
    def page_facts(self) -> dict[str, Any]:
        """``agent``, ``cores`` and ``memory_gb`` as the browser tells them."""

    def start(
        self,
        artifact: Artifact,
        profile: TargetProfile,
        feeds: Mapping[str, npt.NDArray[np.generic]],
        *,
        where: str,
        trace: Path | None = None,
    ) -> BrowserPeer:
        """Load a model in a page of its own.

        Raises:
            MeasurementError: onnxruntime-web refuses it, or the page died.
        """
        settings = profile.measurement
        name = str(next(self._numbers))
        channel = self._server.channel(name)
        tab = self._open(name, channel, _START_S)
        peer = BrowserPeer(
            self._server,
            channel,
            where=where,
            timeout_seconds=settings.timeout_seconds,
            close=lambda: self._close(name),
            tab=tab,
            trace=trace,
        )
        try:
            peer.start(settings.threads, _nothing())
            peer.feed(feeds)
            peer.load(artifact, profile.provider, profile.options)
        except BaseException:
            peer.__exit__(None, None, None)
            raise
        return peer

    def __enter__(self) -> Self:
        self._stack.enter_context(self._server)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class HeadlessBrowser(Browser):
    """Chromium on this machine, in the background.

    Args:
        throttle: How many times slower than this machine pages run.
    """

    def __init__(self, throttle: float = 1.0) -> None:
        super().__init__(PageServer(needed_ort_web()))
        self._throttle = throttle
        self._tabs: dict[str, Tab] = {}
        self._facts: dict[str, Any] = {}
        self.chromium = Chromium()

    def __enter__(self) -> Self:
        """Start Chromium.

        Raises:
            MeasurementError: There is none, or it does not start.
        """
        super().__enter__()
        try:
            self._stack.enter_context(self.chromium)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self, name: str, channel: Channel, timeout_seconds: float) -> OwnTab:
        url = f"{self._server.url()}?peer={name}"
        self._tabs[name] = tab = self.chromium.open(url, channel.lose)
        try:
            self._facts = channel.ask({"do": "facts"}, timeout_seconds, "browser")
            if self._throttle > 1:
                tab.throttle(self._throttle)
        except BaseException:
            self._close(name)
            raise
        return OwnTab(self.chromium, lambda: len(self._tabs))

    def _close(self, name: str) -> None:
        if (tab := self._tabs.pop(name, None)) is not None:
            tab.close()

    def page_facts(self) -> dict[str, Any]:
        """What a page of Chromium says of itself."""
        if not self._facts:
            name = str(next(self._numbers))
            self._open(name, self._server.channel(name), _START_S)
            self._close(name)
        return self._facts


class VisitingBrowser(Browser):
    """The browser of whoever opens the printed address, such as a phone's.

    Args:
        host: Address to listen on; ``0.0.0.0`` is seen by the whole network.
        port: Port, or 0 for any free one.
        patience_seconds: Longest wait for the visitor.
    """

    def __init__(self, host: str, port: int, patience_seconds: float) -> None:
        super().__init__(PageServer(needed_ort_web(), host, port))
        self._host, self._patience_s = host, patience_seconds
        self._visitor = self._server.channel("visitor")
        self._facts: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """The address to open."""
        return self._server.url(_own_address() if self._host in ("", "0.0.0.0") else self._host)

    def __enter__(self) -> Self:
        """Print the address, with a QR code where ``segno`` is installed, and wait for a visitor.

        Raises:
            MeasurementError: None came.
        """
        super().__enter__()
        print(f"Open this page on the device to measure:\n{self.url}", file=sys.stderr, flush=True)
        _print_qr_code(self.url)
        try:
            self._wait()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _wait(self) -> None:
        ends = time.monotonic() + self._patience_s
        while not self._visitor.seen.wait(min(0.5, self._patience_s)):
            if time.monotonic() > ends:
                raise MeasurementError(
                    f"nobody opened {self.url} within {self._patience_s:g} s",
                    where="browser",
                    cure="open it on a device of the same network; a firewall on this machine "
                    "must let the port through",
                )
        self._facts = self._visitor.ask({"do": "facts"}, _START_S, "browser")

    def _open(self, name: str, channel: Channel, timeout_seconds: float) -> None:
        self._visitor.ask({"do": "open", "id": name}, timeout_seconds, "browser")

    def _close(self, name: str) -> None:
        if not self._visitor.lost:
            self._visitor.tell({"do": "close", "id": name})

    def page_facts(self) -> dict[str, Any]:
        """What the visitor's browser says of itself."""
        return self._facts


def _own_address() -> str:
    """Address of this machine in its network. Nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address kept for documentation, RFC 5737
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _print_qr_code(url: str) -> None:
    try:
        import segno
    except ImportError:
        return
    segno.make(url).terminal(out=sys.stderr, compact=True)


@cache
def _nothing() -> bytes:
    """A model that does nothing."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "nothing", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
