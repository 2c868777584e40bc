"""``edgecompress inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.results import Inspection


@click.command(
    "inspect",
    short_help="Show layers, costs, and which passes could compress them.",
    epilog="""\b
Example:
  edgecompress inspect mobilenet.onnx
  edgecompress inspect mobilenet.onnx --json | jq '.layers[].node'""",
)
@click.argument("model")
@common()
def command(console: Console, model: str) -> None:
    """Show the layers of MODEL, what they cost, and which passes could compress them."""
    from edgecompress import api

    with console.work():
        result = api.inspect(model)
    console.show(result, lambda: _text(result))


def _text(result: Inspection) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    rows = [
        [
            layer.node,
            layer.op,
            "x".join(map(str, layer.weight_shape or ())),
            fmt.count(layer.parameters),
            fmt.size(layer.bytes),
            fmt.count(layer.macs),
            " ".join(layer.passes),
        ]
        for layer in result.layers
    ]
    headers = ["layer", "op", "weight", "parameters", "bytes", "MACs", "passes"]
    operators = ", ".join(f"{op} {count}" for op, count in result.operators.items())
    lines = [
        f"{result.path}: opset {result.opset}, {fmt.size(result.size_bytes)}, {result.producer}",
        *(
            f"  {side.removesuffix('s')} {spec['name']}: {spec['dtype']}{_shape(spec['shape'])}"
            for side, specs in result.signature.items()
            for spec in specs
        ),
        f"  {result.nodes} nodes: {operators}",
        f"  {fmt.count(result.parameters)} parameters, {fmt.count(result.macs)} MACs at batch 1",
    ]
    if result.already_quantized:
        lines.append("  holds quantized operators already")
    if result.unsupported:
        lines.append(f"  without torch translation: {', '.join(result.unsupported)}")
    if rows:
        lines += ["", table(headers, rows, align="lllrrrl")]
    return "\n".join(lines)


def _shape(dims: list[int | str | None] | None) -> str:
    return "[?]" if dims is None else f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
