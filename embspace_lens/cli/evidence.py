"""Commands that measure how well weights read as tokens: evidence related-pairs, recall, keep-k."""

from typing import Annotated, Any, Literal

import typer

from .loading import load_texts, open_lens
from .options import (
    MODEL,
    Column,
    Layer,
    LensOptions,
    Model,
    NTexts,
    ProjectionOptions,
    Texts,
    Weight,
    Where,
    with_groups,
)
from .output import DrawnOutput, next_command

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Measure how well weights read as tokens, with controls.",
)

TopTokens = Annotated[int, typer.Option("-k", metavar="N", min=1, help="Number of top tokens that are compared.")]
Seeds = Annotated[int, typer.Option("--seeds", metavar="N", min=2, help="Number of shuffles in the control.")]


@app.command()
@with_groups
def related_pairs(
    model: Model = MODEL,
    layer: Layer = None,
    pair: Annotated[
        list[Any] | None,
        typer.Option(
            "--pair",
            metavar="A-B",
            help="W_in-W_out, W_gate-W_out, W_V-W_O or W_Q-W_K. Repeat the option for several. All by default.",
        ),
    ] = None,
    k: TopTokens = 100,
    seeds: Seeds = 20,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """Compare top tokens of paired weights with shuffled pairs.

    The two weights of one neuron or sub-head share tokens if they are related. The control pairs weights of different
    neurons or sub-heads of the layer.

    For example:

        embspace-lens evidence related-pairs --vocabulary words --score cosine
    """
    lens = open_lens(model, options)
    from ..evidence.overlap import related_pairs

    df = related_pairs(lens, k=k, layer=layer, pairs=pair or None, seeds=seeds)
    output.write(df, next_command("evidence keep-k", model, options.vocabulary, options.score, options.words))


@app.command()
@with_groups
def recall(
    texts: Texts,
    model: Model = MODEL,
    layer: Layer = None,
    weight: Weight = None,
    target: Annotated[
        Literal["layer", "final"] | None,
        typer.Option(
            "--target",
            help="Hidden states to compare with. layer: the output of the weight's layer; final: the output of the last layer. Both by default.",
        ),
    ] = None,
    k: TopTokens = 50,
    n_active: Annotated[
        int,
        typer.Option("--active", metavar="N", min=1, help="Number of the most active neurons or sub-heads of a layer."),
    ] = 5,
    seeds: Seeds = 20,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """Compare the top tokens of hidden states and active weights.

    The control compares hidden states with the weights that are active at other tokens. This command runs the model on texts.
    """
    examples = load_texts(texts, column, where, n_texts)
    lens = open_lens(model, options, runs_model=True)
    from ..evidence.recall import hidden_state_recall

    df = hidden_state_recall(
        lens, examples, layer=layer, weight=weight or None, target=target, k=k, n_active=n_active, seeds=seeds
    )
    output.write(df, next_command("evidence related-pairs", model, options.vocabulary, options.score, options.words))


@app.command()
@with_groups
def keep_k(
    model: Model = MODEL,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k",
            metavar="N",
            min=1,
            help="Number of scores to keep. Repeat the option for several. Powers of two by default.",
        ),
    ] = None,
    inverse: Annotated[
        list[str] | None,
        typer.Option(
            "--inverse", metavar="transpose|pinv", help="A right inverse. Repeat the option for both. Both by default."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=2, help="Number of random vectors.")] = 300,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random vectors.")] = 0,
    *,
    options: ProjectionOptions,
    output: DrawnOutput,
) -> None:
    """Compare right inverses by the inner products they keep.

    Vectors are projected to the vocabulary, and all but the k largest scores are set to zero. The table lists how well the
    inner products of these scores agree with those of the vectors.
    """
    lens = open_lens(model, options)
    from ..evidence.truncation import keep_k

    inverses: dict[str, Any] = {"inverses": inverse} if inverse else {}
    df = keep_k(lens, ks=k or None, n=n, seed=seed, **inverses)
    output.write(df, next_command("evidence related-pairs", model, options.vocabulary, options.score, options.words))
