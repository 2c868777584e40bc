"""The command line: one file per verb, each imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from edgecompress import __version__, api
from edgecompress.cli.console import Console, common
from edgecompress.errors import nearest

__all__ = ["main", "VERBS"]

VERBS = tuple(api.__all__)
"""One for each function of the Python API, in the order in which they are used."""


class Verbs(click.Group):
    """Finds a verb's command in the file of its name, and turns every error into an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order in which they are used."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, or None where there is no such verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"edgecompress.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look the verb up; an unknown one is an error that names the nearest."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            ctx.fail(f"no such command {args[0]!r}; {nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line.

        Returns:
            The exit code, unless ``standalone_mode`` is set: then the process ends with it.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        console = Console.for_arguments(arguments)
        try:
            code = super().main(
                arguments,
                prog_name or "edgecompress",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **{"obj": console, **extra},
            )
        except Exception as error:
            code = console.failed(error)
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.stdout.flush()
            sys.exit(code)
        return code


@click.group(
    "edgecompress",
    cls=Verbs,
    epilog="""\b
Examples:
  edgecompress init mobilenet.onnx --data calibration.npz --target cpu-x86-64
  edgecompress build recipe.toml
  edgecompress compress mobilenet.onnx -p quantize --data calibration.npz -o out

\b
Exit codes: 0 done, 1 a budget or the work failed, 2 wrong input, 130 interrupted,
143 terminated.
EDGECOMPRESS_DEBUG=1 shows the traceback of an internal error.""",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgecompress")
@common(json=False)
def main(console: Console) -> None:
    """Compress models for a named device, and prove by measurement that they fit."""
