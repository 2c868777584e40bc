"""``edgecompress profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.values import as_mapping, shape_option

if TYPE_CHECKING:
    from edgecompress.results import ProfileResult


@click.command(
    "profile",
    short_help="Measure latency and memory on a target.",
    epilog="""\b
Example:
  edgecompress profile mobilenet.onnx --target cpu-x86-64 --threads 4
  edgecompress profile net.onnx --shape tokens=1x128""",
)
@click.argument("model")
@click.option("--target", default="host", show_default=True, help="Target name.")
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the target's.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size.")
@click.option(
    "--shape",
    "shapes",
    type=shape_option,
    metavar="INPUT=1x3x224x224",
    multiple=True,
    callback=as_mapping,
    help="Shape of an input with free dimensions; may be given several times.",
)
@common()
def command(
    console: Console,
    model: str,
    target: str,
    threads: int | None,
    batch: int,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Measure latency and memory of MODEL on the target's runtime."""
    from edgecompress import api

    with console.work() as progress:
        result = api.profile(
            model,
            target=target,
            threads=threads,
            batch=batch,
            shapes=shapes or None,
            progress=progress,
        )
    console.show(result, lambda: _text(result))


def _text(result: ProfileResult) -> str:
    from edgecompress.cli.texts import measurement, skipped

    lines = [f"{result.model} on {result.target}", measurement(result.measurement)]
    return "\n".join([*lines, *skipped("cannot run", result.unsupported)])
