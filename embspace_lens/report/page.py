"""A report of one model's weights in one HTML file."""

import os
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from ..display import theme
from ..display.html import chips, environment, safe, stylesheet
from ..display.table_groups import VERBS, table_groups
from ..display.tokens import format_score, markup, ordinal
from ..files import refuse_unwritable, write_whole
from ..lens import EmbeddingLens
from ..plots.head_maps import head_grid
from .feature_weights import FeatureWeight, feature_weights
from .legible import HEAD_RULE, NEURON_RULE
from .model_summary import K, ModelSummary, lens_options, model_lines, summarize_model

MAX_HEADS = 24  # rows and columns that the map has room for
N_PAIRS = 6  # pairs of a head that fit on one line
N_TIP_PAIRS = 3  # pairs shown for a cell of the map
MAP_TITLES = {"W_OV": "what each head moves", "W_QK": "what each head attends to"}


def write_report(
    lens: EmbeddingLens,
    path: str | os.PathLike[str],
    *,
    word: str | None = None,
    model: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a report of a model's weights as one self-contained HTML file, without a forward pass.

    It shows a few neurons and heads that are chosen by a stated rule, the neurons that write and read one word, and the best
    pair of every head as a map. The file loads no other file. Tokens are easiest to interpret with
    `vocabulary="words"` and `score="cosine"`.

    Args:
        lens: An EmbeddingLens.
        path: The file; an existing file is replaced.
        word: A word to search for, with or without its leading space; a common one by default.
        model: The model's name in the report's commands; `lens.name` by default.

    Returns:
        The path.

    Raises:
        EmbspaceError: If the word is not one token that the lens reads, or the file cannot be written; an existing file is
            then unchanged.

    Example:
        >>> write_report(lens, tmp_path / "report.html", word="film").name
        'report.html'

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space. https://arxiv.org/abs/2209.02535
    """
    path = refuse_unwritable(path)
    return write_whole(path, report_html(summarize_model(lens, word=word, model=model)).encode("utf-8"))


def report_html(summary: ModelSummary) -> str:
    """The report as HTML.

    Raises:
        EmbspaceError: If jinja2 or plotly is not installed.
    """
    lens = summary.lens
    k = min(K, lens.space.n_tokens)
    neurons, heads = _cards(summary.neurons), _cards(summary.heads)
    word_neurons = _cards(summary.word, summary.token)
    lines = (line for card in word_neurons for line in card["lines"])
    for line, word_score in zip(lines, summary.word_scores, strict=True):
        line["score"] = format_score(word_score.score)
        line["rank"] = ordinal(word_score.rank + 1)
    command = f"embspace-lens {{}} {lens_options(summary)}"
    commands = {
        "neurons": command.format(f"neurons {_selection(neurons[-1])}") if neurons else "",
        "heads": command.format(f"heads {_selection(heads[0])}") if heads else "",
        "search": command.format(f"search {shlex.quote(summary.word_text)}"),
        "map": f"{command.format('heads')} -k 1",
        "features": "embspace-lens features explore --demo",
    }
    template = environment().get_template("page.html")
    return template.render(
        css=stylesheet(),
        mono=safe(theme.MONO),
        name=lens.name,
        lens=repr(lens),
        lens_score=lens.space.score,
        facts=" ".join(model_lines(lens)),
        neurons=neurons,
        heads=heads,
        word_neurons=word_neurons,
        features=list(map(_feature_card, feature_weights(lens, summary.model))),
        word=safe(markup(summary.word_text)),
        maps=[_head_map(table) for table in (summary.ov, summary.qk) if len(table)],
        neuron_rule=NEURON_RULE.format(k=k),
        head_rule=HEAD_RULE.format(k=k),
        commands=commands,
    )


def _feature_card(weight: FeatureWeight) -> dict[str, Any]:
    """A virtual weight: the names of its features, and their tokens as chips."""
    lines = [
        {"verb": "writes", "name": weight.source, "chips": chips(weight.writes)},
        {"verb": "reads", "name": weight.target, "chips": chips(weight.reads)},
    ]
    return {"score": weight.score, "lines": lines}


def _cards(df: pd.DataFrame, marked: int | None = None) -> list[dict[str, Any]]:
    """One card for each neuron or head: its name, its keys, and a line of chips for each weight; one token may be marked."""
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    for group in table_groups(df) if len(df) else ():
        rows = group.rows
        has_pairs = "src_token_index" in rows.columns
        line = {
            "weight": group.weight,
            "verb": VERBS[group.weight],
            "chips": chips(rows, N_PAIRS if has_pairs else None, marked),
        }
        keys = {name: int(rows[name].iloc[0]) for name in ("layer", "head", "neuron") if name in rows.columns}
        card = cards.setdefault(
            (group.name, group.weight if has_pairs else ""), {"name": group.name, "keys": keys, "lines": []}
        )
        card["lines"].append(line)
    return list(cards.values())


def _selection(card: dict[str, Any]) -> str:
    """The options of a command that select a card's neuron or head."""
    weight = [f"--weight {card['lines'][0]['weight']}"] if "head" in card["keys"] else []
    return " ".join([f"--{name} {index}" for name, index in card["keys"].items()] + weight)


def _head_map(df: pd.DataFrame) -> dict[str, Any]:
    """The best pair of every head as coloured cells with numbers and pairs, and how many heads are left out."""
    grid, _ = head_grid(df)
    shown = grid.iloc[:MAX_HEADS, :MAX_HEADS]
    low, high = float(shown.min().min()), float(shown.max().max())
    pairs = {
        (group.rows["layer"].iloc[0], group.rows["head"].iloc[0]): chips(group.rows, N_TIP_PAIRS)
        for group in table_groups(df)
    }
    rows = []
    for layer in shown.index:
        cells = []
        for head in shown.columns:
            score = float(shown.at[layer, head])
            if score != score:
                cells.append(None)
                continue
            background = theme.sequential((score - low) / ((high - low) or 1.0))
            cells.append(
                {
                    "head": head,
                    "background": background,
                    "colour": theme.readable_on(background),
                    "number": format_score(score, 2).removeprefix("0"),
                    "score": format_score(score),
                    "pairs": pairs[layer, head],
                }
            )
        rows.append({"layer": layer, "cells": cells})
    weight = str(df["weight"].iloc[0])
    return {
        "weight": weight,
        "title": MAP_TITLES[weight],
        "heads": list(shown.columns),
        "rows": rows,
        "n_left_out": grid.size - shown.size,
    }
