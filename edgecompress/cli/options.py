"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgecompress.cli.values import as_mapping, bytes_option, text_option

__all__ = ["labels", "metric", "resources", "text"]

F = TypeVar("F", bound=Callable[..., Any])

metric = click.option(
    "--metric",
    help="top1, top5, f1, spearman, perplexity, cosine, sqnr and others, or file.py:function.",
)

labels = click.option("--labels", help="Name of the array or column of labels, or its number.")

text = click.option(
    "--text",
    type=text_option,
    metavar="KEY=VALUE",
    multiple=True,
    callback=as_mapping,
    help="Rows that are text: text=COLUMN, texts=COLUMN,COLUMN or pair=COLUMN,COLUMN; "
    "max_length=N, tokenizer=FOLDER; may be given several times.",
)

_RESOURCES = (
    click.option(
        "--memory",
        type=bytes_option,
        metavar="BYTES",
        help="Such as 2GB: about what weights and activations may take; the rest is in files.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(1),
        metavar="N",
        help="Processes that share the calibration rows; the numbers stay the same.",
    ),
    click.option(
        "--engine",
        metavar="URL",
        help="Share them on a cluster: dask://host:port, ray://host:port or ray://local.",
    ),
    click.option(
        "--scratch",
        metavar="FOLDER",
        help="Folder for temporary files; on a cluster one that all machines share.",
    ),
)


def resources(command: F) -> F:
    """Add the options that say what work on data may use."""
    for option in reversed(_RESOURCES):
        command = option(command)
    return command
