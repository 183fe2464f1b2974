"""Commands that compare two models: align."""

import warnings
from typing import Annotated

import typer

from .options import Format, Out, Score, Vocab, Weight, one_of, open_lens
from .output import Output, next_command

SPACES = ("embedding", "residual")
TABLES = ("matches", "correlation", "diagonal")

First = Annotated[str, typer.Argument(metavar="A", help="A demo model, a folder, or a model of the hub.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another, which may differ in depth, width and tokenizer.")]
Space = Annotated[
    str,
    typer.Option(
        "--space",
        metavar="|".join(SPACES),
        help="Over shared tokens, or the baseline: over the residual stream's axes.",
    ),
]
Table = Annotated[
    str,
    typer.Option(
        "--table",
        metavar="|".join(TABLES),
        help="Each layer's partner, every pair of layers, or how many partners have the same number.",
    ),
]


def align(
    a: First,
    b: Second,
    weight: Weight = None,
    space: Space = "embedding",
    table: Table = "matches",
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Find which layer of one model is which of another: the mean |correlation| of their vectors over shared tokens."""
    one_of("space", space, SPACES)
    one_of("table", table, TABLES)
    output = Output(format, out)
    lenses = [open_lens(model, vocabulary, score) for model in (a, b)]
    from ..compare import align as compare

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        found = compare(*lenses, weights=weight or None, space=space)
    for warning in warned:
        typer.echo(str(warning.message), err=True)
    df = {"matches": found.matches, "correlation": found.correlation, "diagonal": found.on_diagonal()}[table]
    output.give(df, f"{found}\n{next_command('neurons --layer 0', b, vocabulary, score)}")


COMMANDS = (align,)
