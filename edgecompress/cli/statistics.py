"""``edgecompress statistics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import resources
from edgecompress.cli.values import as_mapping, input_option

if TYPE_CHECKING:
    from edgecompress.results import StatisticsResult


@click.command(
    "statistics",
    short_help="Show the ranges of a model's values over calibration rows.",
    epilog="""\b
Example:
  edgecompress statistics mobilenet.onnx --data calibration.npz
  edgecompress statistics llama.onnx --data recipe.toml --memory 2GB --names '*attn*'
  edgecompress statistics mobilenet.onnx --data recipe.toml --jobs 4 -o statistics.json
  edgecompress statistics mobilenet.onnx --data recipe.toml --jobs 8 --engine dask://head:8786""",
)
@click.argument("model")
@click.option(
    "--data",
    required=True,
    help="Rows: .npz, .npy, folder, file.py:function, or a recipe with a [data] table.",
)
@click.option(
    "--input",
    "inputs",
    type=input_option,
    metavar="INPUT=ARRAY",
    multiple=True,
    callback=as_mapping,
    help="Array that feeds an input, where it has another name; may be given several times.",
)
@click.option(
    "--names",
    metavar="PATTERN",
    multiple=True,
    help="Only values of such names; * and ? stand for any text and any letter.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Rows per batch, where neither the model nor a recipe says it.",
)
@resources
@click.option("-o", "--output", metavar="OUT.json", help="File to write, too.")
@common()
def command(
    console: Console,
    model: str,
    data: str,
    inputs: dict[str, str],
    names: tuple[str, ...],
    batch_size: int,
    output: str | None,
    **resources: Any,
) -> None:
    """Show lowest, highest and mean value of the values of MODEL over calibration rows."""
    from edgecompress import api

    with console.work() as progress:
        result = api.statistics(
            model,
            data=data,
            inputs=inputs,
            names=names,
            batch_size=batch_size,
            output=output,
            progress=progress,
            **resources,
        )
    console.show(result, lambda: _text(result))


def _text(result: StatisticsResult) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    rows = [
        [
            tensor.name,
            tensor.op,
            *map(fmt.number, (tensor.low, tensor.high, tensor.mean, tensor.rms)),
            fmt.count(tensor.count),
            "widest" if tensor.name in result.widest else "",
        ]
        for tensor in result.tensors
    ]
    headers = ["value", "op", "low", "high", "mean", "rms", "count", ""]
    return (
        f"{table(headers, rows, align='llrrrrrl')}\n\n"
        f"{len(rows)} values of {result.model} over {result.rows} rows of {result.data}"
    )
