"""Where tests find a browser and onnxruntime-web."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from edgecompress import target
from edgecompress.runtimes._browser import ort_web_folder
from edgecompress.runtimes._browser_chromium import find_chromium
from edgecompress.target import TargetProfile

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecompress" / "web"


def need_browser() -> None:
    """Skip where there is none; see to it that onnxruntime-web is found."""
    cached = CACHE / "node_modules" / "onnxruntime-web"
    if ort_web_folder() is None and cached.is_dir():
        os.environ["EDGECOMPRESS_ORT_WEB"] = str(cached)
    if ort_web_folder() is None:
        pytest.skip(f"no onnxruntime-web: npm install --prefix {CACHE} onnxruntime-web brings it")
    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium brings it")


def web_profile(**measurement: float) -> TargetProfile:
    """The target web-wasm, measured in a few runs in a headless browser."""
    profile = target.load("web-wasm")
    quick = {"runs": 6, "warmup": 1, "blocks": 3, "seconds": 0.3, "timeout_seconds": 60.0}
    settings = profile.measurement.model_copy(update={**quick, **measurement})
    return profile.model_copy(
        update={"runtime": "onnxruntime_web", "provider": "wasm", "measurement": settings}
    )


def browser_processes() -> list[psutil.Process]:
    """Descendants of this process that belong to a browser."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("chrom" in word for word in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found
