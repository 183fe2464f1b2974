"""What a demo shows of a model: neurons and heads chosen by rule, a word's writers and readers, all heads."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .. import demo
from ..errors import EmbspaceError
from ..tables.frames import tidy
from .legible import legible_heads, legible_neurons, one_neuron

WORDS = (" wonderful", " film", " love", " Paris", " good", " water", " the")
"""Words to ask for where none is given: the first that the lens reads."""

K = 10


@dataclass(frozen=True)
class Findings:
    """Tables of one lens; those that the model cannot have, for want of an MLP or of attention, are empty.

    Attributes:
        lens: The lens.
        model: How a command line names the model.
        token: The id of the word asked for.
        neurons: Neurons chosen by rule, W_out first.
        heads: Heads chosen by rule, first some by W_OV, then some by W_QK.
        word: Neurons that write the word most, then those that read it most, each with its own best tokens.
        ov: Every head's best pairs, W_OV.
        qk: Every head's best pairs, W_QK.
    """

    lens: Any
    model: str
    token: int
    neurons: pd.DataFrame
    heads: pd.DataFrame
    word: pd.DataFrame
    ov: pd.DataFrame
    qk: pd.DataFrame

    @property
    def text(self) -> str:
        """The word asked for, exactly."""
        return str(self.lens.vocabulary.strings[self.token])


def find(
    lens: Any,
    *,
    word: str | None = None,
    model: str | os.PathLike[str] | None = None,
    n_neurons: int = 6,
    n_heads: int = 2,
) -> Findings:
    """Choose what to show of a model, with no forward pass.

    Args:
        lens: An EmbeddingLens.
        word: A word to ask for, with or without its leading space; a common one by default.
        model: How a command line names the model; `lens.name` by default.
        n_neurons: How many neurons.
        n_heads: How many heads by each circuit.

    Returns:
        The tables.

    Raises:
        EmbspaceError: If the word is not one token that the lens reads.
    """
    token = find_word(lens, word)
    k = min(K, lens.space.n_tokens)
    nothing = tidy(["layer"], [])
    neurons = asked = ov = qk = heads = nothing
    if lens.weights.layers_with("mlp"):
        neurons = legible_neurons(lens, n_neurons, k=k)
        asked = word_table(lens, token, n=3, k=k)
    if lens.weights.layers_with("attn"):
        ov, qk = lens.ov(k=k), lens.qk(k=k)
        heads = pd.concat([legible_heads(lens, n_heads, pairs=table) for table in (ov, qk)], ignore_index=True)
    return Findings(lens, str(model or lens.name), token, _writing_first(neurons), heads, asked, ov, qk)


def _writing_first(df: pd.DataFrame) -> pd.DataFrame:
    """A table of neurons with W_out before W_in and W_gate, which is how they are read best."""
    if df.empty:
        return df
    names = [name for name in ("layer", "expert", "neuron") if name in df.columns]
    order = df.assign(_writes=df["weight"] != "W_out").sort_values(
        [*names, "_writes"], kind="stable", ignore_index=True
    )
    return order.drop(columns="_writes")


def find_word(lens: Any, word: str | None) -> int:
    """The id of a word that the lens reads, with its leading space if need be; a common word for None.

    Raises:
        EmbspaceError: If it is not one token, or not one that the lens reads.
    """
    read = lens.space.token_ids.tolist()
    strings = {str(lens.vocabulary.strings[i]): i for i in reversed(read)}
    if word is None:
        return next((strings[candidate] for candidate in WORDS if candidate in strings), read[0])
    # With its space first: that is the word, and without it the tail of another.
    for candidate in (word if word.startswith(" ") else f" {word}", word):
        if candidate in strings:
            return strings[candidate]
    lens.vocabulary.index(word, "--word")  # says how many tokens it is
    raise EmbspaceError(
        f"word={word!r} is not among the {lens.space.n_tokens:,} tokens that this lens reads. "
        "Choose another, or read all tokens."
    )


def word_table(lens: Any, token: int, n: int = 4, *, k: int = K) -> pd.DataFrame:
    """The neurons that write a token most, and those that read it most, each with its own best tokens.

    Returns:
        One row per (layer, neuron, weight, rank) as in `lens.neurons`: those that write it first, best first.
    """
    found = lens.search(token, weight=["W_in", "W_out"], k=n)
    parts = []
    for row in found.sort_values(["weight", "rank"], ascending=[False, True]).to_dict("records"):
        parts.append(one_neuron(lens, row["layer"], row.get("expert", -1), row["neuron"], weight=row["weight"], k=k))
    return pd.concat(parts, ignore_index=True)


def model_lines(lens: Any) -> list[str]:
    """A model's sizes, and for a demo model what it was trained on."""
    w = lens.weights
    lines = [
        f"{w.n_layers} layers of {w.n_heads} heads, residual stream of {w.d_model:,}, {lens.space.d_vocab:,} tokens."
    ]
    if lens.name not in demo.names() or demo.is_classifier(lens.name):
        return lines
    facts = demo.card(lens.name)
    said = [
        facts["corpus"],
        f"{facts['tokens_seen']:,} tokens seen",
        f"held-out loss {facts['held_out_loss']:.2f} nats a token",
    ]
    text = "; ".join(said)
    return [*lines, f"{text[0].upper()}{text[1:]}."]


def options(found: Findings) -> str:
    """The command line's options that make the findings' lens."""
    score = found.lens.space.score
    mask = found.lens.mask.replace(demo.frequent_words.name, "frequent")
    named = all(part in ("ascii", "words", "trained", "frequent") for part in mask.split(" & "))
    vocabulary = f" --vocabulary {shlex.quote(mask)}" if named else ""
    return f"--model {shlex.quote(found.model)}{vocabulary}" + (f" --score {score}" if score != "dot" else "")
