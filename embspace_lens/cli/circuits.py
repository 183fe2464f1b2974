"""Commands of the methods that stand next to forward passes: relations, operations."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from .options import MODEL, Format, Head, K, Layer, Lowest, Model, Out, Score, Vocab, numbers, one_of, open_lens
from .output import Output, first, next_command

TABLES = ("best", "heads")
EmbeddingOnly = Annotated[
    bool,
    typer.Option("--no-first-mlp", help="Heads see plain embeddings in every block, not what the first MLP makes."),
]


def relations(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.json", help="[[source, target], …], or those by name; or a folder of such files."),
    ],
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    k: K = 10,
    no_first_mlp: EmbeddingOnly = False,
    n_shuffles: Annotated[
        int, typer.Option("--shuffles", metavar="N", help="How many shuffles of the targets the p-value rests on.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the shuffles.")] = 0,
    table: Annotated[
        str,
        typer.Option("--table", metavar="|".join(TABLES), help="The best head of each relation and effect, or all."),
    ] = "best",
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Which heads carry out a relation? The share of its pairs whose target they promote, or suppress, against a control."""
    one_of("table", table, TABLES)
    layers, heads = numbers("layer", layer), numbers("head", head)
    output = Output(format, out)
    from ..circuits.relations import read_relations, relation_scores

    pairs = read_relations(*files)
    lens = open_lens(model, vocabulary, score)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        df = relation_scores(
            lens, pairs, layer=layers, head=heads, k=k, first_mlp=not no_first_mlp, n_shuffles=n_shuffles, seed=seed
        )
    for warning in warned:
        typer.echo(str(warning.message), err=True)
    if table == "best":
        order = df.sort_values("relation_score", ascending=False, kind="stable")  # of equal heads the first
        df = order.groupby(["relation", "effect"], sort=True).head(1).dropna().sort_index(ignore_index=True)
    clearest = df.sort_values(["p_value", "relation_score"], ascending=[True, False], kind="stable")
    hint = next_command(f"operations {first(clearest, 'layer', 'head')}", model, vocabulary, score) if len(df) else ""
    output.give(df, hint)


def operations(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="How many source tokens of each head.")] = 30,
    k: K = 5,
    lowest: Lowest = False,
    no_first_mlp: EmbeddingOnly = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Which tokens does a head amplify most, and what does it map them to?"""
    layers, heads = numbers("layer", layer), numbers("head", head)
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    from ..circuits.operations import salient_operations

    df = salient_operations(lens, layers, heads, n=n, k=k, largest=not lowest, first_mlp=not no_first_mlp)
    output.give(df, next_command(f"heads {first(df, 'layer', 'head')}", model, vocabulary, score))


COMMANDS = (relations, operations)
