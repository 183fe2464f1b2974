"""One HTML file that shows what a model's weights say."""

import os
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from ..display import theme
from ..display.html import chips, environment, safe, stylesheet
from ..display.table_groups import VERBS, units
from ..display.tokens import figures, markup
from ..files import refuse_unwritable, write_whole
from ..plots.head_maps import heads_grid
from .legible import HEAD_RULE, NEURON_RULE
from .model_summary import Findings, K, find, model_lines, options

MAX_HEADS = 24  # heads of a layer, and layers, that the map has room for
PAIRS = 6  # of a head, so that they stand in one line


def write_report(
    lens: Any, path: str | os.PathLike[str], *, word: str | None = None, model: str | os.PathLike[str] | None = None
) -> Path:
    """Write what a model's weights say as one self-contained HTML file.

    It shows a few neurons and heads, chosen by the rule that it states (`choose.py`), who writes and reads a word, and
    the best pair of every head as a map. Nothing in it is loaded from elsewhere. It reads best of a lens with
    `vocabulary="words"` and `score="cosine"`.

    Args:
        lens: An EmbeddingLens.
        path: The file; replaced if it is there.
        word: A word to ask for, with or without its leading space; a common one by default.
        model: How the commands in the report name the model; `lens.name` by default.

    Returns:
        The path.

    Raises:
        EmbspaceError: If the word is not one token that the lens reads, or the file cannot be written; it is then as it
            was.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space. https://arxiv.org/abs/2209.02535
    """
    path = refuse_unwritable(path)
    return write_whole(path, report_html(find(lens, word=word, model=model)).encode("utf-8"))


def report_html(found: Findings) -> str:
    """The report, as text.

    Raises:
        EmbspaceError: If jinja2 is not installed.
    """
    lens = found.lens
    neurons, heads, asked = (_cards(table) for table in (found.neurons, found.heads, found.word))
    command = f"embspace-lens {{}} {options(found)}"
    commands = {
        "neurons": command.format(f"neurons {_selecting(neurons[-1])}") if neurons else "",
        "heads": command.format(f"heads {_selecting(heads[0])}") if heads else "",
        "search": command.format(f"search {shlex.quote(found.text)}"),
        "map": f"{command.format('heads')} -k 1",
    }
    return (
        environment()
        .get_template("page.html")
        .render(
            css=stylesheet(),
            mono=safe(theme.MONO),
            name=lens.name,
            lens=repr(lens),
            facts=" ".join(model_lines(lens)),
            neurons=neurons,
            heads=heads,
            asked=asked,
            word=safe(markup(found.text)),
            maps=[_map(table) for table in (found.ov, found.qk) if len(table)],
            neuron_rule=NEURON_RULE.format(k=min(K, lens.space.n_tokens)),
            head_rule=HEAD_RULE.format(k=min(K, lens.space.n_tokens)),
            commands=commands,
        )
    )


def _cards(df: pd.DataFrame) -> list[dict[str, Any]]:
    """One card for each neuron or head: its name, its keys, and a line of chips for each weight."""
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    for unit in units(df) if len(df) else ():
        pairs = "src_token_index" in unit.rows.columns
        line = {"weight": unit.weight, "verb": VERBS[unit.weight], "chips": chips(unit.rows, PAIRS if pairs else None)}
        keys = {name: int(unit.rows[name].iloc[0]) for name in ("layer", "head", "neuron") if name in unit.rows.columns}
        cards.setdefault((unit.name, unit.weight if pairs else ""), {"name": unit.name, "keys": keys, "lines": []})[
            "lines"
        ].append(line)
    return list(cards.values())


def _selecting(card: dict[str, Any]) -> str:
    """The options that select a card's neuron or head."""
    weight = [f"--weight {card['lines'][0]['weight']}"] if "head" in card["keys"] else []
    return " ".join([f"--{name} {number}" for name, number in card["keys"].items()] + weight)


def _map(df: pd.DataFrame) -> dict[str, Any]:
    """The best pair of every head as cells with colours, numbers and pairs, and how many heads had no room."""
    grid, _ = heads_grid(df)
    shown = grid.iloc[:MAX_HEADS, :MAX_HEADS]
    low, high = float(shown.min().min()), float(shown.max().max())
    best = {(unit.rows["layer"].iloc[0], unit.rows["head"].iloc[0]): chips(unit.rows, 3) for unit in units(df)}
    rows = []
    for layer in shown.index:
        cells = []
        for head in shown.columns:
            number = float(shown.at[layer, head])
            if number != number:
                cells.append(None)
                continue
            ground = theme.sequential((number - low) / ((high - low) or 1.0))
            short = figures(number, 2)
            cell = {"head": head, "ground": ground, "ink": theme.readable_on(ground), "pairs": best[layer, head]}
            cells.append(cell | {"number": short[1:] if short.startswith("0.") else short, "exact": figures(number)})
        rows.append({"layer": layer, "cells": cells})
    weight = str(df["weight"].iloc[0])
    said = {"W_OV": "what each head moves", "W_QK": "whom each head attends to"}[weight]
    return {
        "weight": weight,
        "said": said,
        "heads": list(shown.columns),
        "rows": rows,
        "left_out": grid.size - shown.size,
    }
