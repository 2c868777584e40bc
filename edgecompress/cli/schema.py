"""``edgecompress schema``."""

from __future__ import annotations

import json

import click

from edgecompress.cli.console import Console, common


@click.command(
    "schema",
    short_help="Print the JSON Schema of recipes.",
    epilog="""\b
Example:
  edgecompress schema > recipe.schema.json""",
)
@common()
def command(console: Console) -> None:
    """Print the JSON Schema of recipes, with the options of all installed passes."""
    from edgecompress import api

    with console.work():
        schema = api.schema()
    console.show(schema, lambda: json.dumps(schema, indent=2, ensure_ascii=False))
