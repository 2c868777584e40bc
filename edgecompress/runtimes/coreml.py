"""CoreML: the model as an ``.mlpackage`` (ML Program), and a check of what is in it.

coremltools reads no ONNX, so the graph goes over the torch bridge. Predictions need an Apple
system; elsewhere the package is opened again and its inputs, outputs, operators and weights are
held against the model's. That proves what was written, not what a phone computes.

Options of a target: ``precision`` (``float16``, the default, or ``float32``) is what is computed
in; ``weights = "int8"`` stores large weights in 8 bits with a scale per channel;
``deployment_target`` (default ``iOS16``) is the oldest system to run on.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact, Engine, Runtime, Session, Unsupported
from edgecompress.runtimes._coreml_check import check_package, plain_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["CoreMl", "CoreMlEngine"]

_APPLE_ONLY = "CoreML runs on Apple systems only; elsewhere its packages are made and checked"
_PACKAGE = "model.mlpackage"
_NAMESPACE = uuid.UUID(int=0)
_DATE = "com.github.apple.coremltools.conversion_date"


class CoreMlEngine(Engine):
    """Converts only."""

    def start(self) -> str:
        """Import coremltools."""
        import coremltools

        return str(coremltools.__version__)

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse: nothing of CoreML runs here."""
        raise RuntimeError(_APPLE_ONLY)

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """Refuse: nothing of CoreML runs here."""
        raise RuntimeError(_APPLE_ONLY)

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Refuse: nothing of CoreML runs here."""
        raise RuntimeError(_APPLE_ONLY)

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the package, open it again and check it."""
        import coremltools as ct

        from edgecompress.model import Model

        model = Model.load(Path(source))
        package = Path(folder) / _PACKAGE
        half = options.get("precision", "float16") == "float16"
        made = ct.convert(
            _traced(model),
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, options.get("deployment_target", "iOS16")),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            inputs=[
                ct.TensorType(
                    name=plain_name(spec.name), shape=spec.shape, dtype=_dtype(spec.dtype)
                )
                for spec in model.signature.inputs
            ],
            outputs=[
                ct.TensorType(name=plain_name(spec.name), dtype=_dtype(spec.dtype))
                for spec in model.signature.outputs
            ],
            skip_model_load=True,
        )
        made.user_defined_metadata.pop(_DATE, None)  # same input, same bytes
        made.save(str(package))
        notes = check_package(model, package, half=half)
        if options.get("weights") == "int8":
            _to_int8(package)
            notes.append("weights were then rounded to 8 bits, with a scale per channel")
        _settle(package)
        return {"files": [str(file) for file in _files(package)], "notes": notes}


def _numeric_gathers(model: Model) -> Model:
    """A copy that looks truth values up as int32, since CoreML gathers numbers only."""
    import onnx_ir as ir

    from edgecompress.rewrite import infer_shapes

    numeric = model.clone()
    infer_shapes(numeric)
    graph = numeric.ir.graph
    for node in [n for n in graph if n.op_type in ("Gather", "GatherND", "GatherElements")]:
        data, given = node.inputs[0], node.outputs[0]
        if data is None or data.dtype != ir.DataType.BOOL or given.is_graph_output():
            continue
        before = ir.node("Cast", [data], attributes={"to": ir.DataType.INT32})
        after = ir.node("Cast", [given], attributes={"to": ir.DataType.BOOL})
        for cast, dtype, name in ((before, "INT32", "numbers"), (after, "BOOL", "truth")):
            cast.outputs[0].name = cast.name = f"{given.name}/{name}"
            cast.outputs[0].type = ir.TensorType(ir.DataType[dtype])
        ir.convenience.replace_all_uses_with(given, after.outputs[0])
        after.replace_input_with(0, given)
        node.replace_input_with(0, before.outputs[0])
        given.type = ir.TensorType(ir.DataType.INT32)
        graph.insert_before(node, before)
        graph.insert_after(node, after)
    return numeric


def _dtype(name: str) -> Any:
    import numpy as np

    return {"int64": np.int32, "int32": np.int32}.get(name, np.float32)


