"""``edgecompress build``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.options import resources

if TYPE_CHECKING:
    from edgecompress.results import Plan, PlannedCandidate


@click.command(
    "build",
    short_help="Build a recipe: compress, measure, judge the budgets.",
    epilog="""\b
Example:
  edgecompress build recipe.toml --dry-run
  edgecompress build recipe.toml -o out --json > report.json""",
)
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Check everything, show the steps, run none.")
@click.option("-o", "--output", help="Output folder; default: the recipe's.")
@resources
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@common()
@click.pass_context
def command(
    context: click.Context,
    /,
    console: Console,
    recipe: str,
    dry_run: bool,
    output: str | None,
    no_cache: bool,
    **resources: Any,
) -> None:
    """Build what RECIPE says: compress, measure, judge the budgets, write the output folder."""
    from edgecompress import api
    from edgecompress.report.data import Report
    from edgecompress.report.text import summary

    with console.work(resumable=not no_cache) as progress:
        result = api.build(
            recipe,
            output=output,
            dry_run=dry_run,
            use_cache=not no_cache,
            progress=progress,
            **resources,
        )
    if isinstance(result, Report):
        console.show(result, lambda: summary(result))
        context.exit(0 if result.status == "passed" else 1)
    console.show(result, lambda: _text(result))


def _passes(candidate: PlannedCandidate) -> str:
    return ", ".join(str(step["name"]) for step in candidate.passes)


def _text(plan: Plan) -> str:
    from edgecompress.report import format as fmt
    from edgecompress.report.text import table

    steps = [
        [step.name, "cached" if step.cached else "to run", fmt.plain(step.options)]
        for step in plan.steps
    ]
    measurable = "can be measured" if plan.measurable else f"not measured: {plan.measurable_reason}"
    lines = [
        f"source  {plan.source}",
        f"target  {plan.target}, {measurable}",
        f"data    {plan.calibration_rows} rows to calibrate, {plan.validation_rows} to validate on",
        f"metric  {plan.metric or 'none'}",
        f"budgets {fmt.plain(plan.budgets) if plan.budgets else 'none'}",
        f"output  {plan.output}",
    ]
    if steps:
        lines += ["", table(["step", "state", "options"], steps, align="lll")]
    if plan.candidates:
        candidates = [
            [each.name, "refused" if each.refused else "to try", each.refused or _passes(each)]
            for each in plan.candidates
        ]
        lines += ["", table(["candidate", "state", "passes"], candidates, align="lll")]
    return "\n".join(lines)
