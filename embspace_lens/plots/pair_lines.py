"""A head's best pairs of tokens as lines between two columns."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.table_groups import Unit, ends, tokens_or_pairs
from ..display.tokens import display, figures, pair
from .figure import few, plotly, quiet, text

MAX_HEADS = 9


def plot_pairs(df: pd.DataFrame, k: int = 12) -> Any:
    """Draw the best pairs of heads as lines between two columns of tokens, the stronger the thicker.

    Args:
        df: A table of `ov()` or `qk()`, of nine heads at most.
        k: How many pairs of each head.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If the table is another one, empty, or holds too many heads; or plotly is not installed.
    """
    go = plotly()
    tokens_or_pairs(df, "plot_pairs()", ("pairs",))
    found = few(df, MAX_HEADS, "plot_pairs()", "Select some: df.query('layer == 3'); or draw all with plot_heads(df).")
    from plotly.subplots import make_subplots

    n_columns = min(3, len(found))
    n_rows = -(-len(found) // n_columns)
    columns = {"W_OV": ("attended from", "promoted"), "W_QK": ("query", "key")}
    subtitles = [f"{unit.name} {unit.weight}" if len(found) > 1 else "" for unit in found]
    longest = max(
        len(display(token))
        for unit in found
        for end in ("src", "dest")
        for token in unit.rows.head(k)[f"{end}_token_string"]
    )
    side = 9 * min(longest, 22) + 18
    panel = 2 * side + 130
    tallest = max(len(unit.rows[f"{end}_token_index"].iloc[:k].unique()) for unit in found for end in ("src", "dest"))
    width, height = n_columns * panel + 40, n_rows * (24 * tallest + 74) + 100
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=subtitles, horizontal_spacing=0.0, vertical_spacing=44 / height
    )
    for place, unit in enumerate(found):
        _lines(go, figure, unit, k, (place // n_columns + 1, place % n_columns + 1), columns, side / panel)
    name = found[0].name
    verbs = {"W_OV": f"What head {name} moves", "W_QK": f"Whom head {name} attends to"}
    title = (
        verbs.get(found[0].weight, f"Pairs of {name}") if len(found) == 1 else "The best pairs of tokens, head by head"
    )
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False, range=[tallest - 0.4, -1.3])
    figure.update_annotations(font={"size": 13}, selector={"xanchor": "center"})
    figure.update_layout(margin={"l": 16, "r": 16, "t": 104 if len(found) > 1 else 76, "b": 12})
    return quiet(figure, escape(title), width, height, "the thicker the line, the higher the pair's score")


def _lines(go: Any, figure: Any, unit: Unit, k: int, where: tuple[int, int], columns: dict, side: float) -> None:
    """One head: each token once on each side, in the order of its best pair, and a line for each pair."""
    rows = unit.rows.head(k)
    left, right = ends(rows)
    places: list[dict[int, float]] = []
    for end in (left, right):
        tokens = list(dict.fromkeys(rows[f"{end}_token_index"]))
        # The shorter column stands in the middle of the longer one.
        n_other = max(len(rows[f"{e}_token_index"].unique()) for e in (left, right))
        places.append({token: i + (n_other - len(tokens)) / 2 for i, token in enumerate(tokens)})
    sizes = rows["score"].abs().to_numpy()
    strengths = sizes / max(float(sizes.max()), 1e-30)
    t = np.linspace(0, 1, 25)
    bend = t * t * (3 - 2 * t)
    for row, strength in list(zip(rows.to_dict("records"), strengths, strict=True))[::-1]:
        a, b = places[0][row[f"{left}_token_index"]], places[1][row[f"{right}_token_index"]]
        said = escape(pair(row[f"{left}_token_string"], row[f"{right}_token_string"]))
        negative = row["score"] < 0
        figure.add_trace(
            go.Scatter(
                x=side + (1 - 2 * side) * t,
                y=a + (b - a) * bend,
                mode="lines",
                hoverinfo="text",
                line={
                    "width": 0.8 + 3.2 * strength**2,
                    "color": theme.ORANGE if negative else theme.BLUE,
                    "dash": "dot" if negative else "solid",
                },
                opacity=0.35 + 0.6 * strength**2,
                hovertext=f"{escape(unit.name)} {unit.weight}<br>{said}<br>score {figures(row['score'])}",
            ),
            *where,
        )
    for end, x, anchor, column in ((left, side, "middle left", 0), (right, 1 - side, "middle right", 1)):
        strings = dict(zip(rows[f"{end}_token_index"], rows[f"{end}_token_string"], strict=True))
        figure.add_trace(
            go.Scatter(
                x=[x] * len(strings),
                y=[places[column][i] for i in strings],
                mode="text",
                hoverinfo="skip",
                text=[f"{text(s)} " if column == 0 else f" {text(s)}" for s in strings.values()],
                textposition=anchor,
                textfont={"family": theme.MONO, "size": 13},
                cliponaxis=False,
            ),
            *where,
        )
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[-0.95],
                mode="text",
                hoverinfo="skip",
                textposition=anchor,
                cliponaxis=False,
                text=[
                    f"{columns.get(unit.weight, ('from', 'to'))[column]} "
                    if column == 0
                    else f" {columns.get(unit.weight, ('from', 'to'))[column]}"
                ],
                textfont={"size": 11, "color": theme.LIGHT.quiet},
            ),
            *where,
        )
