"""The papers' measurements as curves, with their controls and intervals."""

from typing import Any

import pandas as pd

from ..display import theme
from ..display.measurements import format_measure
from ..display.table_groups import check_columns
from .curves import PANEL_HEIGHT, CurveEnd, Dash, curve, name_ends, panel_grid, plot_by_layer
from .figure import axis_title, escape, finish, plotly

INVERSE_STYLES: dict[str, tuple[str, Dash]] = {"transpose": (theme.BLUE, "solid"), "pinv": (theme.ORANGE, "dash")}
TARGETS = {"layer": "output of the block", "final": "final hidden state"}


def plot_related_pairs(df: pd.DataFrame) -> Any:
    """Draw how many tokens paired parameters share, by layer, with the same for shuffled pairs.

    Args:
        df: A table of `evidence.related_pairs()`.

    Returns:
        A plotly figure: a panel for each pair of weights, bands for the 95 % intervals.

    Raises:
        EmbspaceError: If a column is missing or the table is empty; or plotly is not installed.
    """
    check_columns(df, "related_pairs", "plot_related_pairs()")
    panels = [[(str(pair), rows) for pair, rows in df.groupby("pair", sort=False)]]
    return plot_by_layer(panels, "jaccard", "Jaccard index", "Top tokens that paired parameters share", "pairs")


def plot_recall(df: pd.DataFrame) -> Any:
    """Draw the share of a hidden state's top tokens that its active parameters hold, with the same for permuted tokens.

    Args:
        df: A table of `evidence.hidden_state_recall()`.

    Returns:
        A plotly figure: a row for each target, a panel for each weight, bands for the 95 % intervals.

    Raises:
        EmbspaceError: If a column is missing or the table is empty; or plotly is not installed.
    """
    check_columns(df, "recall", "plot_recall()")
    panels = []
    for target in [name for name in TARGETS if name in set(df["target"])]:
        by_weight = df[df["target"] == target].groupby("weight", sort=True, observed=True)
        panels.append([(f"{weight}, {TARGETS[target]}", rows) for weight, rows in by_weight])
    title = "Top tokens of hidden states found among those of active parameters"
    return plot_by_layer(panels, "recall", "recall", title, "tokens")


def plot_keep_k(df: pd.DataFrame) -> Any:
    """Draw how well inner products agree with the true ones when each projection keeps k entries, for each right inverse.

    Args:
        df: A table of `evidence.keep_k()`.

    Returns:
        A plotly figure: a panel for each source of vectors, k on a logarithmic axis.

    Raises:
        EmbspaceError: If a column is missing or the table is empty; or plotly is not installed.
    """
    check_columns(df, "keep_k", "plot_keep_k()")
    go = plotly()
    panels = [[(str(source), rows) for source, rows in df.groupby("source", sort=False)]]
    panel_height = PANEL_HEIGHT + 20
    figure, width, height = panel_grid(panels, panel_height)
    bottom, top = min(0.0, df["similarity"].to_numpy().min()), 1.04
    for column, (source, rows) in enumerate(panels[0], 1):
        ends = []
        for inverse, points in rows.groupby("inverse", sort=False):
            hover = [
                f"{escape(source)}, {inverse}<br>{k:,} entries kept<br>cosine {format_measure(similarity)}"
                for k, similarity in zip(points["k"], points["similarity"], strict=True)
            ]
            colour, dash = INVERSE_STYLES.get(str(inverse), (theme.GREY, "dot"))
            figure.add_trace(curve(go, points["k"], points["similarity"], hover, colour, dash), 1, column)
            ends.append(CurveEnd(str(inverse), float(points["similarity"].iloc[-1]), colour))
        if column == len(panels[0]):
            name_ends(figure, ends, (bottom, top), panel_height, (1, column))
    figure.update_xaxes(type="log", dtick=1, tickformat=",", title=axis_title("entries kept (k)"))
    figure.update_yaxes(range=[bottom, top])
    figure.update_yaxes(title=axis_title("cosine"), col=1)
    title = "Inner products after keeping the k largest entries of each projection"
    return finish(figure, title, width, height, "cosine between these inner products and the true ones")
