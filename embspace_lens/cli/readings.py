"""Commands that read one model: neurons, heads, search, components."""

from typing import Annotated

import typer

from .. import errors
from ..errors import EmbspaceError
from .options import (
    MODEL,
    Expert,
    Format,
    Head,
    K,
    Layer,
    Lowest,
    Model,
    Neuron,
    Out,
    Score,
    Vocab,
    Weight,
    numbers,
    open_lens,
)
from .output import Output, first, next_command

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
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """List neurons with the tokens that they read (W_in, W_gate) and write (W_out)."""
    layers, chosen, experts = numbers("layer", layer), numbers("neuron", neuron), numbers("expert", expert)
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    df = lens.neurons(layers, chosen, expert=experts, weight=weight or None, k=k, largest=not lowest)
    output.give(df, next_command("search ' the'", model, vocabulary, score))


def heads(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """List heads with their best pairs of tokens: W_OV (moves a→b) and W_QK (a attends to b).

    With --weight W_Q, W_K, W_V or W_O: the tokens of each of their columns or rows.
    """
    layers, chosen = numbers("layer", layer), numbers("head", head)
    wanted = list(weight or CIRCUITS)
    for name in wanted:
        if name not in (*CIRCUITS, *SUBHEADS):
            raise errors.choice("weight", name, (*CIRCUITS, *SUBHEADS))
    if len({name in CIRCUITS for name in wanted}) == 2:
        raise EmbspaceError(
            "W_OV and W_QK are tables of pairs, W_Q, W_K, W_V and W_O tables of tokens. Ask for one kind at a time."
        )
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    if wanted[0] in SUBHEADS:
        df, other = lens.subheads(layers, chosen, weight=wanted, k=k, largest=not lowest), "W_OV"
    else:
        import pandas as pd

        read = {"W_OV": lens.ov, "W_QK": lens.qk}
        tables = [read[name](layers, chosen, k=k, largest=not lowest) for name in CIRCUITS if name in wanted]
        # A stable sort by keys alone puts each head's two circuits side by side, W_OV first as in the list of weights.
        df = pd.concat(tables, ignore_index=True).sort_values(["layer", "head"], kind="stable", ignore_index=True)
        other = "W_V"
    command = f"heads {first(df, 'layer', 'head')} --weight {other}"
    output.give(df, next_command(command, model, vocabulary, score))


def search(
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its exact text, mind the leading space (' film'); or #ID.")
    ],
    model: Model = MODEL,
    layer: Layer = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Ask who reads or writes a token: the neurons and sub-heads that score it highest."""
    layers = numbers("layer", layer)
    by_id = token.startswith("#") and token[1:].isascii() and token[1:].isdigit()
    wanted: str | int = int(token[1:]) if by_id else token
    output = Output(format, out)
    lens = open_lens(model, vocabulary, score)
    df = lens.search(wanted, layers, weight=weight or None, k=k, largest=not lowest)
    in_mlp = df[df["neuron"] >= 0].sort_values("score", ascending=lowest, kind="stable")
    command = f"neurons {first(in_mlp, 'layer', 'neuron')}" if len(in_mlp) else f"heads {first(df, 'layer', 'head')}"
    output.give(df, next_command(command, model, vocabulary, score))


def components(model: Model = MODEL, format: Format = None, out: Out = None) -> None:
    """List the weights: shape, norm, and which norm's gain was folded in."""
    output = Output(format, out)
    df = open_lens(model, "all", "dot").components()
    output.give(df, next_command("neurons --layer 0", model))


COMMANDS = (neurons, heads, search, components)
