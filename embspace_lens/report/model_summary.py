"""A summary of one model for its report: legible neurons and heads, one word's neurons, and all heads."""

import os
import shlex
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from .. import errors
from ..demo import catalog
from ..display.table_groups import table_groups
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..weights.experts import NO_EXPERT
from ..weights.parameter_names import side_of
from .legible import legible_heads, legible_neurons, one_neuron

WORDS = (" wonderful", " film", " love", " Paris", " good", " water", " the")
"""Words to search for if none is given: the first of these that the lens reads."""

K = 10
N_WORD_NEURONS = 3  # neurons that read the word, and as many that write it
NAMED_MASKS = ("ascii", "words", "trained", "frequent")
"""Values of `--vocabulary`."""


class TokenScore(NamedTuple):
    """The score of one token for a neuron's weight, and how many of the tokens that the lens reads have a higher score."""

    score: float
    rank: int


@dataclass(frozen=True)
class ModelSummary:
    """Tables of one lens. A table is empty if the model lacks what it shows: an MLP, or attention.

    Attributes:
        lens: The lens.
        model: The model's name in commands.
        token: The id of the word that is searched for.
        neurons: Neurons chosen by a rule, W_out first.
        heads: Heads chosen by a rule: some for W_OV, then some for W_QK.
        word: The neurons that write the word most strongly, then those that read it, each with its own best tokens.
        word_scores: The word's own score and rank for each of these neurons, in the same order.
        ov: The best pairs of every head, W_OV.
        qk: The best pairs of every head, W_QK.
    """

    lens: EmbeddingLens
    model: str
    token: int
    neurons: pd.DataFrame
    heads: pd.DataFrame
    word: pd.DataFrame
    word_scores: list[TokenScore]
    ov: pd.DataFrame
    qk: pd.DataFrame

    @property
    def word_text(self) -> str:
        """The exact text of the word that is searched for."""
        return str(self.lens.vocabulary.strings[self.token])


def summarize_model(
    lens: EmbeddingLens,
    *,
    word: str | None = None,
    model: str | os.PathLike[str] | None = None,
    n_neurons: int = 6,
    n_heads: int = 2,
) -> ModelSummary:
    """Choose what to show of a model, without a forward pass.

    Args:
        lens: An EmbeddingLens.
        word: A word to search for, with or without its leading space; a common one by default.
        model: The model's name in commands; `lens.name` by default.
        n_neurons: How many neurons.
        n_heads: How many heads for each of W_OV and W_QK.

    Returns:
        The tables.

    Raises:
        EmbspaceError: If the word is not one token that the lens reads.
    """
    token = find_word(lens, word)
    k = min(K, lens.space.n_tokens)
    empty = tidy(["layer"], [])
    neurons = word_neurons = ov = qk = heads = empty
    word_scores: list[TokenScore] = []
    if lens.weights.layers_with("mlp"):
        neurons = legible_neurons(lens, n_neurons, k=k)
        word_neurons = neurons_of_token(lens, token, n=N_WORD_NEURONS, k=k)
        word_scores = token_scores(lens, word_neurons, token)
    if lens.weights.layers_with("attn"):
        ov, qk = lens.ov(k=k), lens.qk(k=k)
        heads = pd.concat([legible_heads(lens, n_heads, pairs=table) for table in (ov, qk)], ignore_index=True)
    name = str(model or lens.name)
    return ModelSummary(lens, name, token, _writing_first(neurons), heads, word_neurons, word_scores, ov, qk)


def _writing_first(df: pd.DataFrame) -> pd.DataFrame:
    """A table of neurons with W_out before W_in and W_gate, since a neuron's written tokens are easier to interpret."""
    if df.empty:
        return df
    names = [name for name in ("layer", "expert", "neuron") if name in df.columns]
    order = df.assign(_reads=df["weight"] != "W_out").sort_values([*names, "_reads"], kind="stable", ignore_index=True)
    return order.drop(columns="_reads")


def find_word(lens: EmbeddingLens, word: str | None) -> int:
    """The id of a word that the lens reads, with a leading space if there is such a token; for None, a common word.

    Raises:
        EmbspaceError: If the word is not one token, or not one that the lens reads.
    """
    token_ids = lens.space.token_ids.tolist()
    id_of = {str(lens.vocabulary.strings[i]): i for i in reversed(token_ids)}
    if word is None:
        candidates = (text for word in WORDS for text in (word, word.strip()))  # WordPiece has no leading spaces
        return next((id_of[text] for text in candidates if text in id_of), token_ids[0])
    # The token with a space is the word; the token without it may be the end of another word.
    for candidate in (word if word.startswith(" ") else f" {word}", word):
        if candidate in id_of:
            return id_of[candidate]
    token = lens.vocabulary.index(word, "--word")
    raise errors.word_not_read(lens.vocabulary.strings[token], lens.space.n_tokens)


def neurons_of_token(lens: EmbeddingLens, token: int, n: int = 4, *, k: int = K) -> pd.DataFrame:
    """The n neurons that write a token most strongly, and the n that read it, each with its own best tokens.

    Returns:
        One row per (layer, neuron, weight, rank) as in `lens.neurons`: the writing neurons first, best first.
    """
    best = lens.search(token, weight=["W_in", "W_out"], k=n)
    tables = [
        one_neuron(lens, row["layer"], row.get("expert", NO_EXPERT), row["neuron"], weight=row["weight"], k=k)
        for row in best.sort_values(["weight", "rank"], ascending=[False, True]).to_dict("records")
    ]
    return pd.concat(tables, ignore_index=True)


def token_scores(lens: EmbeddingLens, df: pd.DataFrame, token: int) -> list[TokenScore]:
    """For each neuron and weight of a table, the token's score, and its rank among all tokens that the lens reads."""
    scores = []
    for group in table_groups(df):
        row = group.rows.iloc[0].to_dict()
        rows = lens.weights.directions(row["weight"], row["layer"], row.get("expert", NO_EXPERT))
        of_tokens = lens.project(rows[row["neuron"]], side_of(row["weight"]))
        scores.append(TokenScore(float(of_tokens[token]), int((of_tokens > of_tokens[token]).sum())))
    return scores


def model_lines(lens: EmbeddingLens) -> list[str]:
    """A model's sizes, and for a demo model its training data."""
    w = lens.weights
    lines = [
        f"{w.n_layers} layers with {w.n_heads} heads each, residual stream of width {w.d_model:,}, {lens.space.d_vocab:,} tokens."
    ]
    if lens.name not in catalog.names() or catalog.is_classifier(lens.name):
        return lines
    card = catalog.card(lens.name)
    loss = f"held-out loss {card['held_out_loss']:.2f} nats per token"
    text = "; ".join([card["corpus"], f"{card['tokens_seen']:,} training tokens", loss])
    return [*lines, f"{text[0].upper()}{text[1:]}."]


def lens_options(summary: ModelSummary) -> str:
    """The options of a command that make the summary's lens."""
    score = summary.lens.space.score
    mask = summary.lens.mask.replace(catalog.frequent_words.name, "frequent")
    is_named = all(part in NAMED_MASKS for part in mask.split(" & "))
    vocabulary = f" --vocabulary {shlex.quote(mask)}" if is_named else ""
    return f"--model {shlex.quote(summary.model)}{vocabulary}" + (f" --score {score}" if score != "dot" else "")
