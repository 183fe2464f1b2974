"""Tokens of neurons, sub-heads and directions as bars."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import errors
from ..display import theme
from ..display.table_groups import (
    VERBS,
    TableGroup,
    check_kind,
    features_as_tokens,
    key_columns,
    name_of,
    noun_of,
    table_groups,
)
from ..display.tokens import format_score
from .figure import TOP, balanced_columns, escape, finish, label_width, plotly, token_label

MAX_NAMES = 6
MAX_COLUMNS = 4
LONGEST_LABEL = 24  # characters that a label has room for
SELECT_FEWER = "Select fewer layers, heads, neurons or directions."


class BarPanel(NamedTuple):
    """One panel of bars, best on top."""

    row: int
    column: int
    title: str
    labels: list[str]
    scores: np.ndarray
    hover: list[str]


def plot_tokens(df: pd.DataFrame, k: int = 12) -> Any:
    """Draw the best tokens of neurons, sub-heads or directions as bars, the weights of a neuron side by side.

    Args:
        df: A table of `neurons()`, `subheads()`, `singular()` or `directions()`, of at most six neurons, sub-heads or
            directions; or of `search()`.
        k: How many tokens of each.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If the table is of another kind, empty, or holds too many; or plotly is not installed.

    Example:
        >>> plot_tokens(lens.neurons(layer=0, neuron=3)).layout.title.text
        'What neuron L0N3 reads, and what it writes'
    """
    go = plotly()
    df = features_as_tokens(df)
    if check_kind(df, "plot_tokens()", ("tokens", "search")) == "search":
        return _plot_search(go, df, k)
    n_rows = _count_rows(df)
    if n_rows > MAX_NAMES:
        raise errors.too_many_groups(
            "plot_tokens()", MAX_NAMES, "neurons, sub-heads or directions", n_rows, SELECT_FEWER
        )
    groups = list(table_groups(df))
    if not groups:
        raise errors.empty_table()
    rows = _rows_of_panels(groups)
    names = list(dict.fromkeys(group.name for group in groups))
    panels = [
        _panel(i, j, group, k, with_name=len(names) > 1) for i, row in enumerate(rows) for j, group in enumerate(row)
    ]
    return _draw(go, panels, len(rows), max(map(len, rows)), escape(_title(df, names, panels)))


def _count_rows(df: pd.DataFrame) -> int:
    """How many rows of panels `_rows_of_panels` makes, without the groups."""
    within_row = ("side",) if "component" in df.columns else ("weight", "side")
    names = [name for name in key_columns(df) if name not in within_row]
    return len(df[names].drop_duplicates()) if names else min(1, len(df))


def _rows_of_panels(groups: list[TableGroup]) -> list[list[TableGroup]]:
    """One row of panels for each neuron, head or direction; for singular directions, one for each component."""
    rows: dict[tuple[str, str], list[TableGroup]] = {}
    for group in groups:
        words = group.weight.split(" ")
        rows.setdefault((group.name, " ".join(words[:-1]) if len(words) == 3 else ""), []).append(group)
    return list(rows.values())


def _panel(row: int, column: int, group: TableGroup, k: int, *, with_name: bool) -> BarPanel:
    rows = group.rows.head(k)
    labels = list(map(token_label, rows["token_string"]))
    weight = f"{VERBS[group.weight]} ({group.weight})" if group.weight in VERBS else group.weight
    hover = [
        f"{escape(group.name)} {escape(group.weight)}<br>{label} (id {token_id})<br>score {format_score(score)}"
        for label, token_id, score in zip(labels, rows["token_index"], rows["score"], strict=True)
    ]
    title = " ".join(part for part in (group.name if with_name else "", weight) if part)
    return BarPanel(row, column, title, labels, rows["score"].to_numpy(), hover)


def _title(df: pd.DataFrame, names: list[str], panels: list[BarPanel]) -> str:
    if len(names) > 1:
        return f"The best tokens of {', '.join(names)}"
    if "neuron" in df.columns and len(panels) == 2:
        return f"What neuron {names[0]} reads, and what it writes"
    noun = noun_of(df)
    return (
        f"The best tokens of {'' if noun == 'direction' else f'{noun} '}{names[0]}" if names[0] else "The best tokens"
    )


def _plot_search(go: Any, df: pd.DataFrame, k: int) -> Any:
    """One panel of components for each weight."""
    if df.empty:
        raise errors.empty_table()
    by_weight = list(df.groupby("weight", sort=False, observed=True))
    n_columns = balanced_columns(len(by_weight), MAX_COLUMNS)
    panels = []
    for i, (weight, rows) in enumerate(by_weight):
        rows = rows.sort_values("rank").head(k)
        labels = [name_of(row) for row in rows.to_dict("records")]
        scores = map(format_score, rows["score"])
        hover = [f"{label} {weight}<br>score {score}" for label, score in zip(labels, scores, strict=True)]
        title = f"{VERBS.get(str(weight), '')} ({weight})"
        panels.append(BarPanel(i // n_columns, i % n_columns, title, labels, rows["score"].to_numpy(), hover))
    title = f"Components that score {token_label(df['token_string'].iloc[0])} highest"
    return _draw(go, panels, panels[-1].row + 1, n_columns, title)


def _draw(go: Any, panels: list[BarPanel], n_rows: int, n_columns: int, title: str) -> Any:
    from plotly.subplots import make_subplots

    titles = [[""] * n_columns for _ in range(n_rows)]
    for panel in panels:
        titles[panel.row][panel.column] = escape(panel.title)
    longest = min(LONGEST_LABEL, max((label_width(label) for panel in panels for label in panel.labels), default=4))
    most_bars = max(len(panel.labels) for panel in panels)
    gap = 8.4 * longest + 56  # between two columns of panels, for labels
    width = int(40 + n_columns * (150 + gap))
    height = n_rows * (22 * most_bars + 70) + TOP - 30
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[name for row in titles for name in row],
        horizontal_spacing=min(gap / width, 0.9 / max(1, n_columns - 1)),
        vertical_spacing=min(48 / max(1, height - 130), 0.8 / n_rows),
    )
    low = min(0.0, *(float(panel.scores.min()) for panel in panels))
    high = max(0.0, *(float(panel.scores.max()) for panel in panels))
    room = 0.16 * (high - low)  # for the numbers at the ends of the bars
    x_range = [low - (room if low < 0 else 0), high + (room if high > 0 else 0)]
    for panel in panels:
        _draw_bars(go, figure, panel, x_range)
    figure.update_annotations(font={"size": 13, "color": theme.LIGHT.quiet})
    figure.update_layout(margin={"l": 8.4 * longest + 28, "r": 30, "t": TOP, "b": 20}, bargap=0.3)
    return finish(figure, title, max(width, 420), height, "bars and numbers: score")


def _draw_bars(go: Any, figure: Any, panel: BarPanel, x_range: list[float]) -> None:
    cell = {"row": panel.row + 1, "col": panel.column + 1}
    positions = np.arange(len(panel.labels))
    bars = go.Bar(
        x=panel.scores,
        y=positions,
        orientation="h",
        width=0.62,
        hovertext=panel.hover,
        hoverinfo="text",
        cliponaxis=False,
        marker={"color": np.where(panel.scores < 0, theme.ORANGE, theme.BLUE).tolist()},
        text=[format_score(float(score)) for score in panel.scores],
        textposition="outside",
        textfont={"size": 11, "color": theme.LIGHT.quiet},
    )
    figure.add_trace(bars, **cell)
    quiet = {"showgrid": False, "showline": False, "ticks": ""}
    figure.update_yaxes(
        tickvals=positions,
        ticktext=panel.labels,
        range=[len(panel.labels) - 0.4, -0.6],
        tickfont={"family": theme.MONO, "size": 13},
        ticklabelstandoff=6,
        zeroline=False,
        **quiet,
        **cell,
    )
    figure.update_xaxes(
        range=x_range, zeroline=True, zerolinecolor=theme.LIGHT.line, showticklabels=False, **quiet, **cell
    )
