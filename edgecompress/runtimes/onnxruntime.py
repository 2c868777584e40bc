"""onnxruntime: which operators it has kernels for, how it optimizes a graph, how it runs it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.errors import MeasurementError
from edgecompress.files import ScratchFolder
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.runtimes import (
    Artifact,
    FusionCoverage,
    Placement,
    Runtime,
    RuntimeNode,
    Session,
    Unsupported,
    python_of,
)
from edgecompress.runtimes._fusion import OptimizedGraph, judge, read_optimized, tag_nodes
from edgecompress.runtimes._placement import Said, place
from edgecompress.runtimes._session import (
    CPU,
    INT8_ON_X86,
    RECORD_ASSIGNMENT,
    assignment,
    open_session,
    split_options,
)
from edgecompress.target import machine_arch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.target import TargetProfile

__all__ = ["OnnxRuntime", "OnnxRuntimeSession"]

_NO_KERNEL = re.compile(
    r"NOT_IMPLEMENTED.*?implementation for ([\w.:]+)\(\d+\) node with name '([^']*)'"
)
_COMPILED = "compiled nodes"


class OnnxRuntimeSession(Session):
    """A model in this process; for outputs, not for latency."""

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name; see :meth:`Session.run`."""
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise MeasurementError(
                f"onnxruntime could not run it: {_first_line(error)}", where=self._where
            ) from error
        return dict(zip(self._outputs, values, strict=True))


class OnnxRuntime(Runtime):
    """onnxruntime with one execution provider, and the CPU provider behind it."""

    name: ClassVar[str] = "onnxruntime"
    engine: ClassVar[str] = "edgecompress.runtimes._session:OnnxRuntimeEngine"

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether the installed onnxruntime has the profile's provider."""
        import onnxruntime

        available = onnxruntime.get_available_providers()
        if python_of(self.name) is not None or profile.provider in available:
            return True, "this machine"
        return False, (
            f"the installed onnxruntime {onnxruntime.__version__} has no {profile.provider}; "
            f"it has {', '.join(available)}"
        )

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that no compiled kernel takes, by operator and version.

        Tensor types are not looked at; loading the model is the last word.
        """
        kernels = _kernel_versions()
        local = {(f.domain, f.name) for f in model.ir.functions.values()}
        functions = (node for f in model.ir.functions.values() for node in f.all_nodes())
        refused = []
        for node in (*model.ir.graph.all_nodes(), *functions):
            domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
            if (node.domain, node.op_type) in local:
                continue
            version = node.version or model.ir.opset_imports.get(node.domain, 1)
            if reason := _refusal(domain, node.op_type, version, kernels):
                refused.append(
                    Unsupported(node.name or node.outputs[0].name or "", node.op_type, reason)
                )
        return refused

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.onnx``, and its data file where it is too large for one file."""
        return Artifact(tuple(model.save(folder / "model.onnx")))

    def session(self, artifact: Artifact, profile: TargetProfile) -> OnnxRuntimeSession:
        """Load the file in this process.

        Where the profile's provider is not installed the CPU provider stands in; for ARM targets on
        x86 it is told to compute what ARM computes.
        """
        where = str(artifact.path)
        try:
            session = open_session(
                artifact.path, threads=profile.measurement.threads, **_settings(profile)
            )
        except Exception as error:
            raise _cannot_load(error, where) from error
        return OnnxRuntimeSession(session, where)

    def optimized_nodes(self, model: Model, profile: TargetProfile) -> list[RuntimeNode]:
        """Nodes of the optimized graph, before changes of memory layout, which blur names."""
        return list(_optimized(model, profile).nodes)

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers."""
        _, note = _provider(profile)
        return judge(model, claimed, _optimized(tag_nodes(model), profile), note)

    def placement(self, model: Model, profile: TargetProfile) -> Placement | None:
        """Where each node runs, from the optimized graph and the graph's assignment."""
        import onnxruntime

        provider, note = _provider(profile)
        said = _ask(tag_nodes(model), profile)
        if not said.assigned and provider != CPU:
            return None  # an onnxruntime that does not tell its assignment
        return place(
            model,
            said,
            provider,
            source=f"graph assignment and optimized graph of onnxruntime {onnxruntime.__version__}",
            note=note,
            signed_int8=machine_arch() != "x86_64"
            or _settings(profile)["config"].get("session.qdqisint8allowed") == "1",
        )


