"""``edgecompress export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompress.cli.console import Console, common

if TYPE_CHECKING:
    from edgecompress.results import ExportResult


@click.command(
    "export",
    short_help="Turn a torch or transformers source into an ONNX file.",
    epilog="""\b
Example:
  edgecompress export net.py:make_net -o net.onnx
  edgecompress export net.pt2 -o net.onnx --static-batch
  edgecompress export path/to/bert -o bert.onnx""",
)
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="File to write.")
@click.option("--opset", default=20, show_default=True, help="ONNX operator set.")
@click.option("--static-batch", is_flag=True, help="Keep the batch size of the example inputs.")
@common()
def command(console: Console, source: str, output: str, opset: int, static_batch: bool) -> None:
    """Turn SOURCE into an ONNX file, checked against torch.

    SOURCE is file.py:callable, module:callable, a .pt2 file, or a folder of transformers or
    sentence-transformers (package:name/path for one inside an installed package).
    """
    from edgecompress import api

    with console.work() as progress:
        result = api.export(
            source, output, opset=opset, static_batch=static_batch, progress=progress
        )
    console.show(result, lambda: _text(result))


def _text(result: ExportResult) -> str:
    from edgecompress.report import format as fmt

    line = f"wrote {', '.join(result.files)}: opset {result.opset}, {fmt.size(result.size_bytes)}"
    if result.export_error is not None:
        line += f", largest relative error against torch {result.export_error:.1e}"
    return line
