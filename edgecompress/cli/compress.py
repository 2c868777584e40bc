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
  edgecompress compress mobilenet.onnx --data calibration.npz --metric-drop 0.005 -o out
  edgecompress compress ./minilm --data sts.tsv --labels 5 --text texts=6,7 \\
      --objective size --max-minutes 30 -o out
  edgecompress compress mobilenet.onnx -p cleanup -p quantize:method=mse \\
      --data calibration.npz --budget size_mb=3 -o out""",
)
@click.argument("model")
@click.option(
    "-p",
    "--pass",
    "passes",
    type=pass_option,
    metavar="NAME[:OPTION=VALUE,...]",
    multiple=True,
    help="Run exactly these passes, in order, in place of a search; may be given several times.",
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
@click.option(
    "--metric-drop",
    type=float,
    metavar="NUMBER",
    help="By how much the metric may get worse: short for --budget metric_drop=NUMBER.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "size"]),
    help="What a search wants the least of; default: latency, and size among equals.",
)
@click.option(
    "--candidate",
    "candidates",
    metavar="NAME",
    multiple=True,
    help="Search among these only: static, equalized, mixed, dynamic, weights8, weights4, half.",
)
@click.option(
    "--max-minutes",
    type=float,
    metavar="NUMBER",
    help="Deliver the best file that a search has found in this time.",
)
@click.option("--no-give-back", is_flag=True, help="Let a search return no single nodes to float.")
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
    budgets: dict[str, float],
    metric_drop: float | None,
    objective: str | None,
    candidates: tuple[str, ...],
    max_minutes: float | None,
    no_give_back: bool,
    **options: Any,
) -> None:
    """Compress MODEL without a recipe file.

    Without -p, candidates that suit the target (static and dynamic int8, mixed, weights alone,
    16-bit floating point) are built, judged by the metric and measured in turn with the float
    model. The best that keeps all budgets is delivered, and never one that is slower than float.
    """
    from edgecompress import api
    from edgecompress.report.text import summary

    if metric_drop is not None:
        if "metric_drop" in budgets:
            raise click.UsageError("--metric-drop and --budget metric_drop say the same: give one")
        budgets = {**budgets, "metric_drop": metric_drop}
    search = _search(objective, candidates, max_minutes, no_give_back)
    if passes and search:
        raise click.UsageError(
            "-p names the passes, and --objective, --candidate, --max-minutes and --no-give-back "
            "are for a search: give one or the other"
        )
    with console.work(resumable=not no_cache) as progress:
        report = api.compress(
            model,
            passes or None,
            search=search or None,
            budgets=budgets,
            use_cache=not no_cache,
            progress=progress,
            **options,
        )
    console.show(report, lambda: summary(report))
    context.exit(0 if report.status == "passed" else 1)


def _search(
    objective: str | None,
    candidates: tuple[str, ...],
    max_minutes: float | None,
    no_give_back: bool,
) -> dict[str, Any]:
    """The keys of ``[search]`` that were given."""
    given: dict[str, Any] = {
        "objective": objective,
        "candidates": list(candidates) or None,
        "max_minutes": max_minutes,
        "give_back": False if no_give_back else None,
    }
    return {key: value for key, value in given.items() if value is not None}
