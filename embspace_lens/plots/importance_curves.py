"""Importance of transformer factors over the layers."""

from typing import Any

import pandas as pd

from .. import errors
from ..display import theme
from ..display.measurements import format_measure
from ..display.table_groups import check_columns
from ..display.tokens import display, width
from .curves import CurveEnd, curve, layer_step, name_ends
from .figure import AXIS, TOP, axis_title, escape, finish, plotly

MAX_FACTORS = len(theme.SERIES)
WIDTH, HEIGHT = 460, 300
HIGHEST = 1.08  # top of the vertical axis


def plot_importance(df: pd.DataFrame, named: pd.DataFrame | None = None) -> Any:
    """Draw the importance of a few factors over the layers.

    Args:
        df: Rows of `importance`, or of `activity(…).importance`, of at most six factors.
        named: A table of `level`; its most frequent target tokens name the curves.

    Returns:
        A plotly figure: one curve per factor, each divided by its largest value.

    Raises:
        EmbspaceError: If a column is missing, the table is empty, or holds too many factors; or plotly is not installed.

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    check_columns(df, "importance", "plot_importance()")
    go = plotly()
    factors = sorted(set(df["factor"]))
    if len(factors) > MAX_FACTORS:
        remedy = "Select fewer."
        raise errors.too_many_groups("plot_importance()", MAX_FACTORS, "factors", len(factors), remedy)
    tokens = {} if named is None else dict(zip(named["factor"], named["token_string"]))
    figure, ends = go.Figure(), []
    for colour, factor in zip(theme.SERIES, factors):
        points = df.loc[df["factor"] == factor].sort_values(by="layer")
        largest = float(points["importance"].max()) or 1.0
        name = f"{factor} {display(tokens[factor])}" if tokens.get(factor) else str(factor)
        hover = [_hover_text(name, point["layer"], point["importance"]) for point in points.to_dict("records")]
        shares = points["importance"] / largest
        figure.add_trace(curve(go, points["layer"], shares, hover, colour))
        ends.append(CurveEnd(escape(name), float(shares.iloc[-1]), colour))
    name_ends(figure, ends, (0.0, HIGHEST), HEIGHT)
    figure.update_xaxes(
        **AXIS,
        showgrid=False,
        showline=True,
        dtick=layer_step(df["layer"].tolist(), 14),
        title=axis_title("layer (−1: embedding)"),
    )
    figure.update_yaxes(**AXIS, gridcolor=theme.LIGHT.line, range=[0, HIGHEST], dtick=0.25)
    figure.update_yaxes(title=axis_title("importance / largest importance"))
    right = 32 + 7 * max(width(end.name) for end in ends)
    figure.update_layout(margin={"l": 64, "r": right, "t": TOP, "b": 54})
    subtitle = "importance: mean of a factor's largest codes in a layer"
    return finish(figure, "Importance of factors over layers", WIDTH + 64 + right, HEIGHT + TOP + 54, subtitle)


def _hover_text(name: str, layer: int, importance: float) -> str:
    where = "embedding" if layer < 0 else f"layer {layer}"
    return f"factor {escape(name)}, {where}<br>importance {format_measure(importance)}"
