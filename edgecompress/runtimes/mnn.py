"""MNN: a converter of its own, and integer kernels that take our scales and zero points.

MNN does not read Q/DQ pairs: its converter aborts on them, or succeeds with wrong numbers. It is
given the float graph under them, and the ranges as its compression parameters. ``MNN.tools``, which
installs a package and sends data home when it is imported, is never imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.runtimes import (
    Artifact,
    FusionCoverage,
    Placement,
    Runtime,
    Unsupported,
)

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["Mnn"]

_FLOAT_GIVEN = (
    "MNN takes no Q/DQ pairs: it was given the float graph with the rounded weights, and the same "
    "ranges, widened to ones around zero except between convolutions"
)
# The converter takes these and gives a file that computes something else.
_WRONG = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_BEHIND = frozenset({"Add", "Relu", "Clip"})
_INT8 = "DT_INT8"


class Mnn(Runtime):
    """MNN on the CPU (``provider = "CPU"``).

    The profile's option ``precision`` is MNN's: ``high`` (default) computes floats in 32 bits,
    ``normal`` and ``low`` may use fewer where the processor can.
    """

    name: ClassVar[str] = "mnn"
    engine: ClassVar[str] = "edgecompress.runtimes._mnn_engine:MnnEngine"
    packages: ClassVar[tuple[str, ...]] = ("MNN", "_tools")
    install: ClassVar[str] = 'pip install "edgecompress[mnn]"'

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that MNN's converter names, or that it is known to convert wrongly."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine

        wrong = [
            Unsupported(_label(node), node.op_type, "MNN converts it, but to other numbers")
            for node in model.ir.graph.all_nodes()
            if node.op_type in _WRONG
        ]
        if wrong:
            return wrong
        with ScratchFolder() as folder:
            source, *_ = self._sources(model, folder)
            answer = ask_engine(self, source, profile, "unsupported")
        return list(_refused(model, answer["refused"], answer["said"]))

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.mnn`` with our ranges in it, and the signature beside it."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._remote import convert
        from edgecompress.runtimes._signature import make_folder, write_ports

        make_folder(folder)
        with ScratchFolder() as scratch:
            source, parameters, bits, notes = self._sources(model, scratch)
            made = convert(self, source, folder, profile, parameters=parameters, weight_bits=bits)
        return Artifact((made.path, write_ports(model, folder)), tuple(notes))

    def _sources(self, model: Model, folder: Path) -> tuple[Path, str | None, int, list[str]]:
        """The file that MNN converts, its parameters, bits of other weights, and notes."""
        from edgecompress.runtimes._float_graph import float_graph, is_quantized
        from edgecompress.runtimes._mnn_ranges import compression_file, quantized_layers

        if not is_quantized(model):
            return model.save(folder / "model.onnx")[0], None, 0, []
        found = float_graph(model)
        layers, left = quantized_layers(found)
        source = found.model.save(folder / "model.onnx")[0]
        notes = [_FLOAT_GIVEN]
        parameters = None
        if layers:
            file = folder / "parameters.bin"
            file.write_bytes(compression_file(layers))
            parameters = str(file)
            notes.append(f"{len(layers)} layers run on integers")
        bits = 0
        if left:
            whole = all(
                node.inputs[1].name in found.weights
                for node in found.model.ir.graph
                if node.op_type in _LAYERS
                and len(node.inputs) > 1
                and node.inputs[1] is not None
                and node.inputs[1].const_value is not None
            )
            bits = 8 if whole else 0
            how = "have their weights rounded to 8 bits by MNN" if whole else "have float weights"
            notes.append(f"{len(left)} layers compute in float and {how}: {_reasons(left)}")
        return source, parameters, bits, notes

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers."""
        from edgecompress.runtimes._executed import coverage_of

        return coverage_of(model, claimed, self._executed(model, profile))

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """What MNN executed for each node, in a run on ones."""
        from edgecompress.runtimes._executed import placement_of
        from edgecompress.runtimes._float_graph import float_graph, is_quantized
        from edgecompress.runtimes._mnn_ranges import quantized_layers

        left = quantized_layers(float_graph(model))[1] if is_quantized(model) else {}
        return placement_of(
            model,
            self._executed(model, profile),
            accelerator=profile.provider,
            source="operators that MNN ran",
            mend=lambda node: _MENDS.get(left.get(node.outputs[0].name or "", ""), ""),
        )

    def _executed(self, model: Model, profile: TargetProfile) -> Any:
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine
        from edgecompress.runtimes._executed import Executed

        with ScratchFolder() as folder:
            artifact = self.prepare(model, folder, profile)
            rows = ask_engine(self, artifact.path, profile, "executed")["rows"]
        standing = _stands_for(model, {_base(name) for name, _ in rows})
        return [
            Executed(
                op=op.partition(" [")[0],
                kernel="int8" if _INT8 in op else "",
                integer=_INT8 in op,
                nodes=frozenset(standing.get(_base(name), ())),
            )
            for name, op in rows
        ]


_MENDS = {
    "its input is float": "quantize its input, too",
    "its output is float": "quantize its output, too",
    "its weights have zero points": "quantize its weights without zero points",
    "MNN's MaxPool of integers beside it is wrong for negative numbers": "put the Relu before it",
    "its numbers are not of 8 bits with one scale per tensor": "quantize to 8 bits",
}


def _label(node: Any) -> str:
    return str(node.name or node.outputs[0].name or "")


def _base(name: str) -> str:
    """The ONNX value that an operator of MNN bears the name of."""
    return name.partition("__matmul_converted")[0].partition("___")[0]


def _stands_for(model: Model, executed: Collection[str]) -> dict[str, list[int]]:
    """Places of the nodes that each executed operator, known by a value's name, stands for.

    A layer that is not executed by its own name is part of the Add, Relu or Clip behind it.
    """
    found: dict[str, list[int]] = {}
    for place, node in enumerate(model.ir.graph):
        value, name = node.outputs[0], node.outputs[0].name or ""
        while node.op_type in _LAYERS | _BEHIND and name not in executed:
            users = list(value.consumers())
            if len(users) != 1 or users[0].op_type not in _BEHIND:
                break
            value = users[0].outputs[0]
            name = value.name or ""
        if name in executed:
            found.setdefault(name, []).append(place)
    return found


def _reasons(left: Mapping[str, str]) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in Counter(left.values()).items())


def _refused(model: Model, operators: Sequence[str], said: str) -> Iterator[Unsupported]:
    for node in model.ir.graph.all_nodes():
        if node.op_type in operators:
            yield Unsupported(_label(node), node.op_type, "MNN's converter does not support it")
    if said and not operators:
        yield Unsupported("model", "", f"MNN's converter failed: {said}")
