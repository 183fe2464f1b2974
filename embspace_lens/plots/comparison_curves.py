"""Comparisons of two models as curves: classifiers on another model, and where tuning points."""

from html import escape
from typing import Any

import pandas as pd

from ..display import theme
from ..display.measurements import measure
from .curves import by_layer, check, line, name_ends
from .figure import plotly, quiet

CONTROLS = ("random", "transpose", "untranslated")
WIDTH, HEIGHT = 560, 330
PER_ROW = 3


def plot_stitch(df: pd.DataFrame) -> Any:
    """Draw how well classifiers do on another model, for every number of kept blocks.

    Args:
        df: A table of `stitch_sweep()`, of one recipient.

    Returns:
        A plotly figure: a curve for each kernel, the median of the donors, and a band from the worst to the best; controls in
        grey, and dashed what the donors reach themselves, and chance.

    Raises:
        EmbspaceError: If the table is another one or empty; or plotly is not installed.
    """
    check(df, ("recipient", "donor", "kernel", "keep", "accuracy", "low", "high", "n"), "plot_stitch()")
    go = plotly()
    figure = go.Figure()
    df = df.astype({"kernel": "str"})
    levels = df.groupby("kernel")["accuracy"].median().to_dict()
    swept = df[df["keep"] >= 0]
    found = swept.groupby(["kernel", "keep"])["accuracy"].agg(["min", "median", "max"]).reset_index()
    kernels = sorted(set(found["kernel"]), key=lambda name: (name not in CONTROLS, name))  # the claim is drawn on top
    colours = dict(zip([name for name in kernels if name not in CONTROLS], theme.SERIES * 2))
    ends, at_end = [], []
    for kernel in kernels:
        part = found[found["kernel"] == kernel]
        rows = {name: part[name].tolist() for name in ("keep", "min", "median", "max")}
        keep, middle = rows["keep"], rows["median"]
        colour = colours.get(kernel, theme.GREY)
        band = {"line": {"width": 0}, "fillcolor": colour, "opacity": 0.13, "fill": "toself", "mode": "lines"}
        outline = [*rows["max"], *rows["min"][::-1]]
        figure.add_trace(go.Scatter(x=[*keep, *keep[::-1]], y=outline, hoverinfo="skip", **band))
        hover = [
            f"{escape(kernel)}, {k} blocks kept<br>median {measure(m)} ({measure(a)} to {measure(b)})"
            for k, a, m, b in zip(keep, rows["min"], middle, rows["max"], strict=True)
        ]
        figure.add_trace(line(go, keep, middle, hover, colour, "solid" if kernel in colours else "dot"))
        if kernel in colours:
            ends.append((escape(kernel), middle[-1], colour))
        else:
            at_end.append(middle[-1])
    if at_end:
        names = ", ".join(name for name in kernels if name in CONTROLS)
        ends.append((names, sum(at_end) / len(at_end), theme.LIGHT.quiet))
    for name, said in (("donor", "on its own model"), ("chance", "chance")):
        if name in levels:
            figure.add_hline(y=levels[name], line={"color": theme.LIGHT.quiet, "width": 1, "dash": "dash"})
            ends.append((said, levels[name], theme.LIGHT.quiet))
    top, bottom = _range(df["accuracy"])
    name_ends(figure, ends, (top - bottom) / HEIGHT)
    last = int(max(found["keep"], default=0))
    axis = {"linecolor": theme.LIGHT.line, "tickfont": {"size": 11, "color": theme.LIGHT.quiet}, "zeroline": False}
    recipient, donors, n = df["recipient"].iloc[0], len(set(df["donor"])), df["n"].iloc[0]
    figure.update_xaxes(**axis, showgrid=False, showline=True, ticks="", dtick=max(1, last // 12))
    figure.update_xaxes(
        title={"text": f"blocks of {escape(str(recipient))} that run", "font": {"size": 12}, "standoff": 6}
    )
    figure.update_yaxes(**axis, gridcolor=theme.LIGHT.line, range=[bottom, top], dtick=0.1, tickformat=".1f")
    figure.update_yaxes(title={"text": "accuracy", "font": {"size": 12}})
    figure.update_layout(margin={"l": 64, "r": 220, "t": 92, "b": 54})
    many = f"median of {donors} classifiers, bands from the worst to the best" if donors > 1 else "one classifier"
    subtitle = f"{many}; {n:,} texts"
    return quiet(figure, "A classifier on a model it was not made for", WIDTH + 284, HEIGHT + 146, subtitle)


def plot_displacement(df: pd.DataFrame) -> Any:
    """Draw how far tuning points to words of one sign, layer by layer, above random directions and the base's own weights.

    Args:
        df: A table of `displacement()`.

    Returns:
        A plotly figure: a panel for each weight, bands for the 95 % intervals.

    Raises:
        EmbspaceError: If the table is another one or empty; or plotly is not installed.
    """
    check(df, ("layer", "weight", "sample", "share", "low", "high", "n"), "plot_displacement()")
    df = df.dropna(subset=["share"])
    panels = [(str(weight), rows) for weight, rows in df.groupby("weight", sort=True, observed=True)]
    rows = [panels[i : i + PER_ROW] for i in range(0, len(panels), PER_ROW)]
    return by_layer(rows, "share", "share", "Top tokens that are words of one sign", "directions")


def _range(values: Any) -> tuple[float, float]:
    """A little more than the values take."""
    low, high = float(values.min()), float(values.max())
    room = 0.06 * max(high - low, 0.05)
    return min(1.0, high + room), max(0.0, low - room)
