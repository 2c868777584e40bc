"""``edgecompress validate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import labels, metric, text
from edgecompress.cli.values import as_mapping, budget_option

if TYPE_CHECKING:
    from edgecompress.results import ValidationResult


@click.command(
    "validate",
    short_help="Judge a model against budgets.",
    epilog="""\b
Example:
  edgecompress validate out/model.onnx --budget latency_ms=5 --budget size_mb=3
  edgecompress validate out/model.onnx --reference mobilenet.onnx \\
      --data validation.npz --metric top1 --budget metric_drop=0.01""",
)
@click.argument("model")
@click.option("--target", default="host", show_default=True, help="Target name.")
@click.option(
    "--budget",
    "budgets",
    type=budget_option,
    metavar="NAME=NUMBER",
    multiple=True,
    required=True,
    callback=as_mapping,
    help="Such as latency_ms=5 or size_mb=3; may be given several times.",
)
@click.option("--reference", metavar="FLOAT.onnx", help="The float model, for ratios and drops.")
@click.option("--data", help="Rows to validate on: .npz, .npy, folder, file.py:function, recipe.")
@labels
@text
@metric
@common()
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    model: str,
    target: str,
    budgets: dict[str, float],
    reference: str | None,
    data: str | None,
    labels: str | None,
    text: dict[str, Any],
    metric: str | None,
) -> None:
    """Judge MODEL against budgets; exit code 1 where one is not met."""
    from edgecompress import api

    with console.work() as progress:
        result = api.validate(
            model,
            target=target,
            budgets=budgets,
            reference=reference,
            data=data,
            labels=labels,
            text=text,
            metric=metric,
            progress=progress,
        )
    console.show(result, lambda: _text(result))
    context.exit(0 if result.passed else 1)


def _text(result: ValidationResult) -> str:
    from edgecompress.cli.texts import budgets, measurement
    from edgecompress.report import format as fmt
    from edgecompress.report.agreement import departure_lines

    lines = [f"{result.model} on {result.target}", measurement(result.measurement)]
    if result.metric is not None:
        lines.append(
            f"{result.metric}: {fmt.number(result.metric_value)}, "
            f"reference {fmt.number(result.reference_metric)}"
        )
    if result.coverage is not None:
        lines.append(f"fusion coverage: {result.coverage.fused} of {result.coverage.claimed} nodes")
    if result.agreement is not None:
        lines += departure_lines(result.agreement)
    lines += ["", budgets(result.budgets), "", "PASSED" if result.passed else "FAILED"]
    return "\n".join(lines)
