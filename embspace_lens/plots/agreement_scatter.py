"""What the weights say against what an intervention does, unit by unit."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.measurements import measure
from ..display.table_groups import name_of
from ..interventions.rank_correlation import agreement, in_both
from .figure import plotly, quiet

WIDTH, HEIGHT = 420, 320
NAMED = 3  # of the largest effects, and of the highest scores


def plot_agreement(
    zero_pass: pd.DataFrame,
    causal: pd.DataFrame,
    on: Sequence[str] = ("layer", "head"),
    *,
    scores: tuple[str, str] = ("score", "value"),
    said: tuple[str, str] | None = None,
    **options: Any,
) -> Any:
    """Draw a score of units, read from weights, against their effect in forward passes.

    Args:
        zero_pass: As for `agreement`.
        causal: As for `agreement`.
        on: As for `agreement`.
        scores: As for `agreement`.
        said: What the two axes measure, with units; the names of the columns by default.
        **options: `n_resamples` and `seed`, as for `agreement`.

    Returns:
        A plotly figure: a point a unit, the strongest named; the rank correlation, its interval and its control stand under the title.

    Raises:
        EmbspaceError: As `agreement`; or if plotly is not installed.
    """
    keys = [on] if isinstance(on, str) else list(on)
    found = agreement(zero_pass, causal, keys, scores=scores, **options).to_dict("records")
    go = plotly()
    both: Any = in_both(zero_pass, causal, on, scores).reset_index()
    names = [name_of({key: row[key] for key in keys}) for row in both.to_dict("records")]
    x, y = both["zero_pass"].to_numpy(dtype=float), both["causal"].to_numpy(dtype=float)
    strongest = [*np.argsort(-x, kind="stable")[:NAMED], *np.argsort(-np.abs(y), kind="stable")[:NAMED]]
    marked = _apart(strongest, x / (np.ptp(x) or 1.0), y / (np.ptp(y) or 1.0))
    figure = go.Figure()
    hover = [f"{escape(name)}<br>{measure(i)}, {measure(j)}" for name, i, j in zip(names, x, y)]
    marker = {"size": 8, "color": theme.BLUE, "opacity": 0.75, "line": {"width": 1, "color": "#ffffff"}}
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text"))
    middle = (x.min() + x.max()) / 2
    for i in marked:
        right = x[i] > middle  # names stand on the side where there is room
        figure.add_annotation(
            x=x[i], y=y[i], text=escape(names[i]), showarrow=False, xanchor="right" if right else "left",
            xshift=-8 if right else 8, yshift=7, font={"size": 12, "color": theme.LIGHT.text},
        )  # fmt: skip
    axis = {
        "linecolor": theme.LIGHT.line,
        "tickfont": {"size": 11, "color": theme.LIGHT.quiet},
        "zerolinecolor": theme.LIGHT.line,
    }
    names_of_axes = said or scores
    figure.update_xaxes(
        **axis, gridcolor=theme.LIGHT.line, ticks="", title={"text": escape(names_of_axes[0]), "font": {"size": 12}}
    )
    figure.update_yaxes(
        **axis, gridcolor=theme.LIGHT.line, ticks="", title={"text": escape(names_of_axes[1]), "font": {"size": 12}}
    )
    figure.update_layout(margin={"l": 64, "r": 40, "t": 92, "b": 54})
    paired, permuted = found
    subtitle = (
        f"rank correlation {measure(paired['correlation'])} ({measure(paired['low'])} to {measure(paired['high'])}); "
        f"permuted {measure(permuted['low'])} to {measure(permuted['high'])}; n = {paired['n']}"
    )
    return quiet(figure, "What the weights say, and what an intervention does", WIDTH + 200, HEIGHT + 146, subtitle)


def _apart(order: list[Any], x: np.ndarray, y: np.ndarray) -> list[int]:
    """Points in the order given, those left out whose name would lie on another's."""
    kept: list[int] = []
    for i in map(int, order):
        if all(abs(x[i] - x[j]) > 0.12 or abs(y[i] - y[j]) > 0.06 for j in kept):
            kept.append(i)
    return kept
