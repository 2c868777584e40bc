"""onnxruntime in a process: shared by this one and the workers, so it imports little."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.runtimes import Engine

if TYPE_CHECKING:
    import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["open_session", "OnnxRuntimeEngine", "INT8_ON_X86"]

INT8_ON_X86 = {"session.qdqisint8allowed": "1"}
"""Makes onnxruntime on x86 fuse signed activations as it does on ARM, with the same numbers. The
kernels are slow there, so it is for outputs and for fusion, never for latency."""

_ERRORS_ONLY = 3


def open_session(
    source: Path,
    *,
    provider: str,
    threads: int,
    config: Mapping[str, str] | None = None,
    layout: bool = True,
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` with all graph optimizations.

    Args:
        source: The model file.
        provider: Execution provider; the CPU provider stands behind it.
        threads: Threads inside an operator.
        config: More session configuration entries.
        layout: Allow changes of memory layout, which rename nodes and add transposes.
        optimized: Write the optimized graph there.
        profile: Prefix of the file that the profiler writes.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if layout else level.ORT_ENABLE_EXTENDED
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    fallback = "CPUExecutionProvider"
    providers = [provider] if provider == fallback else [provider, fallback]
    return ort.InferenceSession(os.fspath(source), options, providers=providers)


class OnnxRuntimeEngine(Engine):
    """onnxruntime with one execution provider, and the CPU provider behind it."""

    def __init__(self) -> None:
        self.session: Any = None
        self.names: list[str] = []

    def start(self) -> str:
        """Import onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open a session; ``config`` in the options holds session configuration entries."""
        trace = options.get("trace")
        self.session = open_session(
            Path(path),
            provider=options["provider"],
            threads=options["threads"],
            config=options.get("config"),
            profile=None if trace is None else Path(trace),
        )
        self.names = [output.name for output in self.session.get_outputs()]
        return {"providers": self.session.get_providers()}

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run with inputs from numpy, as most applications do it."""
        run = self.session.run
        return lambda: run(None, feeds)

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name."""
        return dict(zip(self.names, value, strict=True))

    def end_profiling(self) -> Mapping[str, Any]:
        """The file that onnxruntime's profiler wrote."""
        return {"profile": self.session.end_profiling()}
