"""Rockchip's NPUs through rknn-toolkit2: its compiler, and its simulator on x86.

The toolkit wants versions of numpy and protobuf that this package does not, so it lives in a Python
environment of its own, which ``EDGECOMPRESS_PYTHON_RKNN`` names. It takes Q/DQ graphs as they are,
and computes float graphs in float16. The simulator gives outputs, no times.

Options of a target: ``target_platform`` names the chip (default ``rk3588``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact, Engine, Runtime, Unsupported, python_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["SETUP", "Rknn", "RknnEngine"]

SETUP = (
    "python3.11 -m venv rknn && rknn/bin/pip install torch==2.13.0 numpy==1.26.4 onnx==1.18.0 "
    "protobuf==4.25.4 'setuptools<81' 'scipy<1.16' psutil ruamel.yaml tqdm fast-histogram "
    "opencv-python-headless==4.11.0.86 flatbuffers packaging && rknn/bin/pip install --no-deps "
    "onnxruntime==1.23.2 rknn-toolkit2==2.5.0, then EDGECOMPRESS_PYTHON_RKNN=rknn/bin/python"
)
"""How the environment is made; the toolkit's own pins would bring GPU libraries."""

_COMPILED, _SIMULATED = "model.rknn", "simulator.onnx"
_OPSET, _IR_VERSION = 19, 10
_LAST_ERROR = re.compile(r"^(?:\w+Error|Exception): (?!Traceback)(.+)$", re.MULTILINE)


