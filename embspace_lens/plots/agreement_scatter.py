"""Scores from weights against the effects of interventions, one point per component."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.measurements import format_measure
from ..display.table_groups import name_of
from ..interventions.rank_correlation import agreement, in_both
from .figure import AXIS, TOP, axis_title, escape, finish, plotly

WIDTH, HEIGHT = 516, 320
N_NAMED = 3  # named points: this many of the largest effects, and as many of the highest scores


def plot_agreement(
    zero_pass: pd.DataFrame,
    causal: pd.DataFrame,
    on: Sequence[str] = ("layer", "head"),
    *,
    scores: tuple[str, str] = ("score", "value"),
    axis_labels: tuple[str, str] | None = None,
    **options: Any,
) -> Any:
    """Draw a score that is read from weights against an effect measured in forward passes.

    Args:
        zero_pass: As for `agreement`.
        causal: As for `agreement`.
        on: As for `agreement`.
        scores: As for `agreement`.
        axis_labels: What the two axes measure, with units; the names of the columns by default.
        **options: `n_resamples` and `seed`, as for `agreement`.

    Returns:
        A plotly figure: one point per component, the strongest named. The title states the rank correlation, the subtitle its
        interval and its control.

    Raises:
        EmbspaceError: As `agreement`; or if plotly is not installed.
    """
    keys = [on] if isinstance(on, str) else list(on)
    paired, permuted = agreement(zero_pass, causal, keys, scores=scores, **options).to_dict("records")
    go = plotly()
    points: Any = in_both(zero_pass, causal, on, scores).reset_index()
    names = [name_of({key: row[key] for key in keys}) for row in points.to_dict("records")]
    x, y = points["zero_pass"].to_numpy(dtype=float), points["causal"].to_numpy(dtype=float)
    hover = [
        f"{escape(name)}<br>{format_measure(score)}, {format_measure(effect)}"
        for name, score, effect in zip(names, x, y)
    ]
    marker = {"size": 8, "color": theme.BLUE, "opacity": 0.75, "line": {"width": 1, "color": "#ffffff"}}
    figure = go.Figure(go.Scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text"))
    strongest = [*np.argsort(-x, kind="stable")[:N_NAMED], *np.argsort(-np.abs(y), kind="stable")[:N_NAMED]]
    centre = (x.min() + x.max()) / 2
    for i in _without_overlaps(strongest, x / (np.ptp(x) or 1.0), y / (np.ptp(y) or 1.0)):
        is_right = x[i] > centre  # names are placed towards the centre, where there is room
        figure.add_annotation(
            x=x[i],
            y=y[i],
            text=escape(names[i]),
            showarrow=False,
            xanchor="right" if is_right else "left",
            xshift=-8 if is_right else 8,
            yshift=7,
            font={"size": 12, "color": theme.LIGHT.text},
        )
    labels = axis_labels or scores
    axis = AXIS | {"gridcolor": theme.LIGHT.line, "zeroline": True, "zerolinecolor": theme.LIGHT.line}
    figure.update_xaxes(**axis, title=axis_title(escape(labels[0])))
    figure.update_yaxes(**axis, title=axis_title(escape(labels[1])))
    figure.update_layout(margin={"l": 64, "r": 40, "t": TOP, "b": 54})
    title = (
        f"Scores from weights and effects of interventions: rank correlation {format_measure(paired['correlation'])}"
    )
    subtitle = (
        f"95 % interval {format_measure(paired['low'])} to {format_measure(paired['high'])}; "
        f"permuted {format_measure(permuted['low'])} to {format_measure(permuted['high'])}; n = {paired['n']}"
    )
    return finish(figure, title, WIDTH + 104, HEIGHT + TOP + 54, subtitle)


def _without_overlaps(points: list[Any], x: np.ndarray, y: np.ndarray) -> list[int]:
    """Points in the order given, without those whose name would overlap an earlier one."""
    named: list[int] = []
    for i in map(int, points):
        if all(abs(x[i] - x[j]) > 0.12 or abs(y[i] - y[j]) > 0.06 for j in named):
            named.append(i)
    return named