def _traced(model: Model) -> Any:
    """The graph as a traced torch module; dimensions are fixed, so shape arithmetic may be, too."""
    import warnings

    import numpy as np
    import torch

    from edgecompress.torchgraph import to_torch

    graph = to_torch(model).eval().requires_grad_(False)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph  # coremltools takes a child called "graph" for torch's own

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.inner(dict(zip(names, inputs, strict=True)))
            return tuple(found[name] for name in graph.output_names)

    specs = {spec.name: spec for spec in model.signature.inputs}
    names = [spec.name for spec in model.signature.inputs]
    examples = tuple(
        torch.from_numpy(np.ones(specs[name].shape, specs[name].dtype)) for name in names
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes become numbers, which is meant
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            Positional().eval(), examples, check_trace=False
        )


def _to_int8(package: Path) -> None:
    import shutil

    import coremltools as ct
    import coremltools.optimize.coreml as compress

    how = compress.OpLinearQuantizerConfig(mode="linear_symmetric")
    loaded = ct.models.MLModel(str(package), skip_model_load=True)
    small = compress.linear_quantize_weights(loaded, compress.OptimizationConfig(how))
    small.user_defined_metadata.pop(_DATE, None)
    # The package is read lazily while it is written, so it goes to another place first.
    aside = package.with_name(f"small_{package.name}")
    small.save(str(aside))
    shutil.rmtree(package)
    aside.rename(package)


def _files(package: Path) -> list[Path]:
    manifest = package / "Manifest.json"
    others = sorted(file for file in package.rglob("*") if file.is_file() and file != manifest)
    return [manifest, *others]


def _settle(package: Path) -> None:
    """Write the same bytes for the same model: identifiers and orders are random otherwise."""
    from coremltools.proto import Model_pb2

    file = package / "Manifest.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    entries = table["itemInfoEntries"]
    settled = {key: str(uuid.uuid5(_NAMESPACE, entries[key]["path"])).upper() for key in entries}
    table["itemInfoEntries"] = {settled[key]: entries[key] for key in entries}
    table["rootModelIdentifier"] = settled[table["rootModelIdentifier"]]
    file.write_text(json.dumps(table, indent=4, sort_keys=True), encoding="utf-8")
    for file in package.rglob("*.mlmodel"):
        spec = Model_pb2.Model.FromString(file.read_bytes())
        file.write_bytes(spec.SerializeToString(deterministic=True))


class CoreMl(Runtime):
    """CoreML on Apple's systems; here its packages are made and checked, not run."""

    name: ClassVar[str] = "coreml"
    engine: ClassVar[str] = "edgecompress.runtimes.coreml:CoreMlEngine"
    packages: ClassVar[tuple[str, ...]] = ("coremltools",)
    install: ClassVar[str] = "pip install coremltools"
    fixed_shapes: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    untimed_reason: ClassVar[str] = _APPLE_ONLY

    def runs_here(self) -> bool:
        """CoreML runs on Apple systems only."""
        return sys.platform == "darwin"

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that the torch bridge has no translation for; coremltools may refuse more."""
        from edgecompress.torchgraph import is_supported

        plain = model.inlined().ir
        return [
            Unsupported(
                node.name or node.outputs[0].name or "",
                node.op_type,
                "the bridge to torch, and so to coremltools, has no translation of it",
            )
            for node in plain.graph
            if not is_supported(node, plain.opset_imports)
        ]

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.mlpackage``; its first file is the manifest in it.

        Q/DQ pairs are taken out, since CoreML knows none: it gets the rounded weights in float.
        """
        from edgecompress.files import ScratchFolder
        from edgecompress.fixed_shapes import is_fixed
        from edgecompress.runtimes._float_graph import float_graph, is_quantized
        from edgecompress.runtimes._remote import convert

        if not is_fixed(model):
            raise MeasurementError(
                f"expected fixed shapes, got {', '.join(map(str, model.signature.inputs))}",
                where=str(model.path or "model"),
                cure="give numbers for the free dimensions",
            )
        notes = []
        if is_quantized(model):
            model = float_graph(model).model
            notes.append(
                "CoreML takes no QuantizeLinear or DequantizeLinear: it was given the float graph "
                "with the rounded weights"
            )
        with ScratchFolder() as scratch:
            source = _numeric_gathers(model).save(scratch / "model.onnx")[0]
            made = convert(self, source, folder, profile)
        return Artifact(made.files, (*notes, *made.notes))

    def session(self, artifact: Artifact, profile: TargetProfile) -> Session:
        """Refuse: there is no CoreML to run it.

        Raises:
            MeasurementError: Always.
        """
        raise MeasurementError(
            _APPLE_ONLY,
            where=str(artifact.path.parent),
            cure="open the package on a Mac, or judge the model on another target",
        )
