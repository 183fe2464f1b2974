"""Comparisons of two models as curves: stitched classifiers, and the tokens that tuning moves weights towards."""

from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.measurements import format_measure
from ..display.table_groups import check_columns
from .curves import CurveEnd, band, curve, name_ends, plot_by_layer
from .figure import AXIS, TOP, axis_title, balanced_columns, escape, finish, plotly

CONTROLS = ("random", "transpose", "untranslated")
REFERENCES = {"donor": "on the donor's own model", "chance": "chance"}
WIDTH, HEIGHT = 560, 330
MAX_COLUMNS = 3


def plot_stitch(df: pd.DataFrame) -> Any:
    """Draw the accuracy of stitched classifiers by the number of the recipient's blocks that run.

    Args:
        df: A table of `stitch_sweep()`, of one recipient.

    Returns:
        A plotly figure: one curve for each map, the median of the donors, with a band from the lowest to the highest;
        controls in grey; dashed lines for the donors themselves and for chance.

    Raises:
        EmbspaceError: If a column is missing or the table is empty; or plotly is not installed.
    """
    check_columns(df, "stitch", "plot_stitch()")
    go = plotly()
    figure = go.Figure()
    df = df.astype({"inverse": "str"})
    medians = df.groupby("inverse")["accuracy"].median().to_dict()
    curves = df[df["keep"] >= 0].groupby(["inverse", "keep"])["accuracy"].agg(["min", "median", "max"]).reset_index()
    inverses = sorted(
        set(curves["inverse"]), key=lambda name: (name not in CONTROLS, name)
    )  # controls below the others
    colours = dict(zip([name for name in inverses if name not in CONTROLS], theme.SERIES * 2))
    ends, control_ends = [], []
    for inverse in inverses:
        points = curves[curves["inverse"] == inverse]
        keep, low, median, high = (points[name].tolist() for name in ("keep", "min", "median", "max"))
        colour = colours.get(inverse, theme.GREY)
        figure.add_trace(band(go, keep, low, high, colour, 0.13))
        hover = [
            f"{escape(inverse)}, {k} blocks kept<br>median {format_measure(m)} ({format_measure(a)} to {format_measure(b)})"
            for k, a, m, b in zip(keep, low, median, high, strict=True)
        ]
        figure.add_trace(curve(go, keep, median, hover, colour, "solid" if inverse in colours else "dot"))
        if inverse in colours:
            ends.append(CurveEnd(escape(inverse), median[-1], colour))
        else:
            control_ends.append(median[-1])
    if control_ends:
        names = ", ".join(name for name in inverses if name in CONTROLS)
        ends.append(CurveEnd(names, sum(control_ends) / len(control_ends), theme.LIGHT.quiet))
    for inverse, name in REFERENCES.items():
        if inverse in medians:
            figure.add_hline(y=medians[inverse], line={"color": theme.LIGHT.quiet, "width": 1, "dash": "dash"})
            ends.append(CurveEnd(name, medians[inverse], theme.LIGHT.quiet))
    y_range = _padded_range(df["accuracy"].to_numpy())
    name_ends(figure, ends, y_range, HEIGHT)
    last = int(max(curves["keep"], default=0))
    recipient, n_donors, n = df["recipient"].iloc[0], len(set(df["donor"])), df["n"].iloc[0]
    x_title = axis_title(f"blocks of {escape(str(recipient))} that run")
    figure.update_xaxes(**AXIS, showgrid=False, showline=True, dtick=max(1, last // 12), title=x_title)
    figure.update_yaxes(**AXIS, gridcolor=theme.LIGHT.line, range=y_range, dtick=0.1, tickformat=".1f")
    figure.update_yaxes(title=axis_title("accuracy"))
    right = 24 + 7 * max((len(end.name) for end in ends), default=0)
    figure.update_layout(margin={"l": 64, "r": right, "t": TOP, "b": 54})
    counted = f"median of {n_donors} classifiers, bands from lowest to highest" if n_donors > 1 else "one classifier"
    title = "Accuracy of a classifier transferred to another model"
    return finish(figure, title, WIDTH + 64 + right, HEIGHT + TOP + 54, f"{counted}; {n:,} texts")


def plot_displacement(df: pd.DataFrame) -> Any:
    """Draw the share of top tokens of one sentiment among the directions of weight changes, by layer, with controls.

    Args:
        df: A table of `displacement()`.

    Returns:
        A plotly figure: a panel for each weight, bands for the 95 % intervals; controls are the weights before tuning
        (base) and random directions.

    Raises:
        EmbspaceError: If a column is missing or the table is empty; or plotly is not installed.
    """
    check_columns(df, "displacement", "plot_displacement()")
    df = df.dropna(subset=["share"])
    panels = [(str(weight), rows) for weight, rows in df.groupby("weight", sort=True, observed=True)]
    n_columns = balanced_columns(len(panels), MAX_COLUMNS)
    rows = [panels[i : i + n_columns] for i in range(0, len(panels), n_columns)]
    return plot_by_layer(rows, "share", "share", "Share of top tokens that are words of one sign", "directions")


def _padded_range(values: np.ndarray) -> tuple[float, float]:
    """The range of accuracies with a margin, within [0, 1]."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * max(high - low, 0.05)
    return max(0.0, low - margin), min(1.0, high + margin)
