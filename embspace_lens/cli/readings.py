"""Commands that read one model: neurons, heads, search, components."""

import shlex
from typing import Annotated, Any, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import (
    MODEL,
    Cache,
    Device,
    Expert,
    Fold,
    Head,
    K,
    Layer,
    LensOptions,
    Lowest,
    Model,
    Neuron,
    Offload,
    Weight,
)
from .output import DrawnOutput, Output, common_word, middle_layer, next_reading, options_of_first_row, plain_warnings

CIRCUITS = ("W_OV", "W_QK")
SUBHEADS = ("W_Q", "W_K", "W_V", "W_O")


def neurons(
    model: Model = MODEL,
    layer: Layer = None,
    neuron: Neuron = None,
    expert: Expert = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """List the tokens that neurons read and write.

    Neurons read through W_in (and W_gate) and write through W_out.

    For example:

        embspace-lens neurons --layer 2 --vocabulary frequent --score cosine
    """
    lens = open_lens(model, options)
    df = lens.neurons(layer, neuron, expert=expert, weight=weight or None, k=k, largest=not lowest)
    output.write(df, next_reading(f"search {shlex.quote(common_word(lens))}", model, options))


def heads(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    exclude_same: Annotated[
        Literal["exact", "fuzzy"] | None,
        typer.Option(
            "--exclude-same",
            help="Leave out pairs of equal tokens (exact), or also of one word in another case, spacing or regular ending (fuzzy).",
        ),
    ] = None,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """List the strongest token pairs of heads (W_OV, W_QK).

    W_OV: attention to token a promotes token b. W_QK: a query at token a attends to token b. With --weight W_Q, W_K, W_V or
    W_O, list the tokens of each column or row of that weight.

    For example:

        embspace-lens heads --layer 3 --vocabulary frequent --score cosine
    """
    from ..tables.checks import check_choice

    weights: list[Any] = [check_choice("weight", name, (*CIRCUITS, *SUBHEADS)) for name in weight or CIRCUITS]
    if len({name in CIRCUITS for name in weights}) == 2:
        raise errors.circuits_and_subheads()
    lens = open_lens(model, options)
    if weights[0] in SUBHEADS:
        if exclude_same is not None:
            raise errors.no_pairs_to_exclude(weights)
        df, other = lens.subheads(layer, head, weight=weights, k=k, largest=not lowest), "W_OV"
    else:
        import pandas as pd

        readings = {"W_OV": lens.ov, "W_QK": lens.qk}
        choice = {"exclude_same": exclude_same, "k": k, "largest": not lowest}
        tables = [readings[name](layer, head, **choice) for name in CIRCUITS if name in weights]
        # The sort is stable, so each head's W_OV and W_QK stand next to each other, in this order.
        df = pd.concat(tables, ignore_index=True).sort_values(["layer", "head"], kind="stable", ignore_index=True)
        other = "W_V"
    command = f"heads {options_of_first_row(df, 'layer', 'head')} --weight {other}"
    output.write(df, next_reading(command, model, options))


def search(
    tokens: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKEN...",
            help="The exact text of a token, with its leading space (' film'); or its id (#1234). For several, the mean.",
        ),
    ],
    model: Model = MODEL,
    layer: Layer = None,
    weight: Weight = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Number of components for each weight.")] = 10,
    lowest: Lowest = False,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """Find the neurons and heads that read or write tokens most.

    For several tokens, the score is that of their mean embedding.

    For example:

        embspace-lens search ' film' --vocabulary frequent --score cosine
    """
    lens = open_lens(model, options)
    with plain_warnings():
        df = lens.search([_token(text) for text in tokens], layer, weight=weight or None, k=k, largest=not lowest)
    in_mlp = df.query("neuron >= 0").sort_values("score", ascending=lowest, kind="stable")
    if len(in_mlp):
        command = f"neurons {options_of_first_row(in_mlp, 'layer', 'neuron')}"
    else:
        command = f"heads {options_of_first_row(df, 'layer', 'head')}"
    output.write(df, next_reading(command, model, options))


def _token(text: str) -> str | int:
    """A token as the command line writes it: its text, or # and its id."""
    return int(text[1:]) if text.startswith("#") and text[1:].isascii() and text[1:].isdigit() else text


def components(
    model: Model = MODEL,
    fold: Fold = True,
    device: Device = None,
    offload: Offload = None,
    cache: Cache = True,
    *,
    output: Output,
) -> None:
    """List the weights with their shapes, norms and folded gains."""
    options = LensOptions(fold=fold, device=device, offload=offload, cache=cache)
    lens = open_lens(model, options)
    output.write(lens.components(), next_reading(f"neurons --layer {middle_layer(lens)}", model, options))
