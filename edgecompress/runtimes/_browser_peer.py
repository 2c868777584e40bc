"""One model in one page of a browser, with what the page and the kernel tell of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._browser_server import Channel, PageServer
from edgecompress.runtimes._browser_tab import OwnTab
from edgecompress.runtimes._faults import RuntimeCrashError, refusal, short
from edgecompress.runtimes._peer import Peer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["BrowserPeer"]

_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_TYPES = frozenset({"bool", "float16", "float32", "float64", *_INTEGERS})


class BrowserPeer(Peer):
    """A model in a page.

    A browser tells no processor time. In a tab of this machine it is that of the page's thread,
    divided by the runs; elsewhere it is not a number.

    Args:
        server: Where the page came from.
        channel: The page's.
        where: The model, as errors name it.
        timeout_seconds: Longest wait for one answer.
        close: Closes the page.
        tab: What the kernel tells of it, or None.
        trace: Prefix of the file for times per operator, or None.
    """

    def __init__(
        self,
        server: PageServer,
        channel: Channel,
        *,
        where: str,
        timeout_seconds: float,
        close: Callable[[], None],
        tab: OwnTab | None,
        trace: Path | None,
    ) -> None:
        self.where = where
        self.loaded = {}
        self._server, self._channel, self._close, self._tab = server, channel, close, tab
        self._timeout_s = timeout_seconds
        self._trace = trace

    def start(self, threads: int, nothing: bytes) -> None:
        """Load onnxruntime-web.

        Args:
            threads: Threads inside an operator.
            nothing: A model that does nothing.
        """
        found = self._ask("start", threads=threads, model=self._server.offer(nothing))
        if threads > 1 and not found["isolated"]:
            raise MeasurementError(
                f"the page may have one thread only, and the target wants {threads}: browsers "
                "allow threads to pages from https or from their own machine only",
                where=self.where,
                cure="set threads = 1 in the target's [measurement] table",
            )
        self.loaded = {"version": found["version"], "cpus": [], "clock_ms": found["clock_ms"]}
        if self._tab is not None:
            self._tab.find(lambda: self._ask("work"))
            self.loaded["cpus"] = self._tab.pin(threads)

    def feed(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Hand over inputs; the next runs take them."""
        import numpy as np

        inputs: list[dict[str, Any]] = []
        for name, array in feeds.items():
            if array.dtype.name not in _TYPES:
                raise MeasurementError(
                    f"onnxruntime-web takes no {array.dtype.name} (input {name!r})",
                    where=self.where,
                    cure="export the model with an input of another type",
                )
            url = self._server.offer(np.ascontiguousarray(array).tobytes())
            inputs.append(
                {"name": name, "type": array.dtype.name, "dims": list(array.shape), "url": url}
            )
        self._ask("feed", inputs=inputs)
        for each in inputs:
            self._server.withdraw(each["url"])

    def load(self, artifact: Artifact, provider: str, options: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            artifact: Its files.
            provider: ``wasm``.
            options: Session options in onnxruntime-web's words; those with a dot in their names are
                configuration entries, such as ``session.disable_prepacking``.
        """
        served = [self._server.offer(file) for file in artifact.files]
        folder = artifact.path.parent
        external = [
            {"path": os.path.relpath(file, folder), "url": url}
            for file, url in zip(artifact.files[1:], served[1:], strict=True)
        ]
        given: dict[str, Any] = {k: v for k, v in options.items() if "." not in k}
        given["extra"] = {k: str(v) for k, v in options.items() if "." in k}
        if self._trace is not None:
            given["enableProfiling"] = True
        if self._tab is not None:
            self._tab.forget_peak()
        before = {} if self._tab is None else self._tab.memory_mb()
        self.loaded |= self._ask(
            "load", model=served[0], external=external, provider=provider, options=given
        )
        self.loaded |= {"providers": [provider], "runner_mb": before.get("peak_mb")}
        for url in served:
            self._server.withdraw(url)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """See :meth:`Peer.ask`."""
        if do == "run":
            return self._run(**arguments)
        answer = self._ask(do, **arguments)
        if do == "memory":
            figures = {} if self._tab is None else self._tab.memory_mb()
            answer |= {"peak_mb": None, "basis": "vmhwm" if figures else None, **figures}
            answer["cpu_s"] = 0.0 if self._tab is None else self._tab.share_of_cpu_s()
        elif do == "end_profiling" and self._trace is not None:
            file = self._trace.with_name(f"{self._trace.name}_browser.json")
            file.write_text("\n".join(answer["lines"]), encoding="utf-8")
            return {"profile": str(file)}
        return answer

    def _run(self, count: int, warm: bool = True) -> dict[str, Any]:
        before = math.nan if self._tab is None else self._tab.cpu_s()
        answer = self._ask("run", count=count, warm=warm)
        spent_s = math.nan if self._tab is None else self._tab.cpu_s() - before
        wall_ms = answer["wall_ms"]
        answer["cpu_ms"] = [1000 * spent_s / answer["runs"]] * len(wall_ms)
        return answer

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer = self._channel.ask({"do": do, **arguments}, self._timeout_s, self.where)
        if self._tab is not None:
            self._tab.memory_mb()
        if "error" in answer:
            if answer["kind"] == "RuntimeError":  # a trap of WebAssembly, as a bad address
                raise RuntimeCrashError(
                    f"onnxruntime-web crashed ({do}): {short(answer['error'])}", where=self.where
                )
            words = _words(answer["error"])
            raise refusal("onnxruntime-web", do, words, answer["kind"], self.where)
        return answer

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """See :meth:`Peer.outputs`."""
        import numpy as np

        found = self._ask("outputs")["outputs"]
        return {
            each["name"]: np.frombuffer(
                self._channel.outputs.pop(place), dtype=np.dtype(each["type"])
            ).reshape(each["dims"])
            for place, each in enumerate(found)
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        self._close()


def _words(error: str) -> str:
    """What went wrong; exceptions of C++ that nobody caught arrive as bare addresses."""
    if error.strip().isdigit():
        return "an exception without words, most often because it ran out of memory"
    return " ".join(error.split())
