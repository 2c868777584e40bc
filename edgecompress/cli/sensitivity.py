"""``edgecompress sensitivity``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import resources
from edgecompress.cli.values import as_mapping, input_option

if TYPE_CHECKING:
    from edgecompress.results import SensitivityResult


@click.command(
    "sensitivity",
    short_help="Show what each layer would lose in each format of a target.",
    epilog="""\b
Example:
  edgecompress sensitivity mobilenet.onnx --data calibration.npz --loss kl
  edgecompress sensitivity minilm.onnx --data recipe.toml --format w8a8 --format w4
  edgecompress sensitivity mobilenet.onnx --data recipe.toml -o sensitivity.json""",
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
@click.option("--target", default="host", show_default=True, help="Name of the target.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["w8a8", "w8", "w4"]),
    multiple=True,
    help="Only this format; may be given several times. Default: what the target takes.",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Rows to measure on, about.",
)
@click.option(
    "--loss",
    type=click.Choice(["kl", "squared"]),
    help="KL divergence of logits, or squared error. Default: by what the outputs are.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Rows per batch of the ranges, where neither the model nor a recipe says it.",
)
@resources
@click.option("-o", "--output", metavar="OUT.json", help="File to write, too.")
@common()
def command(
    console: Console,
    model: str,
    data: str,
    inputs: dict[str, str],
    target: str,
    formats: tuple[Literal["w8a8", "w8", "w4"], ...],
    rows: int,
    loss: Literal["kl", "squared"] | None,
    batch_size: int,
    output: str | None,
    **resources: Any,
) -> None:
    """Show what each layer of MODEL, alone in each format of a target, would lose."""
    from edgecompress import api

    with console.work() as progress:
        result = api.sensitivity(
            model,
            data=data,
            inputs=inputs,
            target=target,
            formats=formats,
            rows=rows,
            loss=loss,
            batch_size=batch_size,
            output=output,
            progress=progress,
            **resources,
        )
    console.show(result, lambda: _text(result))


def _text(result: SensitivityResult) -> str:
    from edgecompress.report.sensitivity import columns
    from edgecompress.report.text import table

    found = result.sensitivity
    headings, rows = columns(found)
    closing = (
        f"{len(rows)} nodes of {result.model} for {result.target} on {found.rows} {found.split} "
        f"rows; expected loss: {found.unit}"
    )
    notes = [f"note: {remark}" for remark in found.remarks]
    shown = table(headings, rows, align=f"ll{'r' * (len(headings) - 2)}")
    return "\n\n".join([shown, closing, *notes])
