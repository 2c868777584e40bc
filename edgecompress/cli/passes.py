"""``edgecompress passes``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.catalogue import PassDescription


@click.command(
    "passes",
    short_help="List the passes, or show the options of one.",
    epilog="""\b
Example:
  edgecompress passes
  edgecompress passes quantize""",
)
@click.argument("name", required=False)
@common()
def command(console: Console, name: str | None) -> None:
    """List the passes, or show the options of one."""
    from edgecompress import api

    with console.work():
        found = api.passes(name)
    if name is None:
        console.show(found, lambda: _list(found))
    else:
        console.show(found[0], lambda: _one(found[0]))


def _list(found: list[PassDescription]) -> str:
    from edgecompress.report.text import table

    rows = [[each.name, each.needs, each.summary] for each in found]
    return table(["pass", "needs", "what it does"], rows, align="lll", whole_names=True)


def _one(found: PassDescription) -> str:
    lines = [f"{found.name}: {found.summary}", f"  needs {found.needs}", ""]
    for option, schema in found.options.items():
        default = "required" if option in found.required else f"default {_default(schema)}"
        lines.append(f"  {option}: {_type(schema)}, {default}")
        if "description" in schema:
            text = schema["description"].replace("``", "")
            indent = "      "
            lines.append(
                click.wrap_text(text, width=96, initial_indent=indent, subsequent_indent=indent)
            )
    return "\n".join(lines)


def _default(schema: dict[str, Any]) -> str:
    return json.dumps(schema.get("default", {}), ensure_ascii=False)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type(each) for each in schema["anyOf"])
    names = {"object": "table", "array": "list"}
    return str(names.get(schema.get("type", "any"), schema.get("type", "any")))
