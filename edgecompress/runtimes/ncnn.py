"""ncnn: converted by pnnx, and run in 32-bit floats, also where the model is quantized.

pnnx reads no Q/DQ pairs: it leaves them as layers that ncnn does not have. The float graph under
them is given instead. Neither the converter nor ncnn takes zero points, and the package for Python
has no tool that would quantize with given ranges, so a quantized model runs in float there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

__all__ = ["Ncnn"]

_STAND_IN, _OTHER_STAND_IN = 16, 24
# What pnnx calls the operators that it leaves, as ONNX calls them.
_ONNX_NAMES = {
    "Tensor.to": "Cast",
    "torch.arange": "Range",
    "torch.ge": "GreaterOrEqual",
    "torch.logical_and": "And",
    "torch.logical_not": "Not",
    "torch.logical_or": "Or",
    "torch.where": "Where",
    "torch.gt": "Greater",
    "torch.lt": "Less",
    "torch.le": "LessOrEqual",
    "torch.eq": "Equal",
}
_IN_FLOAT = (
    "ncnn takes no Q/DQ pairs: it was given the float graph with the rounded weights and computes "
    "in 32-bit floats, so int8 makes it neither smaller nor faster there"
)


class Ncnn(Runtime):
    """ncnn on the CPU (``provider = "CPU"``), one row at a time.

    The profile's option ``fp16`` (default false) stores weights in 16 bits, and lets ncnn store
    and compute activations in 16 bits where the processor can.
    """

    name: ClassVar[str] = "ncnn"
    engine: ClassVar[str] = "edgecompress.runtimes._ncnn_engine:NcnnEngine"
    packages: ClassVar[tuple[str, ...]] = ("ncnn", "pnnx")
    install: ClassVar[str] = 'pip install "edgecompress[ncnn]"'
    fixed_shapes: ClassVar[bool] = True  # pnnx leaves much over where dimensions are free

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """What pnnx leaves over and ncnn has no layer for."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine

        several = [
            Unsupported(spec.name, "input", f"ncnn runs one row at a time, got a batch of {batch}")
            for spec in model.signature.inputs
            if spec.shape and isinstance(batch := spec.shape[0], int) and batch > 1 and _many(spec)
        ]
        if several:
            return several
        with ScratchFolder() as folder:
            source, options = _source(model, folder)
            answer = ask_engine(self, source, profile, "unsupported", **options)
        return list(_refused(model, answer["left"], answer["said"]))

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.ncnn.param`` and ``.bin``, and the signature beside them."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._float_graph import is_quantized
        from edgecompress.runtimes._remote import convert
        from edgecompress.runtimes._signature import make_folder, write_ports

        make_folder(folder)
        with ScratchFolder() as scratch:
            source, options = _source(model, scratch)
            made = convert(self, source, folder, profile, **options)
        notes = (_IN_FLOAT,) if is_quantized(model) else ()
        return Artifact((*made.files, write_ports(model, folder)), notes)

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """None of the nodes runs on integers."""
        return FusionCoverage(len(claimed), 0, dict.fromkeys(claimed, "in float"), 0)

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """All nodes run on the CPU in float."""
        from edgecompress.runtimes._executed import Executed, placement_of

        nodes = frozenset(range(len(list(model.ir.graph))))
        return placement_of(
            model,
            [Executed("ncnn layer", "", False, nodes)],
            accelerator=profile.provider,
            source="the float graph that ncnn was given",
            mend=lambda node: "ncnn has no kernels for Q/DQ graphs: leave the model in float",
        )


def _many(spec: Any) -> bool:
    """Whether the first dimension counts rows, as far as its rank tells."""
    return len(spec.shape) in (2, 4)


def _source(model: Model, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that pnnx reads, and what it must be told."""
    from edgecompress.runtimes._float_graph import float_graph, is_quantized

    given = float_graph(model).model if is_quantized(model) else model.clone()
    _ready_lookups(given)
    shapes = [_shapes(given, size) for size in (_STAND_IN, _OTHER_STAND_IN)]
    options = {
        "shapes": shapes[0],
        "other_shapes": None if shapes[0] == shapes[1] else shapes[1],
        "casts_are_idle": _casts_are_idle(given),
    }
    return given.save(folder / "model.onnx")[0], options


def _shapes(model: Model, stand_in: int) -> str:
    """Input shapes as pnnx reads them; named dimensions get a number that will do."""
    types = {"float32": "f32", "int64": "i64", "int32": "i32", "uint8": "u8", "float16": "f16"}
    shapes = _with_length(model, stand_in)
    return ",".join(
        f"[{','.join(map(str, shapes[spec.name]))}]{types.get(spec.dtype, 'f32')}"
        for spec in model.signature.inputs
    )


def _with_length(model: Model, length: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs with ``length`` for what is named, and 1 for a named first dimension."""
    return {
        spec.name: tuple(
            d if isinstance(d, int) else (1 if place == 0 else length)
            for place, d in enumerate(spec.shape or ())
        )
        for spec in model.signature.inputs
    }


def _ready_lookups(model: Model) -> None:
    """Write the Gathers of tables as pnnx knows them.

    It wants their axis spelled out, and tries models on indices from 0 to 9, so short tables get
    rows that nobody reads.
    """
    import numpy as np
    import onnx_ir as ir

    for node in model.ir.graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        rows = node.inputs[1] if table is not None else None
        if table is None or rows is None or table.const_value is None or table.name is None:
            continue
        node.attributes.setdefault("axis", ir.AttrInt64("axis", 0))
        array = table.const_value.numpy()
        if rows.is_graph_input() and array.ndim == 2 and len(array) < _STAND_IN:
            longer = np.zeros((_STAND_IN, array.shape[1]), array.dtype)
            longer[: len(array)] = array
            table.const_value = ir.tensor(longer, name=table.name)
            table.shape = ir.Shape(longer.shape)


def _casts_are_idle(model: Model) -> bool:
    """Whether no Cast turns integers into floats or back: then ncnn can leave them all out."""
    for node in model.ir.graph.all_nodes():
        if node.op_type == "Cast":
            source, target = node.inputs[0], node.outputs[0]
            if source is None or source.dtype is None or target.dtype is None:
                return False
            if source.dtype.is_floating_point() != target.dtype.is_floating_point():
                return False
    return True


def _refused(model: Model, left: Sequence[Sequence[str]], said: str) -> Iterator[Unsupported]:
    reported = set()
    for kind, name in left:
        operator = _ONNX_NAMES.get(kind, kind.rpartition(".")[2])
        nodes = [n for n in model.ir.graph.all_nodes() if n.op_type.lower() == operator.lower()]
        reason = f"pnnx leaves it as {kind}, which is no layer of ncnn"
        if not nodes:
            yield Unsupported(name, kind, reason)
        for node in nodes if operator not in reported else ():
            label = node.name or node.outputs[0].name or ""
            yield Unsupported(label, node.op_type, reason)
        reported.add(operator)
    if said:
        yield Unsupported("model", "", f"pnnx failed: {said}")
