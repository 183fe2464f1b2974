"""The command line: `embspace-lens`, or `python -m embspace_lens`."""

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from . import circuits, compare, demo_models, directions, evidence, factors, features, papers, readings, stitching
from .options import with_groups
from .refusals import RefusingGroup, run

__all__ = ["app", "main"]

app = typer.Typer(
    cls=RefusingGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Read a transformer's weights as tables of tokens, with no forward pass.\n\nStart with: embspace-lens demo",
)


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"embspace-lens {installed_version('embspace-lens')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error. May follow the command.")
    ] = False,
) -> None:
    """Options that precede a command."""


# In the order of `--help`. Commands import torch and pandas when they run, so that help is quick.
for command in (
    demo_models.demo,
    demo_models.models,
    readings.neurons,
    readings.heads,
    directions.singular,
    directions.directions,
    readings.search,
    readings.components,
    compare.align,
    stitching.stitch,
    compare.difference,
    circuits.relations,
    circuits.operations,
    papers.paper,
):
    app.command()(with_groups(command))
app.add_typer(evidence.app, name="evidence")
app.add_typer(factors.app, name="factors")
app.add_typer(features.app, name="features")


def main() -> None:
    """Run the command line."""
    run(app, "embspace-lens")
