"""OpenVINO: reads ONNX with Q/DQ pairs as it is; nothing of its package is called but the core."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.runtimes import (
    Artifact,
    Engine,
    FusionCoverage,
    Placement,
    Runtime,
    Unsupported,
)
from edgecompress.runtimes._rows import mean_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["OpenVino", "OpenVinoEngine"]

_CONTRIB = "com.microsoft"
_UNKNOWN = re.compile(r"No conversion rule found for operations: (.+)")
_NO_LAYERS = frozenset({"Const", "Input", "Output"})


class OpenVino(Runtime):
    """OpenVINO on one of its devices; the profile's ``provider`` is its name, such as ``CPU``.

    The profile's option ``precision`` is OpenVINO's ``INFERENCE_PRECISION_HINT``; ``f32`` unless
    given, since OpenVINO else computes in bfloat16 where the processor can.
    """

    name: ClassVar[str] = "openvino"
    engine: ClassVar[str] = "edgecompress.runtimes.openvino:OpenVinoEngine"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    install: ClassVar[str] = 'pip install "edgecompress[openvino]"'

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that OpenVINO's ONNX front end or the device refuses, by its own word.

        Pairs of 16 bits in onnxruntime's own domain are refused here: OpenVINO 2026.4 takes them
        and computes something else, without a word.
        """
        wrong = list(_silently_wrong(model))
        if wrong:
            return wrong
        answer = self._ask(model, profile, "unsupported")
        operators = {each.rpartition(".")[2] for each in answer["operators"]}
        found = [
            Unsupported(_label(node), node.op_type, "OpenVINO's ONNX front end does not know it")
            for node in model.ir.graph.all_nodes()
            if node.op_type in operators
        ]
        if answer["said"] and not found:
            found.append(Unsupported("model", "", f"OpenVINO failed: {answer['said']}"))
        return found

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.onnx``, and its data file where it is too large for one file."""
        return Artifact(tuple(model.save(folder / "model.onnx")))

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers."""
        from edgecompress.runtimes._executed import coverage_of

        return coverage_of(model, claimed, self._executed(model, profile))

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """What each node became in OpenVINO's own graph of what it executes."""
        from edgecompress.runtimes._executed import placement_of

        return placement_of(
            model,
            self._executed(model, profile),
            accelerator=profile.provider,
            source="execution graph of OpenVINO",
        )

    def _executed(self, model: Model, profile: TargetProfile) -> Any:
        from edgecompress.runtimes._executed import Executed, place_of

        answer = self._ask(model, profile, "executed")
        return [
            Executed(
                op=row["op"],
                kernel=row["kernel"],
                integer=row["precision"] in ("i8", "u8", "i4", "u4"),
                nodes=frozenset(filter(None, map(place_of, row["nodes"]))),
            )
            for row in answer["rows"]
        ]

    def _ask(self, model: Model, profile: TargetProfile, question: str) -> dict[str, Any]:
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine
        from edgecompress.runtimes._fusion import tag_nodes

        with ScratchFolder() as folder:
            source = tag_nodes(model).save(folder / "model.onnx")[0]
            return ask_engine(self, source, profile, question)


def _label(node: Any) -> str:
    return str(node.name or node.outputs[0].name or "")


def _silently_wrong(model: Model) -> Iterator[Unsupported]:
    from edgecompress.runtimes._float_graph import bits_of_pair

    for node in model.ir.graph.all_nodes():
        if node.domain == _CONTRIB and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if bits_of_pair(node) == 16:
                yield Unsupported(
                    _label(node),
                    node.op_type,
                    "OpenVINO computes pairs of 16 bits in com.microsoft wrongly without saying "
                    "so; the standard's own of operator set 21 are right",
                )
        elif node.domain == _CONTRIB and node.op_type.startswith("QLinear"):
            yield Unsupported(
                _label(node),
                node.op_type,
                "OpenVINO takes Q/DQ pairs, not onnxruntime's operators on integers",
            )


