"""Whether a runtime computes what the ONNX file says.

Converters report success and answer wrongly more often than one would think, so the outputs of each
prepared file are held against those of onnxruntime on the same inputs. Where they differ by more
than the number format allows, the graph is cut shorter and shorter, and the first node behind which
the runtime departs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgecompress.agreement import Agreement, Divergence, OutputDifference
from edgecompress.errors import MeasurementError, ModelError
from edgecompress.model import Model
from edgecompress.rewrite import infer_shapes

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = ["agree", "cut_behind", "difference", "reference_outputs", "without_activation_pairs"]

Outputs = Callable[[Model], "Arrays"]
"""Outputs of a model on the target, on the inputs at hand."""

# Runtimes approximate exp, erf and tanh, and sum in other orders: 1.1e-3 was seen in an encoder.
# Conversions that are wrong are off by half of the output and more.
_FLOAT = 5e-3
_HALF = 3e-2
_INTEGER = 0.1
_FREEDOM = 3.0
_HALF_NAMES = ("float16", "fp16", "f16", "bfloat16", "bf16")
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def reference_outputs(
    model: Model, feeds: Arrays, profile: TargetProfile, *, literal: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """What onnxruntime's CPU provider computes, with the integer kernels of the target's processor.

    Args:
        model: The model.
        feeds: Its inputs.
        profile: The target.
        literal: Compute every node as it stands, without optimizations: QuantizeLinear and
            DequantizeLinear around float operators.

    Raises:
        MeasurementError: onnxruntime cannot run it.
    """
    from edgecompress.files import ScratchFolder

    with ScratchFolder() as folder:
        file = folder / "reference.onnx"
        model.save(file)
        try:
            session = _session(file, profile, literal)
            taken = {each.name for each in session.get_inputs()}
            names = [output.name for output in session.get_outputs()]
            return dict(
                zip(
                    names,
                    session.run(names, {n: a for n, a in feeds.items() if n in taken}),
                    strict=True,
                )
            )
        except Exception as error:
            raise MeasurementError(
                f"onnxruntime could not run the reference: {error}",
                where=str(model.path or "model"),
            ) from error


def _session(file: Path, profile: TargetProfile, literal: bool) -> Any:
    import onnxruntime as ort

    from edgecompress.runtimes._session import INT8_ON_X86, open_session
    from edgecompress.target import machine_arch

    if literal:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    foreign = profile.device.arch == "aarch64" and machine_arch() == "x86_64"
    config = INT8_ON_X86 if foreign else None
    return open_session(file, provider="CPUExecutionProvider", threads=1, config=config)


def agree(
    model: Model, outputs: Outputs, feeds: Arrays, profile: TargetProfile, *, half: bool = False
) -> Agreement:
    """Hold a target's outputs against those of onnxruntime.

    Args:
        model: The model.
        outputs: Runs a model on the target; called again with shorter ones where they differ.
        feeds: The inputs that ``outputs`` uses.
        profile: The target.
        half: Its runtime computes in 16 bits unless ``options.precision`` says otherwise.

    Raises:
        MeasurementError: The target cannot run the model.
    """
    import onnxruntime

    got = outputs(model)
    expected = reference_outputs(model, feeds, profile)
    allowed, basis = _allowed(model, feeds, profile, expected, half)
    found = [difference(name, expected[name], got.get(name)) for name in expected]
    reference = f"onnxruntime {onnxruntime.__version__}"
    if _exceeds(found, allowed) and (weights_only := without_activation_pairs(model)):
        # A runtime that keeps activations in float computes what the file stands for, too.
        in_float = reference_outputs(weights_only, feeds, profile)
        against_float = [difference(name, in_float[name], got.get(name)) for name in in_float]
        if not _exceeds(against_float, allowed):
            found, reference = against_float, f"{reference}, activations in float"
    passed = not _exceeds(found, allowed)
    return Agreement(
        passed=passed,
        reference=reference,
        allowed=allowed,
        basis=basis,
        outputs=found,
        divergence=None if passed else _first(model, outputs, feeds, profile, allowed),
    )


def difference(
    name: str, expected: npt.NDArray[Any], got: npt.NDArray[Any] | None
) -> OutputDifference:
    """How far an output is from the reference; infinitely where its shape differs."""
    if got is None or got.shape != expected.shape:
        return OutputDifference(name=name, cosine=0.0, relative_error=np.inf, largest=np.inf)
    if expected.dtype.kind in "iubSUO":
        wrong = np.asarray(got.ravel() != expected.ravel())
        share = float(wrong.mean()) if wrong.size else 0.0
        return OutputDifference(name=name, cosine=1 - share, relative_error=share, largest=share)
    a, b = expected.ravel().astype(np.float64), got.ravel().astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))  # also infinities, which padding masks hold
    a, b = np.where(same & ~np.isfinite(a), 0, a), np.where(same & ~np.isfinite(b), 0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return OutputDifference(name=name, cosine=0.0, relative_error=np.inf, largest=np.inf)
    norm, other = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    apart = float(np.linalg.norm(a - b))
    cosine = float(a @ b / (norm * other)) if norm and other else float(norm == other)
    return OutputDifference(
        name=name,
        cosine=cosine,
        relative_error=apart / norm if norm else apart,
        largest=float(np.abs(a - b).max(initial=0.0)),
    )


def _exceeds(found: list[OutputDifference], allowed: float) -> bool:
    return any(not each.relative_error <= allowed for each in found)


def _allowed(
    model: Model, feeds: Arrays, profile: TargetProfile, expected: Arrays, half: bool
) -> tuple[float, str]:
    """The largest relative error that the number format explains, and why so much."""
    precision = str(profile.options.get("precision", ""))
    native_half = profile.half is not None and profile.half.native
    if (half and not precision) or native_half or precision in _HALF_NAMES:
        limit, basis = _HALF, "16-bit floating point"
    else:
        limit, basis = _FLOAT, "32-bit floating point"
    if not any(node.op_type in _QUANTIZERS for node in model.ir.graph.all_nodes()):
        return limit, basis
    # Integer kernels round where the graph, taken literally, does not: that much is theirs.
    literal = reference_outputs(model, feeds, profile, literal=True)
    own = max(difference(n, literal[n], np.asarray(expected[n])).relative_error for n in literal)
    allowed = max(limit, _INTEGER, min(_FREEDOM * own, 0.5))
    return allowed, "8-bit integers: three times what fusing them changes, at least 10 %"


def without_activation_pairs(model: Model) -> Model | None:
    """A copy whose activations stay float where the graph quantizes them; None where none are."""
    stripped = model.clone()
    pairs = [
        (node, producer)
        for node in stripped.ir.graph
        if node.op_type == "DequantizeLinear"
        and (source := node.inputs[0]) is not None
        and (producer := source.producer()) is not None
        and producer.op_type == "QuantizeLinear"
        and producer.inputs[0] is not None
        and not producer.inputs[0].is_initializer()
    ]
    for node, producer in pairs:
        value, source = node.outputs[0], producer.inputs[0]
        if source is not None and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, source)
    return stripped if pairs else None


def _first(
    model: Model, outputs: Outputs, feeds: Arrays, profile: TargetProfile, allowed: float
) -> Divergence | None:
    """By bisection over the nodes: cut behind a node, does the target still agree?"""
    infer_shapes(model := model.clone())
    nodes = [node for node in model.ir.graph if _can_be_cut(node)]
    low, high = -1, len(nodes) - 1
    worst: float | None = None
    said = "cut behind it, the outputs differ; cut before it, they agree"
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            cut = cut_behind(model, nodes[middle])
            got, expected = outputs(cut), reference_outputs(cut, feeds, profile)
            errors = [difference(n, expected[n], got.get(n)).relative_error for n in expected]
        except (MeasurementError, ModelError, ValueError) as error:
            errors, said = [np.inf], f"cut behind it, the target fails: {error}"
        if not max(errors) <= allowed:
            high, worst = middle, max(errors)
        else:
            low = middle
    if not nodes:
        return None
    node = nodes[high]
    name = node.name or node.outputs[0].name or ""
    return Divergence(node=name, op=node.op_type, relative_error=worst, detail=said)


def _can_be_cut(node: ir.Node) -> bool:
    value = node.outputs[0]
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) and not (
        node.op_type == "DequantizeLinear" and _is_constant(node.inputs[0])
    )


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def cut_behind(model: Model, node: ir.Node) -> Model:
    """The part of a model that computes a node's first output, with the inputs that it needs.

    Raises:
        ValueError: The node is not in the main graph.
    """
    name = node.outputs[0].name
    whole = model.clone().ir
    weights = whole.graph.initializers
    inputs = [str(value.name) for value in whole.graph.inputs if value.name not in weights]
    graph = ir.convenience.extract(whole.graph, inputs, [str(name)])
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    short = ir.Model(graph, ir_version=whole.ir_version, functions=list(whole.functions.values()))
    short.graph.opset_imports.update(whole.opset_imports)
    return Model(short, path=model.path, steps=model.steps)
