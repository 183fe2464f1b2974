"""Importance of transformer factors, drawn over the layers."""

from html import escape
from typing import Any

import pandas as pd

from ..display import theme
from ..display.measurements import measure
from ..display.tokens import display
from ..errors import EmbspaceError
from .curves import check, line, name_ends
from .figure import plotly, quiet

MOST = len(theme.SERIES)
WIDTH, HEIGHT = 460, 300
TOP = 1.16  # room for the names of curves that all end at their peaks


def plot_importance(df: pd.DataFrame, named: pd.DataFrame | None = None) -> Any:
    """Draw how strong a few factors are in each layer.

    Args:
        df: Rows of `importance`, or of `activity(…).importance`, of a few factors.
        named: A table of `level`, whose commonest targets name the curves.

    Returns:
        A plotly figure: one curve a factor, each as a share of its own largest, so that their shapes compare.

    Raises:
        EmbspaceError: If the table is another one, empty, or of more factors than a picture can hold; or plotly is not installed.

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
    """
    check(df, ("factor", "layer", "importance"), "plot_importance()")
    go = plotly()
    factors = sorted(set(df["factor"]))
    if len(factors) > MOST:
        raise EmbspaceError(
            f"{len(factors)} factors are more than a picture can hold; choose up to {MOST}: df[df['factor'].isin([0, 1])]."
        )
    names = {} if named is None else dict(zip(named["factor"], named["token_string"]))
    figure, ends = go.Figure(), []
    for colour, factor in zip(theme.SERIES, factors):
        curve = df.loc[df["factor"] == factor].sort_values(by="layer")
        most = float(curve["importance"].max()) or 1.0
        name = f"{factor} {display(names[factor])}" if names.get(factor) else str(factor)
        hover = [
            f"factor {escape(name)}, {'embedding' if r['layer'] < 0 else 'layer ' + str(r['layer'])}<br>importance {measure(r['importance'])}"
            for r in curve.to_dict("records")
        ]
        share = curve["importance"] / most
        figure.add_trace(line(go, curve["layer"], share, hover, colour))
        ends.append((escape(name), float(share.iloc[-1]), colour))
    name_ends(figure, ends, TOP / HEIGHT)
    axis = {"linecolor": theme.LIGHT.line, "tickfont": {"size": 11, "color": theme.LIGHT.quiet}, "zeroline": False}
    layers = df["layer"].to_numpy()
    every = max(1, -(-(int(layers.max()) - int(layers.min()) + 1) // 14))
    figure.update_xaxes(**axis, showgrid=False, showline=True, ticks="", dtick=every)
    figure.update_xaxes(title={"text": "layer (−1: the embedding)", "font": {"size": 12}, "standoff": 6})
    figure.update_yaxes(**axis, gridcolor=theme.LIGHT.line, range=[0, TOP], dtick=0.25)
    figure.update_yaxes(title={"text": "importance, share of its peak", "font": {"size": 12}})
    figure.update_layout(margin={"l": 64, "r": 150, "t": 92, "b": 54})
    return quiet(
        figure, "Importance over layers", WIDTH + 214, HEIGHT + 146, "mean of the largest codes of each factor"
    )
