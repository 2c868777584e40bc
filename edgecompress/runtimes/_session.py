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

__all__ = [
    "open_session",
    "session_options",
    "split_options",
    "assignment",
    "OnnxRuntimeEngine",
    "INT8_ON_X86",
    "RECORD_ASSIGNMENT",
    "CPU",
]

CPU = "CPUExecutionProvider"

INT8_ON_X86 = {"session.qdqisint8allowed": "1"}
"""Makes onnxruntime on x86 fuse signed activations as it does on ARM, with the same numbers. The
kernels are slow there, so it is for outputs and for fusion, never for latency."""

RECORD_ASSIGNMENT = {"session.record_ep_graph_assignment_info": "1"}
"""Lets :func:`assignment` tell which provider took which nodes."""

_ERRORS_ONLY = 3
# What an engine is told besides the target's own options.
_OURS = frozenset({"provider", "threads", "trace", "config"})


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """A target's options as session configuration entries and provider options.

    Keys with a dot, such as ``session.disable_cpu_ep_fallback`` or ``ep.context_enable``, are
    entries of the session; all others go to the provider.
    """
    config: dict[str, str] = {}
    provider: dict[str, str] = {}
    for key, value in options.items():
        if key in _OURS:
            continue
        text = str(int(value)) if isinstance(value, bool) else str(value)
        (config if "." in key else provider)[key] = text
    return config, provider


def session_options(
    *,
    threads: int,
    config: Mapping[str, str] | None = None,
    layout: bool = True,
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """An ``onnxruntime.SessionOptions``; the arguments are those of :func:`open_session`."""
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
    return options


def open_session(
    source: Path,
    *,
    provider: str,
    threads: int,
    provider_options: Mapping[str, str] | None = None,
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
        provider_options: In the provider's own words, e.g. ``{"device_id": "0"}``.
        config: More session configuration entries.
        layout: Allow changes of memory layout, which rename nodes and add transposes.
        optimized: Write the optimized graph there.
        profile: Prefix of the file that the profiler writes.
    """
    import onnxruntime as ort

    options = session_options(
        threads=threads, config=config, layout=layout, optimized=optimized, profile=profile
    )
    providers = [(provider, dict(provider_options or {}))]
    if provider != CPU and (config or {}).get("session.disable_cpu_ep_fallback") != "1":
        providers.append((CPU, {}))
    # Else it would try again on the CPU alone, and hide why the provider failed.
    return ort.InferenceSession(os.fspath(source), options, providers=providers, enable_fallback=0)


def assignment(session: Any) -> dict[str, tuple[str, int]]:
    """Provider of each node, by the node's name, and the number of the piece that it lies in.

    A provider that compiles takes pieces of several nodes; others take each node alone. The session
    must have been opened with :data:`RECORD_ASSIGNMENT`. Nodes are those that the optimizer had
    left before the providers were asked. Empty where this onnxruntime cannot tell (before 1.24).
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    return {
        node.name: (piece.ep_name, number)
        for number, piece in enumerate(session.get_provider_graph_assignment_info())
        for node in piece.get_nodes()
    }


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
        """Open a session.

        ``config`` in the options holds more session configuration entries; see
        :func:`split_options` for those of the target.
        """
        config, provider_options = split_options(options)
        self.session = self.open(
            path, options, {**config, **(options.get("config") or {})}, provider_options
        )
        self.names = [output.name for output in self.session.get_outputs()]
        return {"providers": self.session.get_providers()}

    def open(
        self,
        path: str,
        options: Mapping[str, Any],
        config: Mapping[str, str],
        provider_options: Mapping[str, str],
    ) -> Any:
        """The session that :meth:`load` keeps."""
        trace = options.get("trace")
        return open_session(
            Path(path),
            provider=options["provider"],
            threads=options["threads"],
            provider_options=provider_options,
            config=config,
            profile=None if trace is None else Path(trace),
        )

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
