"""``edgecompress compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import labels, metric, text

if TYPE_CHECKING:
    from edgecompress.results import Comparison

_MOST = 15


@click.command(
    "compare",
    short_help="Compare the outputs of two models, node by node.",
    epilog="""\b
Example:
  edgecompress compare mobilenet.onnx out/model.onnx --data validation.npz --metric top1
  edgecompress compare mobilenet.onnx out/model.onnx --data recipe.toml""",
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--data",
    required=True,
    help="Rows: .npz, .npy, folder, file.py:function, or a recipe with a [data] table.",
)
@labels
@text
@metric
@common()
def command(
    console: Console,
    a: str,
    b: str,
    data: str,
    labels: str | None,
    text: dict[str, Any],
    metric: str | None,
) -> None:
    """Compare the outputs of models A and B, and of their nodes, on the same rows."""
    from edgecompress import api

    with console.work() as progress:
        result = api.compare(
            a, b, data=data, labels=labels, text=text, metric=metric, progress=progress
        )
    console.show(result, lambda: _text(result))


def _text(result: Comparison) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    models = [
        [path, fmt.size(size), fmt.number(value)]
        for path, size, value in (
            (result.a, result.size_bytes_a, result.metric_a),
            (result.b, result.size_bytes_b, result.metric_b),
        )
    ]
    parts = [table(["model", "size", result.metric], models, align="lrr")]
    for title, nodes in (("output", result.outputs), ("worst nodes", result.nodes[:_MOST])):
        if nodes:
            rows = [
                [node.node, node.op, fmt.decibels(node.own_db), fmt.decibels(node.sqnr_db)]
                for node in nodes
            ]
            parts.append(table([title, "op", "made here", "arrives"], rows, align="llrr"))
    parts += [text for text in (_ranges(result), _channels(result), _keep(result)) if text]
    parts.append(_closing(result))
    return "\n\n".join(parts)


def _ranges(result: Comparison) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    rows = [
        [
            fit.value,
            f"{fmt.number(fit.low, 3)} to {fmt.number(fit.high, 3)}",
            fmt.percent(fit.clipped_low),
            fmt.percent(fit.clipped_high),
            fmt.percent(fit.unused),
            fit.fault,
        ]
        for fit in result.ranges
        if fit.fault is not None
    ]
    if not rows:
        return ""
    head = ["ranges at fault", "range", "below", "above", "unused", "fault"]
    return table(head, rows[:_MOST], align="lrrrrl")


def _channels(result: Comparison) -> str:
    from edgecompress.report.text import table

    rows = [
        [
            layer.node,
            layer.op,
            str(layer.channels),
            str(len(layer.dead)),
            str(len(layer.dead_in_both)),
        ]
        for layer in result.dead_channels
        if layer.dead
    ]
    head = ["dead channels", "op", "channels", "only in B", "in both"]
    return table(head, rows[:_MOST], align="llrrr") if rows else ""


def _keep(result: Comparison) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    if not result.keep_float:
        return ""
    rows = [
        [
            node.node,
            node.op,
            fmt.percent(node.share),
            f"+{fmt.size(node.extra_bytes)}",
            fmt.count(node.macs),
        ]
        for node in result.keep_float
    ]
    head = ["worth keeping in float", "op", "of the error", "bytes", "MACs"]
    lines = [
        "To keep them in float, add this to the pass that compressed them:",
        "",
        "[pass.nodes]",
        *(node.line for node in result.keep_float),
    ]
    return table(head, rows, align="llrrr") + "\n\n" + "\n".join(map(fmt.clean, lines))


def _closing(result: Comparison) -> str:
    both = sum(len(layer.dead_in_both) for layer in result.dead_channels)
    parts = [
        f"{result.rows} rows",
        f"{max(len(result.nodes) - _MOST, 0)} more nodes in --json",
        f"{result.unmatched} nodes of A have no counterpart in B",
        f"{both} channels are dead in both",
    ]
    return "; ".join(parts[:2]) + "\n" + "; ".join(parts[2:])
