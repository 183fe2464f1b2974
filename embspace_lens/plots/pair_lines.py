"""The best pairs of tokens of heads as lines between two columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..display import theme
from ..display.table_groups import TableGroup, check_kind, features_as_tokens, pair_ends
from ..display.tokens import cut_end, display, format_score, pair, width
from .figure import balanced_columns, escape, finish, groups_to_draw, plotly

MAX_HEADS = 9
MAX_COLUMNS = 3
ROW_HEIGHT = 24
HEADINGS = {"W_OV": ("attended to", "promoted"), "W_QK": ("query", "key")}
TITLES = {"W_OV": "What head {} moves", "W_QK": "What head {} attends to"}


LONGEST_LABEL = 36  # characters


def plot_pairs(df: pd.DataFrame, k: int = 12) -> Any:
    """Draw the best pairs of heads as lines between two columns of tokens; a thicker line is a higher score.

    Args:
        df: A table of `ov()` or `qk()`, of nine heads at most.
        k: How many pairs of each head.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If the table is of another kind, empty, or holds too many heads; or plotly is not installed.

    Example:
        >>> plot_pairs(lens.qk(layer=0, head=1), k=5).layout.title.text
        'What head L0H1 attends to'
    """
    go = plotly()
    df = features_as_tokens(df)
    check_kind(df, "plot_pairs()", ("pairs",))
    remedy = "Select fewer layers or heads; all heads of one weight are drawn as a map (plot_heads)."
    groups = groups_to_draw(df, MAX_HEADS, "plot_pairs()", remedy)
    from plotly.subplots import make_subplots

    n_columns = balanced_columns(len(groups), MAX_COLUMNS)
    n_rows = -(-len(groups) // n_columns)
    columns = [(group.rows.head(k), end) for group in groups for end in ("src", "dest")]
    longest = max(width(_label(token)) for rows, end in columns for token in rows[f"{end}_token_string"])
    most_tokens = max(len(set(rows[f"{end}_token_index"])) for rows, end in columns)
    label_width = 9 * longest + 18
    panel_width = 2 * label_width + 130
    height = n_rows * (ROW_HEIGHT * most_tokens + 74) + 100
    is_single = len(groups) == 1
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=["" if is_single else f"{escape(group.name)} {group.weight}" for group in groups],
        horizontal_spacing=0.0,
        vertical_spacing=44 / height,
    )
    for i, group in enumerate(groups):
        _draw_head(go, figure, group, k, (i // n_columns + 1, i % n_columns + 1), label_width / panel_width)
    title = "The best pairs of tokens of each head"
    if is_single:
        title = TITLES.get(groups[0].weight, "The best pairs of {}").format(groups[0].name)
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False, range=[most_tokens - 0.4, -1.3])
    figure.update_annotations(font={"size": 13}, selector={"xanchor": "center"})
    figure.update_layout(margin={"l": 16, "r": 16, "t": 76 if is_single else 104, "b": 12})
    return finish(figure, escape(title), n_columns * panel_width + 40, height, "thicker lines: higher scores")


def _draw_head(go: Any, figure: Any, group: TableGroup, k: int, cell: tuple[int, int], label_width: float) -> None:
    """One head: its best pairs between two columns."""
    rows = group.rows.head(k)
    ends = pair_ends(rows)
    columns = [
        PairColumn(rows[f"{end}_token_index"].tolist(), list(map(_label, rows[f"{end}_token_string"])), heading)
        for end, heading in zip(ends, HEADINGS.get(group.weight, ("from", "to")), strict=True)
    ]
    pairs = zip(*(rows[f"{end}_token_string"] for end in ends), rows["score"], strict=True)
    hover = [
        f"{escape(group.name)} {group.weight}<br>{escape(pair(a, b))}<br>score {format_score(score)}"
        for a, b, score in pairs
    ]
    draw_pairs(go, figure, columns, rows["score"].to_numpy(), hover, cell, label_width)


def _label(token: str) -> str:
    """A token or the label of a feature, as displayed."""
    return cut_end(display(token), LONGEST_LABEL)


class PairColumn(NamedTuple):
    """One side of pairs.

    Attributes:
        keys: What each pair has on this side, best pair first; equal keys are one mark.
        labels: The text of each, as displayed.
        heading: The title of the column.
    """

    keys: list[Any]
    labels: list[str]
    heading: str

    @property
    def distinct(self) -> dict[Any, str]:
        """The label of each key, in the order of its best pair."""
        return dict(zip(self.keys, self.labels, strict=True))


def draw_pairs(
    go: Any,
    figure: Any,
    columns: Sequence[PairColumn],
    scores: Float[np.ndarray, " n"],
    hover: Sequence[str],
    cell: tuple[int, int],
    label_width: float,
) -> None:
    """Draw pairs as lines between two columns of labels; negative scores are orange and dotted.

    Args:
        go: The module `plotly.graph_objects`.
        figure: The figure.
        columns: The left and the right column.
        scores: The score of each pair, best pair first.
        hover: The text of each pair's line.
        cell: Row and column of the panel.
        label_width: The share of the panel that the labels of one column take.
    """
    heights = [_heights(column, columns) for column in columns]
    strengths = np.abs(scores) / max(float(np.abs(scores).max()), 1e-30)
    t = np.linspace(0, 1, 25)
    smooth = t * t * (3 - 2 * t)
    for i in range(len(scores))[::-1]:  # the best pair on top
        left, right = (height[column.keys[i]] for height, column in zip(heights, columns, strict=True))
        is_negative, strength = bool(scores[i] < 0), float(strengths[i])
        line = {
            "width": 0.8 + 3.2 * strength**2,
            "color": theme.ORANGE if is_negative else theme.BLUE,
            "dash": "dot" if is_negative else "solid",
            "simplify": False,  # plotly would leave out points, and the curve would have corners
        }
        curve = go.Scatter(
            x=label_width + (1 - 2 * label_width) * t,
            y=left + (right - left) * smooth,
            mode="lines",
            hoverinfo="text",
            line=line,
            opacity=0.35 + 0.6 * strength**2,
            hovertext=hover[i],
        )
        figure.add_trace(curve, *cell)
    positions = (label_width, "middle left"), (1 - label_width, "middle right")
    for column, height, (x, position) in zip(columns, heights, positions, strict=True):
        labels = [column.heading, *map(escape, column.distinct.values())]
        figure.add_trace(
            go.Scatter(
                x=[x] * len(labels),
                y=[-0.95, *(height[key] for key in column.distinct)],
                mode="text",
                hoverinfo="skip",
                text=[f" {label}" if position == "middle right" else f"{label} " for label in labels],
                textposition=position,
                textfont={
                    "family": [theme.SANS] + [theme.MONO] * (len(labels) - 1),
                    "size": [11] + [13] * (len(labels) - 1),
                    "color": [theme.LIGHT.quiet] + [theme.LIGHT.text] * (len(labels) - 1),
                },
                cliponaxis=False,
            ),
            *cell,
        )


def _heights(column: PairColumn, columns: Sequence[PairColumn]) -> dict[Any, float]:
    """The vertical position of each key of one column; the shorter column is centred beside the longer one."""
    n, n_longer = len(column.distinct), max(len(other.distinct) for other in columns)
    return {key: i + (n_longer - n) / 2 for i, key in enumerate(column.distinct)}
