"""onnxruntime-web: onnxruntime compiled to WebAssembly, in a browser.

It is loaded in a headless Chromium here, or in the browser of a phone that opens a printed address;
see :mod:`edgecompress.devices.browser`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import (
    Artifact,
    FusionCoverage,
    Placement,
    Runtime,
    Session,
    Unsupported,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.model import Model
    from edgecompress.runtimes._browser_peer import BrowserPeer
    from edgecompress.target import TargetProfile

__all__ = ["OnnxRuntimeWeb", "BrowserSession"]

# 65536 pages of 64 KiB, all that a 32-bit address reaches: model, activations and the runtime.
_WASM_BYTES = 1 << 32


class BrowserSession(Session):
    """A model in a page of a headless Chromium; for outputs, not for latency."""

    def __init__(self, artifact: Artifact, profile: TargetProfile) -> None:
        self._artifact, self._profile = artifact, profile
        self._peer: BrowserPeer | None = None
        self._end: Callable[[], object] = lambda: None

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name; see :meth:`Session.run`. The first run starts the browser."""
        if self._peer is None:
            self._peer = self._start(feeds)
        else:
            self._peer.feed(feeds)
        return self._peer.outputs()

    def _start(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> BrowserPeer:
        from edgecompress.runtimes._browser import HeadlessBrowser

        browser = HeadlessBrowser().__enter__()
        # Also where nobody closes the session, and before the threads that Chromium is spoken to
        # with stop at the end of the program.
        self._end = weakref.finalize(self, browser.__exit__, None, None, None)
        try:
            return browser.start(
                self._artifact, self._profile, feeds, where=str(self._artifact.path)
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the browser."""
        self._peer = None
        self._end()


class OnnxRuntimeWeb(Runtime):
    """onnxruntime-web with its WebAssembly kernels, which are those of onnxruntime's CPU provider.

    It has no engine that a worker process could load: models run in the pages of a browser.
    """

    name: ClassVar[str] = "onnxruntime_web"
    engine: ClassVar[str] = ""
    install: ClassVar[str] = "npm install onnxruntime-web"

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether a browser and onnxruntime-web are installed here."""
        from edgecompress.runtimes._browser import ort_web_folder
        from edgecompress.runtimes._browser_chromium import find_chromium

        if ort_web_folder() is None:
            return False, (
                "onnxruntime-web is not in node_modules of this folder or one above it; "
                f"{self.install} brings it, or EDGECOMPRESS_ORT_WEB names its folder"
            )
        if find_chromium() is None:
            return False, (
                "no browser is installed here; apt-get install chromium brings one, or "
                "EDGECOMPRESS_CHROMIUM names one"
            )
        return True, "headless Chromium on this machine"

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that onnxruntime's CPU kernels, from which onnxruntime-web is built, do not take.

        That is an estimate: the kernels are looked up in the onnxruntime that is installed here,
        which may be another version. Loading the model in the browser is the last word.
        """
        from edgecompress.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime().unsupported(model, profile)

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.onnx``, and its data file where it is too large for one file.

        Raises:
            MeasurementError: It is larger than a page's whole memory.
        """
        if model.weight_bytes >= _WASM_BYTES:
            raise MeasurementError(
                f"its weights take {model.weight_bytes / 1e9:.1f} GB, and WebAssembly holds "
                f"{_WASM_BYTES / 1e9:.1f} GB in all",
                where=str(model.path or "the model"),
                cure="quantize its weights, or choose another target",
            )
        return Artifact(tuple(model.save(folder / "model.onnx")))

    def session(self, artifact: Artifact, profile: TargetProfile) -> Session:
        """The file in a headless browser; where there is none, onnxruntime's CPU provider.

        That one computes the same from Q/DQ graphs, and in float within rounding.
        """
        if self.present(profile)[0]:
            return BrowserSession(artifact, profile)
        from edgecompress.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime().session(artifact, profile)

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage | None:
        """As of onnxruntime's CPU provider, whose graph optimizations onnxruntime-web shares."""
        from edgecompress.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime().coverage(model, claimed, profile)

    def placement(self, model: Model, profile: TargetProfile) -> Placement | None:
        """As of onnxruntime's CPU provider; it has no accelerator."""
        from edgecompress.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime().placement(model, profile)
