"""Errors of the command line: one or two plain lines on standard error, exit code 2; with --debug also the traceback."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import typer
from typer.core import TyperGroup

from .. import errors
from ..errors import EmbspaceError

# The base class of all errors in a command's arguments: click's, or the copy that newer versions of typer contain.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
DEBUG = "--debug"


class RefusingGroup(TyperGroup):
    """A group of commands whose errors are plain lines: those of the package, those in a command's arguments, and all others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command's name; --debug may stand anywhere."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[DEBUG] = DEBUG in args[:end]
        with plain_refusals(ctx):
            return super().parse_args(ctx, [arg for arg in args[:end] if arg != DEBUG] + args[end:])

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments and run it."""
        with plain_refusals(ctx):
            return super().invoke(ctx)


@contextmanager
def plain_refusals(ctx: Any) -> Iterator[None]:
    """Print the message of an error and exit with code 2."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # not errors: typer ends the program
        raise
    except EmbspaceError as error:
        message = str(error)
    except UsageError as caught:
        error: Any = caught
        message = error.format_message().replace("Value error, ", "")  # pydantic's prefix
        is_wrong_value = type(error) is typer.BadParameter
        is_help_page = "\n" in message
        if error.ctx is not None and not is_wrong_value and not is_help_page:
            message += f"\nSee {error.ctx.command_path} --help"
    except Exception as error:
        message = str(errors.unexpected(type(error).__name__, shorten(str(error), 300)))
    else:
        return
    if ctx.meta[DEBUG]:
        typer.echo(traceback.format_exc(), err=True, nl=False)
    typer.echo(message, err=True)
    raise typer.Exit(2)


def run(app: typer.Typer, name: str) -> None:
    """Run the application, and check that its output could be written.

    Raises:
        SystemExit: Always; with code 2 if standard output is closed, or cannot be written (a full disk).
    """
    if sys.stdout is None:
        typer.echo(str(errors.standard_output_closed()), err=True)
        sys.exit(2)
    try:
        app(prog_name=name)
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    try:
        sys.stdout.flush()
    except OSError as reason:
        # Python would flush again at its end, and print a second message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not code and not isinstance(reason, BrokenPipeError):
            typer.echo(str(errors.not_written("Standard output", reason.strerror or reason)), err=True)
        code = code or (1 if isinstance(reason, BrokenPipeError) else 2)
    sys.exit(code)
