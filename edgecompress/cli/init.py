"""``edgecompress init``."""

from __future__ import annotations

from pathlib import Path

import click

from edgecompress.cli.console import Console, common


@click.command(
    "init",
    short_help="Write a commented recipe.",
    epilog="""\b
Example:
  edgecompress init mobilenet.onnx --target cpu-x86-64 --data calibration.npz
  edgecompress init net.py:make_net -o recipes/net.toml""",
)
@click.argument("model")
@click.option("-o", "--output", default="recipe.toml", show_default=True, help="Recipe to write.")
@click.option("--target", default="host", show_default=True, help="Target name.")
@click.option("--data", help="Rows to calibrate on: .npz, .npy, folder, or file.py:function.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@common()
def command(
    console: Console, model: str, output: str, target: str, data: str | None, force: bool
) -> None:
    """Write a commented recipe for MODEL.

    MODEL is an .onnx or .pt2 file, or file.py:callable.
    """
    from edgecompress import api

    with console.work():
        file: Path = api.init(model, output=output, target=target, data=data, force=force)
    console.show({"path": str(file)}, lambda: f"wrote {file}")
    console.remark(f"next: edgecompress build {file}")
