"""Commands that measure how legible a model's weights are: evidence related-pairs, recall, keep-k."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import MODEL, Format, K, Layer, Model, Out, Score, Vocab, Weight, numbers, open_lens
from .output import Output, next_command

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Measure how legible a model's weights are as tokens, each time beside a control.",
)

Seeds = Annotated[int, typer.Option("--seeds", metavar="N", help="How many shuffles make the control.")]


@app.command()
def related_pairs(
    model: Model = MODEL,
    layer: Layer = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair", metavar="A-B", help="W_in-W_out, W_gate-W_out, W_V-W_O or W_Q-W_K; may be given several times."
        ),
    ] = None,
    k: K = 100,
    seeds: Seeds = 20,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Do the two parameters of a unit share top tokens, more than shuffled partners do?"""
    layers = numbers("layer", layer)
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    from ..evidence import related_pairs as measure

    df = measure(lens, k=k, layer=layers, pairs=pair or None, seeds=seeds)
    output.give(df, next_command("evidence keep-k", model, vocabulary, score))


@app.command()
def recall(
    texts: Annotated[
        Path,
        typer.Option("--texts", metavar="PATH", help="Parquet, JSON lines or CSV; or text, one text a paragraph."),
    ],
    model: Model = MODEL,
    layer: Layer = None,
    weight: Weight = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="layer|final", help="Which hidden states; both by default.")
    ] = None,
    k: K = 50,
    n_active: Annotated[int, typer.Option("--active", metavar="N", help="How many units stand for a block.")] = 5,
    seeds: Seeds = 20,
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="The column of a table of texts.")] = "text",
    where: Annotated[
        str | None, typer.Option("--where", metavar="QUERY", help="Which rows of it, such as \"split == 'test'\".")
    ] = None,
    n_texts: Annotated[
        int | None, typer.Option("--n-texts", metavar="N", min=1, help="The first N texts; all by default.")
    ] = None,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Are a hidden state's top tokens those of the parameters active there? This runs the model on texts."""
    layers = numbers("layer", layer)
    output = Output(format, out)
    from ..forward.texts import read_texts

    chosen = read_texts(texts, column=column, where=where)[:n_texts]
    lens = open_lens(model, vocabulary, score)
    from ..evidence import hidden_state_recall

    options: dict[str, Any] = {"weight": weight or None, "target": target, "k": k, "n_active": n_active}
    df = hidden_state_recall(lens, chosen, layer=layers, seeds=seeds, **options)
    output.give(df, next_command("evidence related-pairs", model, vocabulary, score))


@app.command()
def keep_k(
    model: Model = MODEL,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k", metavar="N", help="How many entries to keep; may be given several times. By default powers of two."
        ),
    ] = None,
    inverse: Annotated[
        list[str] | None,
        typer.Option("--inverse", metavar="transpose|pinv", help="Which right inverse; both by default."),
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="How many vectors to draw.")] = 300,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")] = 0,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Which right inverse survives when only the k strongest tokens of a projection are kept?"""
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    from ..evidence import keep_k as measure

    options: dict[str, Any] = {"inverses": inverse} if inverse else {}
    df = measure(lens, ks=k or None, n=n, seed=seed, **options)
    output.give(df, next_command("evidence related-pairs", model, vocabulary, score))
