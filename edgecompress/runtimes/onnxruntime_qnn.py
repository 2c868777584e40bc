"""Qualcomm's Hexagon NPU (HTP) through onnxruntime's QNN plugin, which emulates it on x86.

The compiler and the acceptance check are those of the device, and the emulator computes with the
NPU's numerics. How long the emulator takes says nothing of the device.

Options of a target: ``htp_arch`` and ``soc_model`` name the chip (73 and 43: Snapdragon 8 Gen 2; 75
and 57: Snapdragon 8 Gen 3); ``context = false`` loads the ONNX file rather than a compiled context
binary; all others are the provider's own, such as ``enable_htp_fp16_precision``, or, with a dot,
entries of the session. With ``session.disable_cpu_ep_fallback`` every node must run on the NPU.
The NPU takes no symbolic dimensions: to tell what it takes, leading ones are taken for 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.runtimes import Artifact, FusionCoverage, Placement, Runtime, Unsupported
from edgecompress.runtimes._session import (
    CPU,
    RECORD_ASSIGNMENT,
    OnnxRuntimeEngine,
    assignment,
    session_options,
    split_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["OnnxRuntimeQnn", "QnnEngine"]

_PROVIDER = "QNNExecutionProvider"
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_OFFLOAD = "offload_graph_io_quantization"
_EVERYTHING = 0  # log severity
_MINE = frozenset({"context", "question"})
_PLACEMENT = "placement"

_REFUSED = re.compile(
    r"Validation FAILED for \d+ nodes in OrtNodeUnit \([^)]*\) :\s*\n"
    r"((?:\s+Operator type:[^\n]*\n)+)\s+REASON : ([^\n]*)"
)
_NODE_NAME = re.compile(r"Node name: (\S*) Node index")
_TAIL = re.compile(r"(?<=\.)\w+ node `[^`]*` will not be assigned.*$")
_QNN_NODE = re.compile(
    r"Qnn_OpConfig node name: (\S+) package_name: \S+ QNN_op_type: (\S+) [^\n]*\n"
    r"\s*node_inputs:\s*\n[^\n]*dataType=QNN_DATATYPE_(\w+)"
)


class QnnEngine(OnnxRuntimeEngine):
    """onnxruntime with the QNN plugin, and the CPU provider behind it."""

    def start(self) -> str:
        """Import onnxruntime and the plugin, and register the plugin."""
        import onnxruntime
        import onnxruntime_qnn

        onnxruntime.register_execution_provider_library(
            _PROVIDER, onnxruntime_qnn.get_library_path()
        )
        return f"{onnxruntime.__version__} with onnxruntime-qnn {onnxruntime_qnn.__version__}"

    def open(
        self,
        path: str,
        options: Mapping[str, Any],
        config: Mapping[str, str],
        provider_options: Mapping[str, str],
        *,
        verbose: bool = False,
    ) -> Any:
        """The session that :meth:`load` keeps; ``verbose`` logs what the provider decides."""
        import onnxruntime as ort
        import onnxruntime_qnn

        trace = options.get("trace")
        settings = session_options(
            threads=options["threads"],
            config=config,
            profile=None if trace is None else Path(trace),
        )
        if verbose:
            settings.log_severity_level = _EVERYTHING
        devices = [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
        chosen = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
        if config.get(_NO_FALLBACK) == "1":
            # Else it leaves the quantizers of inputs and outputs to the CPU.
            chosen[_OFFLOAD] = "0"
        chosen |= {key: text for key, text in provider_options.items() if key not in _MINE}
        settings.add_provider_for_devices(devices[:1], chosen)
        return ort.InferenceSession(path, settings)

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile a context binary; asked for the placement, tell what the provider said."""
        self.start()
        if options.get("question") == _PLACEMENT:
            return self._placement(source, options)
        config, provider_options = split_options(options)
        compiled = Path(folder) / "model_ctx.onnx"
        context = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(compiled),
            "ep.context_embed_mode": "0",
        }
        # Names in the compiled graph come from a digest of the path that it is opened by.
        with contextlib.chdir(Path(source).parent):
            self.open(Path(source).name, options, {**config, **context}, provider_options)
        if not compiled.exists():
            raise RuntimeError(
                "the provider took none of the nodes, so there is nothing to compile"
            )
        others = sorted(p for p in Path(folder).iterdir() if p.suffix in (".bin", ".data"))
        return {"files": [str(compiled), *map(str, others)]}

    def _placement(self, source: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        config, provider_options = split_options(options)
        if config.pop(_NO_FALLBACK, "0") == "1":
            provider_options.setdefault(_OFFLOAD, "0")
        with _standard_error() as log:
            session = self.open(
                source, options, {**config, **RECORD_ASSIGNMENT}, provider_options, verbose=True
            )
        reasons, kernels = read_log(log.read_text(encoding="utf-8", errors="replace"))
        log.unlink()
        return {"assigned": assignment(session), "reasons": reasons, "kernels": kernels}


@contextlib.contextmanager
def _standard_error() -> Iterator[Path]:
    """A file that takes what libraries write to standard error meanwhile."""
    handle, name = tempfile.mkstemp()
    kept = os.dup(2)
    os.dup2(handle, 2)
    try:
        yield Path(name)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(handle)


def read_log(text: str) -> tuple[dict[str, str], dict[str, tuple[str, bool]]]:
    """What the provider's verbose log tells.

    Returns:
        Why it refused a node; and the NPU's operator for a node that it took, with whether that
        reads integers. Both by the node's name.
    """
    reasons = {}
    for nodes, reason in _REFUSED.findall(text):
        for name in _NODE_NAME.findall(nodes):
            reasons[name] = _TAIL.sub("", reason.strip())
    kernels = {
        name: (op, "FIXED_POINT" in kind or kind.startswith(("INT", "UINT")))
        for name, op, kind in _QNN_NODE.findall(text)
    }
    return reasons, kernels


def _leading_ones(model: Model) -> tuple[Model, str | None]:
    """The model with 1 for free leading dimensions, and a note that says so."""
    from edgecompress.fixed_shapes import fixed_shapes, is_fixed

    shapes = {}
    for spec in model.signature.inputs:
        if spec.shape is None or any(not isinstance(dim, int) for dim in spec.shape[1:]):
            return model, None
        shapes[spec.name] = (1, *(dim for dim in spec.shape[1:] if isinstance(dim, int)))
        if spec.shape and isinstance(spec.shape[0], int):
            shapes[spec.name] = (spec.shape[0], *shapes[spec.name][1:])
    if is_fixed(model):
        return model, None
    return fixed_shapes(model, shapes), "free leading dimensions were taken for 1"


class OnnxRuntimeQnn(Runtime):
    """onnxruntime with Qualcomm's QNN plugin, whose emulator of the NPU runs on x86."""

    name: ClassVar[str] = "onnxruntime_qnn"
    engine: ClassVar[str] = "edgecompress.runtimes.onnxruntime_qnn:QnnEngine"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime_qnn",)
    install: ClassVar[str] = "pip install onnxruntime-qnn"
    fixed_shapes: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    half: ClassVar[bool] = True
    untimed_reason: ClassVar[str] = (
        "the Hexagon NPU is emulated here: its outputs are the device's, its times are not"
    )

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that no provider has a kernel for.

        Where the target forbids the CPU to help, these are all nodes that the NPU refuses.
        """
        from edgecompress.runtimes.onnxruntime import OnnxRuntime

        refused = OnnxRuntime().unsupported(model, profile)
        if refused or not profile.options.get(_NO_FALLBACK):
            return refused
        breaks = self.placement(model, profile).breaks
        return [Unsupported(each.node, each.op, each.reason) for each in breaks]

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Compile a context binary for the chip, or write ``model.onnx``; see the module."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._remote import convert

        if not profile.options.get("context", True):
            return Artifact(tuple(model.save(folder / "model.onnx")))
        with ScratchFolder() as scratch:
            source = model.save(scratch / "model.onnx")[0]
            return convert(self, source, folder, profile)

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """Where each node runs, from the provider's log and the graph's assignment."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine
        from edgecompress.runtimes._fusion import tag_nodes
        from edgecompress.runtimes._placement import Said, place

        fixed, note = _leading_ones(model)
        with ScratchFolder() as folder:
            source = tag_nodes(fixed).save(folder / "model.onnx")[0]
            told = ask_engine(self, source, profile, _PLACEMENT)
        said = Said(
            assigned={name: (ep, piece) for name, (ep, piece) in told["assigned"].items()},
            reasons=told["reasons"],
            kernels={name: (op, integer) for name, (op, integer) in told["kernels"].items()},
            compiled=True,
        )
        return place(
            fixed,
            said,
            _PROVIDER,
            source="graph assignment and log of onnxruntime's QNN plugin",
            note=note,
        )

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers on the NPU."""
        placed = self.placement(model, profile).nodes
        places = {
            value.name: place for place, node in enumerate(model.ir.graph) for value in node.outputs
        }
        unfused = {}
        for output in claimed:
            if output not in places:
                unfused[output] = "the model has no node with this output"
                continue
            node = placed[places[output]]
            if node.runs_on == CPU:
                unfused[node.node] = "runs on the CPU"
            elif node.integer is False:
                unfused[node.node] = f"{node.kernel} in float"
        return FusionCoverage(
            claimed=len(claimed),
            fused=len(claimed) - len(unfused),
            unfused=unfused,
            integer_kernels=sum(node.integer is True for node in placed),
        )