class RknnEngine(Engine):
    """rknn-toolkit2; the simulator runs what it builds from the ONNX file in this process."""

    def __init__(self) -> None:
        self.toolkit: Any = None
        self.inputs: list[str] = []
        self.names: list[str] = []

    def start(self) -> str:
        """Import the toolkit."""
        from importlib.metadata import version

        import rknn.api  # noqa: F401

        return version("rknn-toolkit2")

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Build from the ONNX file beside ``path``, and start the simulator."""
        source = Path(path).with_name(_SIMULATED)
        if not source.is_file():
            raise RuntimeError(f"the simulator builds from {source.name}, which is not beside it")
        self._build(str(source), options)
        _succeeds("start the simulator", self.toolkit.init_runtime)
        return {"providers": [options["provider"]]}

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile for the chip."""
        compiled = str(Path(folder) / _COMPILED)
        self._build(source, options)
        _succeeds("export it", self.toolkit.export_rknn, compiled)
        return {"files": [compiled]}

    def _build(self, source: str, options: Mapping[str, Any]) -> None:
        import onnx
        from rknn.api import RKNN

        graph = onnx.load(source, load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        self.inputs = [value.name for value in inputs]
        self.names = [value.name for value in graph.output]
        shapes = [[dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in inputs]
        self.toolkit = RKNN(verbose=False)
        platform = options.get("target_platform", "rk3588")
        _succeeds("take the options", self.toolkit.config, target_platform=platform)
        _succeeds(
            "read it",
            self.toolkit.load_onnx,
            model=source,
            inputs=self.inputs,
            input_size_list=shapes,
        )
        _succeeds("compile it", self.toolkit.build, do_quantization=False)

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run in the simulator."""
        arrays = [feeds[name] for name in self.inputs]
        layouts = ["nchw" if array.ndim == 4 else "undefined" for array in arrays]
        return lambda: _answer("run it", self.toolkit.inference, inputs=arrays, data_format=layouts)

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name."""
        return dict(zip(self.names, value, strict=True))


def _answer(what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:  # its errors are whole tracebacks, the message last
        said = _LAST_ERROR.findall(str(error)) or [str(error).strip()]
        raise RuntimeError(f"rknn-toolkit2 could not {what}: {said[-1]}") from error


def _succeeds(what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    if (code := _answer(what, call, *args, **kwargs)) != 0:
        raise RuntimeError(f"rknn-toolkit2 could not {what} (code {code})")


class Rknn(Runtime):
    """rknn-toolkit2 for Rockchip's NPUs, with its simulator."""

    name: ClassVar[str] = "rknn"
    engine: ClassVar[str] = "edgecompress.runtimes.rknn:RknnEngine"
    packages: ClassVar[tuple[str, ...]] = ("rknn",)
    install: ClassVar[str] = SETUP
    fixed_shapes: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    half: ClassVar[bool] = True
    untimed_reason: ClassVar[str] = (
        "rknn-toolkit2 simulates the NPU on this machine: its outputs are close to the chip's, "
        "its times are not"
    )

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether an environment with the toolkit is named; the commands that make one if not."""
        python = python_of(self.name)
        if python is not None and not Path(python).is_file():
            return False, f"EDGECOMPRESS_PYTHON_RKNN names {python}, which does not exist"
        return super().present(profile)

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that operator set 19, the highest taken, does not know.

        What the compiler itself refuses is told by :meth:`prepare`.
        """
        return [
            Unsupported(node.name or node.outputs[0].name or "", node.op_type, reason)
            for node in model.ir.graph.all_nodes()
            if (reason := _refusal(node)) is not None
        ]

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.rknn``, and beside it the ONNX file that the simulator builds from."""
        from edgecompress.fixed_shapes import is_fixed
        from edgecompress.runtimes._remote import convert

        refused = self.unsupported(model, profile)
        if refused or not is_fixed(model):
            raise MeasurementError(
                f"expected fixed shapes and operator set {_OPSET}, got "
                f"{', '.join(map(str, model.signature.inputs))}"
                + "".join(f"; {each.node}: {each.reason}" for each in refused[:3]),
                where=str(model.path or "model"),
                cure="give numbers for the free dimensions, and export to that operator set",
            )
        notes = ["outputs are those of the simulator, which builds from the ONNX file again"]
        given, split = _older(model)
        if split:
            notes.append(f"{split} Gelu nodes were split, since operator set {_OPSET} has none")
        source = given.save(folder / _SIMULATED)[0]
        made = convert(self, source, folder, profile)
        return Artifact(made.files, (*notes, *made.notes))


def _refusal(node: ir.Node) -> str | None:
    """Why a node cannot be written in the highest operator set that is taken."""
    import onnx.defs

    from edgecompress.model import DEFAULT_DOMAINS

    if node.domain not in DEFAULT_DOMAINS:
        return f"operators of {node.domain} are not taken"
    if node.op_type == "Gelu":
        return None  # split
    if not onnx.defs.has(node.op_type, _OPSET, ""):
        return f"operator set {_OPSET}, the highest taken, has no {node.op_type}"
    known = onnx.defs.get_schema(node.op_type, _OPSET, "")
    foreign = [name for name in node.attributes if name not in known.attributes]
    if foreign or len(node.inputs) > known.max_input:
        return f"operator set {_OPSET}, the highest taken, has another {node.op_type}"
    return None


def _older(model: Model) -> tuple[Model, int]:
    """The model in an operator set that the toolkit reads, and the number of Gelus split."""
    given = model.clone()
    version = given.ir.opset_imports.get("", _OPSET)
    given.ir.opset_imports[""] = min(version, _OPSET)
    given.ir.ir_version = min(given.ir.ir_version, _IR_VERSION)
    gelus = [node for node in given.ir.graph if node.op_type == "Gelu"]
    for node in gelus:
        _split(given.ir.graph, node)
    return given, len(gelus)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Gelu(x) as x * (1 + Erf(x / sqrt 2)) / 2, or by its tanh form where the node says so."""
    import math

    import numpy as np
    import onnx_ir as ir

    x = node.inputs[0]
    made: list[ir.Node] = []

    def number(value: float) -> ir.Value:
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(value))})
        return step(constant)

    def step(new: ir.Node) -> ir.Value:
        new.outputs[0].name = f"{node.outputs[0].name}/gelu{len(made)}"
        new.name = new.outputs[0].name
        made.append(new)
        return new.outputs[0]

    def op(name: str, *inputs: ir.Value | None) -> ir.Value:
        return step(ir.node(name, list(inputs)))

    if node.attributes.get_string("approximate", "none") == "tanh":
        cubic = op("Mul", op("Mul", op("Mul", x, x), x), number(0.044715))
        inner = op("Tanh", op("Mul", op("Add", x, cubic), number(math.sqrt(2 / math.pi))))
    else:
        inner = op("Erf", op("Mul", x, number(1 / math.sqrt(2))))
    result = op("Mul", op("Mul", x, op("Add", inner, number(1))), number(0.5))
    given = node.outputs[0]
    result.type, result.shape = given.type, given.shape
    graph.insert_before(node, made)
    output, name = given.is_graph_output(), given.name
    ir.convenience.replace_all_uses_with(given, result, replace_graph_outputs=output)
    graph.remove(node, safe=True)
    if output:
        result.name = name