class OpenVinoEngine(Engine):
    """A model compiled by OpenVINO's core."""

    def __init__(self) -> None:
        self.compiled: Any = None
        self.request: Any = None
        self.traced = False
        self.times: dict[tuple[str, str], list[float]] = {}
        self.runs = 0

    def start(self) -> str:
        """Import OpenVINO, without the telemetry that its package sends an event to on import."""
        absent: Any = None
        sys.modules.setdefault("openvino_telemetry", absent)
        import openvino

        return str(openvino.__version__).partition("-")[0]

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read and compile the model for latency: one stream."""
        import openvino

        self.traced = options.get("trace") is not None
        core = openvino.Core()
        self.compiled = core.compile_model(
            core.read_model(path), options["provider"], self._settings(options)
        )
        self.request = self.compiled.create_infer_request()
        devices = [str(each) for each in self.compiled.get_property("EXECUTION_DEVICES")]
        wanted = options["provider"]
        if any(each.partition(".")[0] == wanted for each in devices):
            devices = [wanted, *(each for each in devices if each != wanted)]
        return {
            "providers": devices,
            "precision": str(self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()),
        }

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        settings = {
            "INFERENCE_PRECISION_HINT": options.get("precision", "f32"),
            "PERF_COUNT": self.traced,
            "NUM_STREAMS": 1,
        }
        if options["provider"] == "CPU":
            settings["INFERENCE_NUM_THREADS"] = options["threads"]
        return settings

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run on tensors that share the memory of ``feeds``."""
        import numpy as np
        import openvino

        for name, array in feeds.items():
            tensor = openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
            self.request.set_tensor(name, tensor)
        infer = self.request.infer
        return self._traced if self.traced else infer

    def _traced(self) -> object:
        self.request.infer()
        self.runs += 1
        for row in self.request.get_profiling_info():
            if str(row.status).endswith("EXECUTED"):
                key = (row.node_name, f"{row.node_type} ({row.exec_type})")
                self.times.setdefault(key, []).append(row.real_time.total_seconds() * 1e6)
        return None

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs by the names that their Result nodes bear, which are those of the ONNX file."""
        found = {}
        for output in self.compiled.outputs:
            name = output.get_node().get_friendly_name().partition("/sink_port_")[0]
            names = output.get_names()
            name = name if name in names or not names else output.get_any_name()
            found[name] = self.request.get_tensor(output).data.copy()
        return found

    def end_profiling(self) -> Mapping[str, Any]:
        """Mean times of all executed nodes."""
        return mean_rows(self.times, self.runs, "CPU")

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer the ``question`` in the options: what is refused, or what is executed."""
        self.start()
        if options["question"] == "unsupported":
            return _refused(source, options["provider"])
        self.load(source, options)
        return {"rows": list(_executed(self.compiled))}


def _refused(source: str, device: str) -> dict[str, Any]:
    """Operators that the front end does not know, or why the device could not compile the rest."""
    import openvino

    core = openvino.Core()
    try:
        core.compile_model(core.read_model(source), device)
    except RuntimeError as error:
        unknown = _UNKNOWN.search(str(error))
        operators = unknown.group(1).split(", ") if unknown else []
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"operators": operators, "said": lines[-1] if lines else "unknown"}
    return {"operators": [], "said": ""}


def _executed(compiled: Any) -> Iterator[dict[str, Any]]:
    """Kernels of a compiled model: their kind, precision, and the nodes that they stand for."""
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = op.get_rt_info()

        def fact(key: str, facts: Any = facts) -> str:
            return str(facts[key].value) if key in facts else ""

        if fact("layerType") not in _NO_LAYERS:
            yield {
                "op": fact("layerType"),
                "kernel": fact("primitiveType"),
                "precision": fact("runtimePrecision"),
                "nodes": fact("originalLayersNames").split(","),
            }
