"""``edgecompress targets``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.catalogue import TargetDescription


@click.command(
    "targets",
    short_help="List the targets, or show one.",
    epilog="""\b
Example:
  edgecompress targets
  edgecompress targets cpu-x86-64""",
)
@click.argument("name", required=False)
@common()
def command(console: Console, name: str | None) -> None:
    """List the targets, or show all that is known of one."""
    from edgecompress import api

    with console.work():
        found = api.targets(name)
    if name is None:
        console.show(found, lambda: _list(found))
    else:
        console.show(found[0], lambda: _one(found[0]))


def _int8(target: TargetDescription) -> str:
    int8 = target.profile.int8
    return "none" if int8 is None else f"{int8.activation} x int8"


def _other_formats(target: TargetDescription) -> list[tuple[str, str]]:
    profile = target.profile
    weights, half = profile.weight_only, profile.half
    bits = "none"
    if weights is not None:
        tables = ", ".join(map(str, weights.embedding_bits)) or "no"
        bits = f"{', '.join(map(str, weights.bits))} bits ({weights.layout}), tables {tables} bits"
    kept = "none"
    if half is not None:
        kept = f"{half.dtype}, {'computed in' if half.native else 'stored only'}"
    return [
        ("wide activations", profile.wide_activation or "none"),
        ("dynamic int8", "yes" if profile.dynamic_int8 else "no"),
        ("weights alone", bits),
        ("half precision", kept),
    ]


def _list(found: list[TargetDescription]) -> str:
    from edgecompress.report.text import table

    rows = [
        [
            target.profile.name,
            target.profile.provider,
            _int8(target),
            "yes" if target.measurable else "no",
            target.profile.description,
        ]
        for target in found
    ]
    headers = ["target", "provider", "int8", "measurable here", "what it is"]
    return table(headers, rows, align="lllll", whole_names=True)


def _one(target: TargetDescription) -> str:
    from edgecompress.report import format as fmt

    profile = target.profile
    measurable = "yes" if target.measurable else f"no: {target.reason}"
    lines = [
        f"{profile.name}: {profile.description}",
        f"  runtime          {profile.runtime}, {profile.provider}",
        f"  opsets           {profile.opset_min} to {profile.opset_max}",
        f"  int8             {_int8(target)}",
        *(f"  {name:<16} {value}" for name, value in _other_formats(target)),
        f"  measurable here  {measurable}",
        f"  measurement      {fmt.plain(profile.measurement.model_dump())}",
    ]
    if profile.int8_note:
        lines.append(f"  int8 note        {profile.int8_note}")
    for fact in profile.facts:
        value = f"{fmt.plain(fact.value)} {fact.unit}".strip()
        lines += ["", f"  {fact.name}: {value} ({fact.confidence})", f"    {fact.source}"]
        if fact.note:
            lines.append(f"    {fact.note}")
    return "\n".join(lines)
