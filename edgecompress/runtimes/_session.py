"""Opening an onnxruntime session; shared by this process and the workers, so it imports little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["open_session", "INT8_ON_X86"]

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
