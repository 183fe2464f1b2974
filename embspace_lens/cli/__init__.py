"""The command line: `embspace-lens`, or `python -m embspace_lens`."""

from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import EmbspaceError
from . import circuits, compare, evidence, factors, models
from . import readings as read
from .options import numbers

__all__ = ["app", "main", "numbers"]


class Sentences(TyperGroup):
    """Commands whose errors are one sentence, and an exit code of 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EmbspaceError as reason:
            typer.echo(str(reason), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Sentences,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="A transformer's weights as tables of tokens, with no forward pass.\n\nStart with: embspace-lens demo",
)

# One module a group of commands, in the order of `--help`. What they need of torch they import when they run.
for group in (models, read, compare, circuits):
    for command in group.COMMANDS:
        app.command()(command)
app.add_typer(evidence.app, name="evidence")
app.add_typer(factors.app, name="factors")


def main() -> None:
    """Run the command line."""
    app(prog_name="embspace-lens")