def _provider(profile: TargetProfile) -> tuple[str, str | None]:
    """The provider that is really used here, and a note where it is not the target's own."""
    import onnxruntime

    if profile.provider not in onnxruntime.get_available_providers():
        return CPU, f"{profile.provider} is not installed here; onnxruntime's {CPU} stood in"
    if profile.device.arch not in ("any", machine_arch()):
        return profile.provider, f"optimized on {machine_arch()} for {profile.device.arch}"
    return profile.provider, None


def _settings(profile: TargetProfile) -> dict[str, Any]:
    """Arguments of :func:`open_session` that the profile decides."""
    provider, _ = _provider(profile)
    config, provider_options = split_options(profile.options)
    if profile.device.arch == "aarch64" and machine_arch() == "x86_64":
        config = {**INT8_ON_X86, **config}
    if provider != profile.provider:
        provider_options = {}  # they are the target's own provider's
        config.pop("session.disable_cpu_ep_fallback", None)
    return {"provider": provider, "provider_options": provider_options, "config": config}


def _optimized(model: Model, profile: TargetProfile) -> OptimizedGraph:
    optimized = _ask(model, profile).optimized
    if optimized is None:
        raise MeasurementError(
            f"{profile.provider} compiles the graph and does not show it",
            where=str(model.path or "model"),
            cure="look at the placement instead",
        )
    return optimized


def _ask(model: Model, profile: TargetProfile) -> Said:
    """What onnxruntime says of a model."""
    settings = _settings(profile)
    with ScratchFolder() as folder:
        source, target = folder / "model.onnx", folder / "optimized.onnx"
        model.save(source)
        weights = {
            "session.optimized_model_external_initializers_file_name": "optimized.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        config = {**settings.pop("config"), **RECORD_ASSIGNMENT}
        shown = True
        try:
            try:
                session = open_session(
                    source,
                    threads=1,
                    config={**config, **weights},
                    layout=False,
                    optimized=target,
                    **settings,
                )
            except Exception as error:
                if _COMPILED not in str(error):
                    raise
                shown = False
                session = open_session(source, threads=1, config=config, layout=False, **settings)
        except Exception as error:
            raise _cannot_load(error, str(model.path or "model")) from error
        only = session.get_providers() == [CPU]
        return Said(
            assigned=assignment(session),
            optimized=read_optimized(target, CPU if only else None) if shown else None,
            compiled=not shown,
        )


def _kernel_versions() -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Version ranges of the kernels in this onnxruntime, by domain and operator."""
    from onnxruntime.capi import _pybind_state

    kernels: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for kernel in _pybind_state.get_all_opkernel_def():
        domain = "" if kernel.domain in DEFAULT_DOMAINS else kernel.domain
        kernels[domain, kernel.op_name].append(kernel.version_range)
    return kernels


def _refusal(
    domain: str,
    op: str,
    version: int,
    kernels: Mapping[tuple[str, str], Sequence[tuple[int, int]]],
) -> str | None:
    import onnx.defs

    since = version
    if onnx.defs.has(op, version, domain):
        schema: Any = onnx.defs.get_schema(op, version, domain)
        if schema.has_function or schema.has_context_dependent_function or op == "Constant":
            return None  # expanded into other operators, or turned into an initializer
        since = schema.since_version
    ranges = kernels.get((domain, op))
    if not ranges:
        return f"this onnxruntime has no kernel for {domain or 'ai.onnx'}::{op}"
    if not any(first <= since <= last for first, last in ranges):
        return f"this onnxruntime has no kernel for version {since} of {op}"
    return None


def _cannot_load(error: Exception, where: str) -> MeasurementError:
    line = _first_line(error)
    if found := _NO_KERNEL.search(line):
        op, node = found.groups()
        return MeasurementError(
            f"onnxruntime has no kernel of {op} for the types at node {node!r}",
            where=where,
            cure="cast its inputs to a type that the operator's kernels take, such as float32",
        )
    return MeasurementError(
        f"onnxruntime could not load it: {line}",
        where=where,
        cure="export the model again, or name another target",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")
