"""Errors of the command line: one or two plain lines on standard error, exit code 2, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import EmbspaceError

# The base class of all errors in a command's arguments: click's, or the copy that newer versions of typer contain.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class RefusingGroup(TyperGroup):
    """A group of commands whose errors are plain lines: those of the package, and those in a command's arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command's name."""
        with plain_refusals():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments and run it."""
        with plain_refusals():
            return super().invoke(ctx)


@contextmanager
def plain_refusals() -> Iterator[None]:
    """Print the message of an error and exit with code 2."""
    try:
        yield
    except EmbspaceError as error:
        message = str(error)
    except UsageError as caught:
        error: Any = caught
        message = error.format_message().replace("Value error, ", "")  # pydantic's prefix
        is_wrong_value = type(error) is typer.BadParameter
        is_help_page = "\n" in message
        if error.ctx is not None and not is_wrong_value and not is_help_page:
            message += f"\nSee {error.ctx.command_path} --help"
    else:
        return
    typer.echo(message, err=True)
    raise typer.Exit(2)
