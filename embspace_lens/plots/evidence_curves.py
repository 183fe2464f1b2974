"""The papers' measurements as curves: the claim in colour, its control in grey, and how sure each is."""

from html import escape
from typing import Any

import pandas as pd

from ..display import theme
from ..display.measurements import measure
from .curves import ROW, by_layer, check, grid, line, name_ends
from .figure import plotly, quiet

INVERSE_COLOURS = {"transpose": theme.BLUE, "pinv": theme.ORANGE}
TARGETS = {"layer": "the block's own output", "final": "the final state"}


def plot_related_pairs(df: pd.DataFrame) -> Any:
    """Draw how many tokens paired parameters share, layer by layer, above the same for shuffled partners.

    Args:
        df: A table of `evidence.related_pairs()`.

    Returns:
        A plotly figure: a panel for each pair of weights, bands for the 95 % intervals.

    Raises:
        EmbspaceError: If the table is another one or empty; or plotly is not installed.
    """
    check(df, ("layer", "pair", "sample", "jaccard", "low", "high", "n"), "plot_related_pairs()")
    panels = [[(str(pair), rows) for pair, rows in df.groupby("pair", sort=False)]]
    return by_layer(panels, "jaccard", "Jaccard", "Tokens that the two parameters of a unit share", "units")


def plot_recall(df: pd.DataFrame) -> Any:
    """Draw how much of a hidden state its active parameters recall, layer by layer, above the same for permuted tokens.

    Args:
        df: A table of `evidence.hidden_state_recall()`.

    Returns:
        A plotly figure: a row for each target, a panel for each weight, bands for the 95 % intervals.

    Raises:
        EmbspaceError: If the table is another one or empty; or plotly is not installed.
    """
    check(df, ("target", "layer", "weight", "sample", "recall", "low", "high", "n"), "plot_recall()")
    panels = []
    for target in [name for name in TARGETS if name in set(df["target"])]:
        rows = df[df["target"] == target].groupby("weight", sort=True, observed=True)
        panels.append([(f"{weight}, {TARGETS[target]}", part) for weight, part in rows])
    return by_layer(panels, "recall", "recall", "Top tokens of hidden states that active parameters recall", "tokens")


def plot_keep_k(df: pd.DataFrame) -> Any:
    """Draw how well inner products survive when k entries of each projection are kept, for each right inverse.

    Args:
        df: A table of `evidence.keep_k()`.

    Returns:
        A plotly figure: a panel for each source of vectors, k on a logarithmic axis.

    Raises:
        EmbspaceError: If the table is another one or empty; or plotly is not installed.
    """
    check(df, ("source", "inverse", "k", "similarity", "n"), "plot_keep_k()")
    go = plotly()
    panels = [[(str(source), rows) for source, rows in df.groupby("source", sort=False)]]
    figure, width, height = grid(panels, 20)
    for column, (source, rows) in enumerate(panels[0], 1):
        ends = []
        for inverse, curve in rows.groupby("inverse", sort=False):
            hover = [
                f"{escape(source)}, {inverse}<br>{k:,} entries kept<br>cosine {measure(s)}"
                for k, s in zip(curve["k"], curve["similarity"], strict=True)
            ]
            colour = INVERSE_COLOURS.get(str(inverse), theme.GREY)
            dash = "solid" if inverse == "transpose" else "dash"
            figure.add_trace(line(go, curve["k"], curve["similarity"], hover, colour, dash), 1, column)
            ends.append((str(inverse), float(curve["similarity"].iloc[-1]), colour))
        if column == len(panels[0]):
            name_ends(figure, ends, 1 / (ROW + 20), (1, column))
    figure.update_xaxes(
        type="log", dtick=1, tickformat=",", title={"text": "entries kept (k)", "font": {"size": 12}, "standoff": 6}
    )
    figure.update_yaxes(range=[min(0.0, df["similarity"].to_numpy().min()), 1.04])
    figure.update_yaxes(title={"text": "cosine", "font": {"size": 12}}, col=1)
    title = "Inner products that survive when k entries of a projection are kept"
    return quiet(figure, title, width, height, "cosine of all inner products with the true ones")
