"""``edgecompress profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common
from edgecompress.cli.values import as_mapping, dims_option, shapes_option

if TYPE_CHECKING:
    from edgecompress.report.profile_data import ProfileResult, ProfileTable
    from edgecompress.target import TargetProfile


@click.command(
    "profile",
    short_help="Measure latency and memory on targets.",
    epilog="""\b
Example:
  edgecompress profile mobilenet.onnx --target cpu-x86-64 --threads 4
  edgecompress profile float.onnx int8.onnx --target host --target openvino-cpu --page out.html
  edgecompress profile net.onnx --target raspberry-pi-5 --device ssh://pi@kitchen
  edgecompress profile text.onnx --dim sequence=16,64,128
  edgecompress profile --save-target my-laptop.toml""",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("host",),
    show_default=True,
    help="Target name; may be given several times.",
)
@click.option(
    "--device",
    help="Where to measure: local, ssh://user@host, adb:SERIAL, browser, arm64; "
    "default: the target's own.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the target's.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size.")
@click.option(
    "--shape",
    "shapes",
    type=shapes_option,
    metavar="INPUT=1x3x224x224[,...]",
    multiple=True,
    callback=as_mapping,
    help="Shapes of an input with free dimensions; each is measured.",
)
@click.option(
    "--dim",
    "dims",
    type=dims_option,
    metavar="NAME=16,64,128",
    multiple=True,
    callback=as_mapping,
    help="Numbers for a symbolic dimension of the inputs; each is measured.",
)
@click.option("--data", help="Real rows to run on: .npz, .npy, folder, recipe.")
@click.option("--page", metavar="FILE.html", help="Write the table with all details as a page.")
@click.option(
    "--save-target",
    metavar="NAME.toml",
    help="Write a target of this machine, with its measured speed.",
)
@common()
@click.pass_context
def command(
    context: click.Context,
    console: Console,
    models: tuple[str, ...],
    targets: tuple[str, ...],
    device: str | None,
    threads: int | None,
    batch: int,
    shapes: dict[str, tuple[tuple[int, ...], ...]],
    dims: dict[str, tuple[int, ...]],
    data: str | None,
    page: str | None,
    save_target: str | None,
) -> None:
    """Measure latency and memory of MODELs on the targets' runtimes.

    Outputs are held against onnxruntime's. Exit code 1 where they differ, or where a target does
    not take a model.
    """
    from edgecompress.api import profiling

    if not models and save_target is None:
        raise click.UsageError("Missing argument 'MODEL'.", context)
    if save_target is not None:
        with console.work() as progress:
            written = profiling.save_target(save_target, progress=progress)
        if not models:
            console.show(written, lambda: _saved(save_target, written))
            return
    with console.work() as progress:
        found = profiling.profiles(
            models,
            targets=targets,
            device=device,
            threads=threads,
            batch=batch,
            shapes=shapes or None,
            dims=dims or None,
            data=data,
            page=page,
            progress=progress,
        )
    console.show(found, lambda: _text(found))
    context.exit(0 if found.passed else 1)


def _saved(file: str, profile: TargetProfile) -> str:
    return f"wrote {file}: {profile.description}\nuse it with --target {file}"


def _text(found: ProfileTable) -> str:
    from edgecompress.report import profile_table

    if len(found.rows) > 1:
        return profile_table.as_text(found)
    return _one(found.rows[0])


def _one(row: ProfileResult) -> str:
    from edgecompress.cli.texts import measurement
    from edgecompress.report import profile_table

    place = row.target if row.device == "local" else f"{row.target} at {row.device}"
    lines = [f"{row.model} on {place}", measurement(row.measurement)]
    if row.agreement is not None:
        lines.append(f"outputs  {profile_table.outputs_text(row)} ({row.agreement.reference})")
    return "\n".join([*lines, *profile_table.details(row, basis=False)])
