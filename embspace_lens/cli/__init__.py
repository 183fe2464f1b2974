"""The command line: `embspace-lens`, or `python -m embspace_lens`."""

import typer

from . import circuits, compare, demo_models, evidence, factors, papers, readings, stitching
from .refusals import RefusingGroup

__all__ = ["app", "main"]

app = typer.Typer(
    cls=RefusingGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Read a transformer's weights as tables of tokens, with no forward pass.\n\nStart with: embspace-lens demo",
)

# In the order of `--help`. Commands import torch and pandas when they run, so that help is quick.
for command in (
    demo_models.demo,
    demo_models.models,
    readings.neurons,
    readings.heads,
    readings.search,
    readings.components,
    compare.align,
    stitching.stitch,
    compare.difference,
    circuits.relations,
    circuits.operations,
    papers.paper,
):
    app.command()(command)
app.add_typer(evidence.app, name="evidence")
app.add_typer(factors.app, name="factors")


def main() -> None:
    """Run the command line."""
    app(prog_name="embspace-lens")
