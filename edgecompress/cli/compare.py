"""``edgecompress compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import labels, metric, text

if TYPE_CHECKING:
    from edgecompress.results import Comparison

_WORST = 15


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
    listed = (("output", result.outputs), ("worst nodes", result.nodes[:_WORST]))
    for title, nodes in listed:
        if nodes:
            rows = [[node.node, node.op, fmt.decibels(node.sqnr_db)] for node in nodes]
            parts.append(table([title, "op", "SQNR"], rows, align="llr"))
    rest = max(len(result.nodes) - _WORST, 0)
    parts.append(
        f"{result.rows} rows; {rest} more nodes in --json; "
        f"{result.unmatched} nodes of A have no counterpart in B"
    )
    return "\n\n".join(parts)
