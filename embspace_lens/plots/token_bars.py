"""Tokens of neurons, sub-heads and directions as bars."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.table_groups import VERBS, Unit, name_of, tokens_or_pairs
from ..display.tokens import figures
from ..errors import EmbspaceError
from .figure import few, plotly, quiet, text

MAX_UNITS = 6


def _by_name(found: list[Unit]) -> dict[str, list[Unit]]:
    groups: dict[str, list[Unit]] = {}
    for unit in found:
        groups.setdefault(unit.name, []).append(unit)
    return groups


def _said(unit: Unit) -> str:
    """What a panel shows: `writes (W_out)`."""
    weight = unit.weight.split(" ")[0]
    if weight == unit.weight and weight in VERBS:
        return f"{VERBS[weight]} ({weight})"
    return unit.weight


def plot_tokens(df: pd.DataFrame, k: int = 12) -> Any:
    """Draw the best tokens of neurons, sub-heads or directions as bars; both weights of a neuron stand side by side.

    Args:
        df: A table of `neurons()`, `subheads()`, `singular()`, `directions()` or `search()`, of six neurons (or heads,
            directions) at most.
        k: How many tokens of each.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If the table is another one, empty, or holds too many; or plotly is not installed.
    """
    go = plotly()
    if tokens_or_pairs(df, "plot_tokens()", ("tokens", "search")) == "search":
        return _plot_search(df, k)
    rows_of_panels = _by_name(
        few(df, 4 * MAX_UNITS, "plot_tokens()", "Select some: df.query('layer == 0 and neuron < 3').")
    )
    if len(rows_of_panels) > MAX_UNITS:
        raise EmbspaceError(
            f"plot_tokens() draws at most {MAX_UNITS} at a time, and this table holds {len(rows_of_panels)}. "
            "Select some: df.query('layer == 0 and neuron < 3')."
        )
    panels = [
        (row, column, unit) for row, group in enumerate(rows_of_panels.values()) for column, unit in enumerate(group)
    ]
    n_columns = max(len(group) for group in rows_of_panels.values())
    bars = []
    for row, column, unit in panels:
        rows = unit.rows.head(k)
        labels = [text(token) for token in rows["token_string"]]
        title = " ".join(part for part in (unit.name if len(rows_of_panels) > 1 else "", _said(unit)) if part)
        hover = [
            f"{escape(unit.name)} {escape(unit.weight)}<br>{label} (id {i})<br>score {figures(s)}"
            for label, i, s in zip(labels, rows["token_index"], rows["score"], strict=True)
        ]
        bars.append((row, column, title, labels, rows["score"].to_numpy(), hover))
    names = list(rows_of_panels)
    what = f"neuron {names[0]}" if len(names) == 1 and "neuron" in df.columns else (names[0] if len(names) == 1 else "")
    if what and n_columns == 2 and "neuron" in df.columns:
        title = f"What {what} reads, and what it writes"
    elif what:
        title = f"The tokens of {what}"
    else:
        title = f"The best tokens of {', '.join(names)}"
    return _bars(go, bars, len(rows_of_panels), n_columns, escape(title))


def _plot_search(df: pd.DataFrame, k: int) -> Any:
    go = plotly()
    if df.empty:
        raise EmbspaceError("The table is empty: there is nothing to draw.")
    bars = []
    for column, (weight, rows) in enumerate(df.groupby("weight", sort=False, observed=True)):
        rows = rows.sort_values("rank").head(k)
        labels = [name_of(row) for row in rows.to_dict("records")]
        scores = map(figures, rows["score"])
        hover = [f"{label} {weight}<br>score {score}" for label, score in zip(labels, scores, strict=True)]
        title = f"{VERBS.get(str(weight), '')} ({weight})"
        bars.append((column // 4, column % 4, title, labels, rows["score"].to_numpy(), hover))
    token = text(df["token_string"].iloc[0])
    n_columns = min(4, len(bars))
    return _bars(go, bars, -(-len(bars) // 4), n_columns, f"Who reads and who writes {token}")


def _bars(go: Any, bars: list, n_rows: int, n_columns: int, title: str) -> Any:
    from plotly.subplots import make_subplots

    titles = [[""] * n_columns for _ in range(n_rows)]
    for row, column, name, *_ in bars:
        titles[row][column] = escape(name)
    longest = max((len(label) for *_, labels, _, _ in bars for label in labels), default=4)
    tallest = max(len(labels) for *_, labels, _, _ in bars)
    width = min(1400, max(420, 40 + n_columns * (200 + 8 * min(longest, 24))))
    height = n_rows * (22 * tallest + 70) + 74
    gap = 48 / max(1, height - 130)
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[name for row in titles for name in row],
        horizontal_spacing=min(0.4, (8.4 * min(longest, 24) + 56) / width)
        if n_columns < 4
        else min(0.16, (8.4 * longest + 56) / width),
        vertical_spacing=min(gap, 0.8 / n_rows),
    )
    low = min(0.0, *(float(scores.min()) for *_, scores, _ in bars))
    high = max(0.0, *(float(scores.max()) for *_, scores, _ in bars))
    room = 0.16 * (high - low)
    for row, column, _, labels, scores, hover in bars:
        place = np.arange(len(labels))
        figure.add_trace(
            go.Bar(
                x=scores,
                y=place,
                orientation="h",
                width=0.62,
                hovertext=hover,
                hoverinfo="text",
                cliponaxis=False,
                marker={"color": np.where(scores < 0, theme.ORANGE, theme.BLUE).tolist()},
                text=[figures(float(s)) for s in scores],
                textposition="outside",
                textfont={"size": 11, "color": theme.LIGHT.quiet},
            ),
            row + 1,
            column + 1,
        )
        figure.update_yaxes(
            tickvals=place,
            ticktext=labels,
            range=[len(labels) - 0.4, -0.6],
            tickfont={"family": theme.MONO, "size": 13},
            showgrid=False,
            zeroline=False,
            showline=False,
            ticks="",
            ticklabelstandoff=6,
            row=row + 1,
            col=column + 1,
        )
        figure.update_xaxes(
            range=[low - (room if low < 0 else 0), high + (room if high > 0 else 0)],
            showgrid=False,
            zeroline=True,
            zerolinecolor=theme.LIGHT.line,
            showline=False,
            showticklabels=False,
            ticks="",
            row=row + 1,
            col=column + 1,
        )
    figure.update_annotations(font={"size": 13, "color": theme.LIGHT.quiet})
    margin = {"l": 8.2 * min(longest, 24) + 28, "r": 30, "t": 104, "b": 20}
    figure.update_layout(margin=margin, bargap=0.3)
    return quiet(figure, title, width, height, "bars and numbers: the lens's score")
