"""Erf, which TFLite has no operator for, where it is not part of a Gelu."""

from __future__ import annotations

import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.registry import op
from edgecompress.litert_writer.translation import Translation

# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26; error below 1.5e-7.
_SLOPE = 0.3275911
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


@op("Erf")
def erf(t: Translation, node: ir.Node) -> None:
    """``sign(x) (1 - (((((a5 u + a4) u) + a3) u + a2) u + a1) u exp(-x^2))``, ``u = 1/(1 + p|x|)``.

    In float.
    """
    x = node.inputs[0]
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False)
    source, target = t.read(x, layout), t.output(plan, layout)

    def made(code: str, *inputs: Tensor | float, options: str = "") -> Tensor:
        result = t.fresh(f"{target.index};{code}{t.file.size}", source.shape, source.dtype)
        tensors = [t.number(each) if isinstance(each, float) else each for each in inputs]
        t.emit(code, tensors, [result], options)
        return result

    def times(a: Tensor, b: Tensor | float) -> Tensor:
        return made("MUL", a, b, options="MulOptions")

    def plus(a: Tensor, b: float) -> Tensor:
        return made("ADD", a, b, options="AddOptions")

    size = made("ABS", source, options="AbsOptions")
    u = made("DIV", 1.0, plus(times(size, _SLOPE), 1.0), options="DivOptions")
    polynomial = times(u, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        polynomial = times(plus(polynomial, coefficient), u)
    square = times(source, source)
    bell = made("EXP", made("NEG", square, options="NegOptions"), options="ExpOptions")
    rest = made("SUB", 1.0, times(polynomial, bell), options="SubOptions")
    sign = made("SIGN", source, options="SignOptions")
    t.emit("MUL", [rest, sign], [target], "MulOptions")
