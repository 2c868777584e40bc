"""``edgecompress doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.results import Diagnosis


@click.command(
    "doctor",
    short_help="Check this installation.",
    epilog="""\b
Example:
  edgecompress doctor
  edgecompress doctor --json""",
)
@common()
@click.pass_context
def command(context: click.Context, console: Console) -> None:
    """Check this installation; exit code 1 where something is wrong."""
    from edgecompress import api

    with console.work():
        result = api.doctor()
    console.show(result, lambda: _text(result))
    context.exit(0 if result.healthy else 1)


def _text(result: Diagnosis) -> str:
    width = max(len(check.name) for check in result.checks)
    lines = []
    for check in result.checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.cure:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.cure}")
    lines.append("all well" if result.healthy else "something is wrong")
    return "\n".join(lines)
