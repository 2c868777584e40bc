"""``edgecompress compress``."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import labels, metric, resources, text
from edgecompress.cli.values import as_mapping, budget_option, pass_option


@click.command(
    "compress",
    short_help="Compress a model without a recipe file.",
    epilog="""\b
Example:
  edgecompress compress mobilenet.onnx -p cleanup -p quantize:method=mse \\
      --data calibration.npz --budget size_mb=3 -o out
  edgecompress compress ./minilm -p cleanup -p quantize --data sts.tsv --labels 5 \\
      --text texts=6,7 --text max_length=128 -o out""",
)
@click.argument("model")
@click.option(
    "-p",
    "--pass",
    "passes",
    type=pass_option,
    metavar="NAME[:OPTION=VALUE,...]",
    multiple=True,
    required=True,
    help="A pass and its options; may be given several times, in order.",
)
@click.option("--data", help="Rows to calibrate on, and to validate on without --validation.")
@click.option("--validation", help="Rows to validate on.")
@labels
@text
@metric
@click.option("--target", default="host", show_default=True, help="Target name.")
@click.option(
    "--budget",
    "budgets",
    type=budget_option,
    metavar="NAME=NUMBER",
    multiple=True,
    callback=as_mapping,
    help="Such as latency_ms=5, size_ratio=0.3, metric_drop=0.01; may be given several times.",
)
@click.option("-o", "--output", required=True, help="Output folder.")
@resources
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@common()
@click.pass_context
def command(
    context: click.Context,
    /,
    console: Console,
    model: str,
    passes: tuple[tuple[str, dict[str, Any]], ...],
    no_cache: bool,
    **options: Any,
) -> None:
    """Compress MODEL without a recipe file."""
    from edgecompress import api
    from edgecompress.report.text import summary

    with console.work(resumable=not no_cache) as progress:
        report = api.compress(model, passes, use_cache=not no_cache, progress=progress, **options)
    console.show(report, lambda: summary(report))
    context.exit(0 if report.status == "passed" else 1)
