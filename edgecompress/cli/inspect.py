"""``edgecompress inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.results import BlockInfo, Inspection


@click.command(
    "inspect",
    short_help="Show layers, blocks, costs, and which passes could compress them.",
    epilog="""\b
Example:
  edgecompress inspect mobilenet.onnx
  edgecompress inspect mobilenet.onnx --json | jq '.layers[].node'""",
)
@click.argument("model")
@common()
def command(console: Console, model: str) -> None:
    """Show the layers of MODEL, what they cost, and which passes could compress them.

    Blocks are the slices that data-driven passes work on one after the other; those of the same
    structure in a row are shown as one line.
    """
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
    if result.quantized_form is not None:
        lines.append(f"  quantized already: {result.quantized_form}")
    if result.unsupported:
        lines.append(f"  without torch translation: {', '.join(result.unsupported)}")
    if rows:
        lines += ["", table(headers, rows, align="lllrrrl")]
    if result.blocks:
        lines += ["", _blocks(result.blocks)]
    return "\n".join(lines)


def _blocks(blocks: list[BlockInfo]) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    rows = [
        [
            f"{len(alike)} x block of {alike[0].nodes} nodes" if len(alike) > 1 else alike[0].name,
            str(sum(block.nodes for block in alike)),
            str(sum(block.layers for block in alike)),
            fmt.count(sum(block.parameters for block in alike)),
            fmt.size(max(block.live_bytes for block in alike)),
            "onnxruntime" if any(block.opaque for block in alike) else "torch",
        ]
        for alike in _in_a_row(blocks)
    ]
    headers = ["block", "nodes", "layers", "parameters", "activations", "runs on"]
    return table(headers, rows, align="lrrrrl")


def _in_a_row(blocks: list[BlockInfo]) -> list[list[BlockInfo]]:
    """Neighbours of one structure together."""
    rows: list[list[BlockInfo]] = []
    for block in blocks:
        alike = rows and block.group is not None and rows[-1][-1].group == block.group
        if alike:
            rows[-1].append(block)
        else:
            rows.append([block])
    return rows


def _shape(dims: list[int | str | None] | None) -> str:
    return "[?]" if dims is None else f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
