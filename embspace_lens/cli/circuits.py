"""Commands that score whole heads: relations, operations."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import MODEL, Head, K, Layer, LensOptions, Lowest, Model
from .output import DrawnOutput, Output, next_reading, options_of_first_row, plain_warnings

NoFirstMlp = Annotated[
    bool,
    typer.Option(
        "--no-first-mlp", help="Take embeddings as the input of heads in all layers, not the first MLP's output."
    ),
]


def relations(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.json",
            help="Pairs [[source, target], …], or several such lists by name; or a folder of these files.",
        ),
    ],
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    k: Annotated[
        int, typer.Option("-k", metavar="N", min=1, help="A pair counts if its target is among the top N tokens.")
    ] = 10,
    no_first_mlp: NoFirstMlp = False,
    n_shuffles: Annotated[
        int, typer.Option("--shuffles", metavar="N", min=1, help="Number of shuffles in the permutation test.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the shuffles.")] = 0,
    table: Annotated[
        Literal["best", "heads"],
        typer.Option("--table", help="The best head of each relation and effect, or all heads."),
    ] = "best",
    *,
    options: LensOptions,
    output: Output,
) -> None:
    """Find the heads that map sources of a relation to targets.

    A head's score is the share of pairs whose target it promotes (or suppresses). A permutation test compares it with
    shuffled targets.
    """
    from ..circuits.relations import MIN_PAIRS, read_relations, relation_scores, unread_words

    with plain_warnings():
        pairs = read_relations(*files)
    lens = open_lens(model, options, runs_model=not no_first_mlp)
    with plain_warnings():
        df = relation_scores(
            lens, pairs, layer=layer, head=head, k=k, first_mlp=not no_first_mlp, n_shuffles=n_shuffles, seed=seed
        )
    for name in sorted(pairs):
        words = unread_words(lens, pairs[name])
        if words:
            typer.echo(f"{name}: {len(words):,} words are not single tokens: {_listed(words)}", err=True)
    if len(df) and not df["relation_score"].notna().to_numpy().any():
        raise errors.no_scored_relation(sorted(pairs), MIN_PAIRS)
    if table == "best":
        ranked = df.sort_values("relation_score", ascending=False, kind="stable")  # the first of equal heads
        df = ranked.groupby(["relation", "effect"], sort=True).head(1).dropna().sort_index(ignore_index=True)
    clearest = df.sort_values(["p_value", "relation_score"], ascending=[True, False], kind="stable")
    command = f"operations {options_of_first_row(clearest, 'layer', 'head')}"
    output.write(df, next_reading(command, model, options) if len(df) else "")


def _listed(words: list[str], n: int = 20) -> str:
    """The first words, and the number of the others."""
    more = f" … {len(words) - n:,} more" if len(words) > n else ""
    return ", ".join(map(repr, words[:n])) + more


def operations(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Number of source tokens of each head.")] = 30,
    k: K = 5,
    lowest: Lowest = False,
    no_first_mlp: NoFirstMlp = False,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """List the tokens that heads amplify most, with their outputs.

    For example:

        embspace-lens operations --layer 3 --vocabulary frequent --score cosine
    """
    lens = open_lens(model, options, runs_model=not no_first_mlp)
    from ..circuits.operations import salient_operations

    df = salient_operations(lens, layer, head, n=n, k=k, largest=not lowest, first_mlp=not no_first_mlp)
    output.write(df, next_reading(f"heads {options_of_first_row(df, 'layer', 'head')}", model, options))
