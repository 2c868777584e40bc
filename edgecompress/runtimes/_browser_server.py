"""A small web server: the page that runs models, what it loads, and the requests that it asks for.

No browser driver is needed: the page fetches its next request, waiting until there is one, and
posts the answer. So it works the same in a browser here and on a phone. All addresses start with a
random word, so that nobody else on the network finds them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import secrets
import shutil
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecompress.errors import MeasurementError
from edgecompress.runtimes._faults import RuntimeCrashError, no_answer

__all__ = ["Channel", "PageServer"]

_PAGE = Path(__file__).resolve().parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
_POLL_S = 20.0
_UNSEEN_S = 60.0


class Channel:
    """Requests to one page and its answers.

    Attributes:
        outputs: What the page posted last, by place.
        seen: Set once the page has asked for a request.
        closed: Whether the page shall stop asking.
        lost: Why the page is gone; None while it is not known to be.
    """

    def __init__(self) -> None:
        self.outputs: dict[int, bytes] = {}
        self.seen = threading.Event()
        self.closed = False
        self.lost: str | None = None
        self._numbers = itertools.count(1)
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._taken = threading.Event()
        self._crashed = False

    def tell(self, request: dict[str, Any]) -> int:
        """Send a request without waiting for the answer; its number."""
        number = next(self._numbers)
        self._requests.put({**request, "number": number})
        return number

    def ask(self, request: dict[str, Any], timeout_seconds: float, where: str) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            MeasurementError: The page is gone, or did not answer in time.
        """
        ends = time.monotonic() + timeout_seconds
        self._taken.clear()
        number = self.tell(request)
        if self.lost is None and not self._taken.wait(min(_UNSEEN_S, timeout_seconds)):
            self.lost = "the page does not ask what to do"
        while self.lost is None:
            try:
                found, answer = self._answers.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                raise no_answer(request["do"], timeout_seconds, where) from None
            if found == number:
                return answer
        what = f"{self.lost} ({request['do']})"
        if self._crashed:
            raise RuntimeCrashError(what, where=where)
        raise MeasurementError(
            what,
            where=where,
            cure="the browser may have run out of memory, or the page was closed: keep it open and "
            "the screen on, or take a smaller model or batch",
        )

    def lose(self, reason: str, crashed: bool = False) -> None:
        """End the wait of whoever asks: the page is gone.

        Args:
            reason: Why.
            crashed: Whether it brought that upon itself.
        """
        self.lost, self._crashed = reason, crashed
        self._taken.set()
        self._answers.put((0, {}))

    def next(self) -> dict[str, Any] | None:
        """The next request for the page; None where there was none for a while."""
        self.seen.set()
        try:
            request = self._requests.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        self._taken.set()
        return request or None

    def answer(self, number: int, answer: dict[str, Any]) -> None:
        """What the page answered to a request."""
        self._answers.put((number, answer))

    def close(self) -> None:
        """Let the page stop asking."""
        self.closed = True
        self._requests.put({})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A request that waits for work must not hold up the end.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that goes away in the middle of an answer is nothing to print."""


class PageServer:
    """Serves the page, onnxruntime-web, files and requests; a ``with`` block starts and ends it.

    Args:
        dist: The ``dist`` folder of the npm package onnxruntime-web.
        host: Address to listen on; the default is seen by nobody but this machine.
        port: Port, or 0 for any free one.

    Attributes:
        port: The port.
        channels: By the name of the page.
    """

    def __init__(self, dist: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self._folders = {"page": _PAGE, "ort": dist}
        self._files: dict[str, Path | bytes] = {}
        self._numbers = itertools.count()
        self._word = secrets.token_urlsafe(12)
        self.channels: dict[str, Channel] = {}
        try:
            self._http = _Server((host, port), partial(_Handler, self))
        except OSError as error:
            raise MeasurementError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                where="browser",
                cure="name another address or port, such as browser:0.0.0.0:8080",
            ) from error
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(
            target=partial(self._http.serve_forever, poll_interval=0.05), daemon=True
        )

    def url(self, host: str = "127.0.0.1") -> str:
        """Address of the page; ``?peer=NAME`` behind it gives the page a name."""
        return f"http://{host}:{self.port}/{self._word}/"

    def offer(self, content: Path | bytes) -> str:
        """Serve a file or bytes; the address, relative to the page's."""
        key = f"files/{next(self._numbers)}"
        self._files[key] = content
        return key

    def withdraw(self, address: str) -> None:
        """Serve that no longer."""
        self._files.pop(address, None)

    def channel(self, name: str) -> Channel:
        """The channel of the page of that name; made where there is none yet."""
        return self.channels.setdefault(name, Channel())

    def found(self, path: str) -> Path | bytes | None:
        """What lies at a path below the random word."""
        folder, _, name = path.partition("/")
        if path == "":
            return _PAGE / "index.html"
        if folder in self._folders and name == Path(name).name:
            file = self._folders[folder] / name
            return file if file.is_file() else None
        return self._files.get(path)

    def below_word(self, path: str) -> str | None:
        """The path without the random word and the query; None where the word is wrong."""
        first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        return rest if secrets.compare_digest(first.encode(), self._word.encode()) else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for channel in self.channels.values():
            channel.close()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request of the page."""

    protocol_version = "HTTP/1.1"

    def __init__(self, site: PageServer, *rest: Any) -> None:
        self._site = site
        super().__init__(*rest)

    def do_GET(self) -> None:
        """A file, or the next request of a channel."""
        path = self._site.below_word(self.path)
        if path is not None and path.startswith("next/"):
            self._next(path.removeprefix("next/"))
            return
        content = None if path is None else self._site.found(path)
        if content is None:
            self._send(404)
        elif isinstance(content, bytes):
            self._send(200, content)
        else:
            self._send_file(content)

    def do_POST(self) -> None:
        """An answer, or one output."""
        path = self._site.below_word(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        verb, _, rest = (path or "").partition("/")
        name, _, place = rest.partition("/")
        channel = self._site.channels.get(name)
        if channel is None:
            self._send(404)
            return
        if verb == "answer":
            channel.answer(int(place), json.loads(body))
        elif verb == "output":
            channel.outputs[int(place)] = body
        self._send(204)

    def _next(self, name: str) -> None:
        channel = self._site.channels.get(name)
        if channel is None or channel.closed:
            self._send(410)
            return
        request = channel.next()
        if request is None:
            self._send(410 if channel.closed else 204)
        else:
            self._send(200, json.dumps(request).encode())

    def _send(self, status: int, body: bytes = b"", kind: str = "application/octet-stream") -> None:
        self._head(status, len(body), kind)
        self.wfile.write(body)

    def _send_file(self, file: Path) -> None:
        kind = _TYPES.get(file.suffix, "application/octet-stream")
        with file.open("rb") as stream:
            self._head(200, file.stat().st_size, kind)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def _head(self, status: int, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        # Both together let the page have threads, and a clock of 5 us instead of 100 us.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by http.server
        """Nothing: requests are no news."""
