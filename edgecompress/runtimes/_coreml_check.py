"""Holding a CoreML package against the model that it was made of, without running it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.model import Model

__all__ = ["check_package", "plain_name"]

# Smaller constants are folded into others too often to be looked for.
_LEAST_WEIGHT = 64
_HALF_STEP = 2.0**-10
_HALF_LARGEST = 65504.0


def plain_name(name: str) -> str:
    """A name that CoreML takes for an input or output."""
    plain = re.sub(r"\W", "_", name)
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"


def check_package(model: Model, package: Path, *, half: bool) -> list[str]:
    """Hold a package against the model that it was made of.

    Args:
        model: The float model, with fixed shapes.
        package: The ``.mlpackage``.
        half: Whether weights were rounded to float16.

    Returns:
        What was found, a sentence each.

    Raises:
        ValueError: Inputs, outputs or weights differ.
    """
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    opened = ct.models.MLModel(str(package), skip_model_load=True)
    spec = opened.get_spec()
    program = load(
        spec,
        specification_version=spec.specificationVersion,
        file_weights_dir=opened.weights_dir,
    )
    _check_side(model.signature.inputs, spec.description.input, "inputs")
    _check_side(model.signature.outputs, spec.description.output, "outputs")
    (function,) = program.functions.values()
    operations = list(function.operations)
    counts = Counter(op.op_type for op in operations if op.op_type != "const")
    constants = [op.outputs[0].val for op in operations if op.op_type == "const"]
    found, numbers = _check_weights(model, constants, half)
    table = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    kind = "float16" if half else "float32"
    return [
        f"checked, not run: inputs, outputs, {found} weights ({numbers} numbers) agree to {kind}",
        f"{sum(counts.values())} operations: {table}",
    ]


def _check_side(specs: Any, described: Any, side: str) -> None:
    wanted = [(plain_name(spec.name), tuple(spec.shape or ())) for spec in specs]
    got = [(each.name, tuple(each.type.multiArrayType.shape)) for each in described]
    # Either may leave shapes of outputs open.
    if [name for name, _ in wanted] != [name for name, _ in got] or any(
        shape != expected
        for (_, expected), (_, shape) in zip(wanted, got, strict=True)
        if shape and expected and all(isinstance(dim, int) for dim in expected)
    ):
        raise ValueError(f"expected the {side} {wanted}, the package has {got}")


def _check_weights(model: Model, constants: list[Any], half: bool) -> tuple[int, int]:
    """Look for each large weight, in any layout, among the constants."""
    import numpy as np

    step, largest = (_HALF_STEP, _HALF_LARGEST) if half else (1e-6, np.inf)
    by_size: dict[int, list[npt.NDArray[np.float32]]] = defaultdict(list)
    for constant in constants:
        if isinstance(constant, np.ndarray) and constant.dtype.kind == "f":
            by_size[constant.size].append(np.sort(constant.astype(np.float32), axis=None))
    found = numbers = 0
    for name, weight in _weights(model):
        values = np.clip(np.sort(weight.astype(np.float32), axis=None), -largest, largest)
        tolerance = step * np.abs(values) + (6e-8 if half else 0)
        if not any((np.abs(other - values) <= tolerance).all() for other in by_size[values.size]):
            raise ValueError(f"the weight {name!r} {list(weight.shape)} is not in the package")
        found += 1
        numbers += values.size
    return found, numbers


def _weights(model: Model) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Large float weights; not those that only make other constants, such as position tables."""
    import onnx_ir as ir

    from edgecompress.runtimes._placement import constant_nodes

    nodes = list(model.ir.graph)
    folded = {id(nodes[place]) for place in constant_nodes(nodes)}
    for name, value in model.ir.graph.initializers.items():
        tensor = value.const_value
        floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        if tensor is None or tensor.dtype not in floats or tensor.size < _LEAST_WEIGHT:
            continue
        if any(id(use.node) not in folded for use in value.uses()):
            yield name, tensor.numpy()
