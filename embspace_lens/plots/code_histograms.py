"""Histograms of a factor's code by sense and layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..display import theme
from .curves import panel_grid
from .figure import axis_title, balanced_columns, escape, finish, plotly

MAX_SENSES, MAX_LAYERS, COLUMNS = len(theme.SERIES), 24, 4
NEEDED = ("tag", "factor", "layer", "code")
N_BINS = 24


def plot_code_histograms(df: pd.DataFrame, senses: Mapping[str, Sequence[str]] | None = None) -> Any:
    """Draw the distribution of a factor's code for each sense of a word, one panel for each layer.

    Args:
        df: A table of `factors.sense_codes()`: one word and one factor.
        senses: The tags of each sense, by the name that the figure shows; other tags are left out. By default every tag is a
            sense.

    Returns:
        A plotly figure: for each layer and sense, the share of the sense's occurrences in each bin of the code.

    Raises:
        EmbspaceError: If a column is missing, the table is empty, or there are more senses or layers than the figure has room
            for; or plotly is not installed.

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4. https://arxiv.org/abs/2103.15949
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise errors.missing_columns("plot_code_histograms()", missing)
    if df.empty:
        raise errors.empty_table()
    tags_of = dict(senses) if senses is not None else {tag: [tag] for tag in sorted(set(df["tag"]))}
    layers = sorted(set(df["layer"]))
    for limit, noun, count, remedy in (
        (MAX_SENSES, "senses", len(tags_of), "Pass the tags of each sense: senses={'verb': ['vbd', 'vbn']}."),
        (MAX_LAYERS, "layers", len(layers), "Select some: df[df['layer'].isin([0, 1])]."),
    ):
        if count > limit:
            raise errors.too_many_groups("plot_code_histograms()", limit, noun, count, remedy)
    go = plotly()
    n_columns = balanced_columns(len(layers), COLUMNS)
    panels: Any = [
        [
            ("embedding" if layer < 0 else f"layer {layer}", df[df["layer"] == layer])
            for layer in layers[i : i + n_columns]
        ]
        for i in range(0, len(layers), n_columns)
    ]
    figure, width, height = panel_grid(panels)
    edges = np.linspace(0, float(df["code"].to_numpy().max()) or 1.0, N_BINS + 1)
    for i, row in enumerate(panels, 1):
        for j, (panel, rows) in enumerate(row, 1):
            for colour, (sense, tags) in zip(theme.SERIES, tags_of.items()):
                codes = rows.loc[rows["tag"].isin(list(tags)), "code"].to_numpy("float64")
                figure.add_trace(_bars(go, codes, edges, f"{panel}, {sense}", colour), row=i, col=j)
            figure.update_xaxes(range=[edges[0], edges[-1]], nticks=5, row=i, col=j)
            if i == len(panels) or j > len(panels[i]):  # the lowest panel of its column
                figure.update_xaxes(title=axis_title("code"), row=i, col=j)
        figure.update_yaxes(title=axis_title("share of the sense"), rangemode="tozero", row=i, col=1)
    figure.update_layout(barmode="overlay", bargap=0)
    names = ", ".join(
        f'<span style="color:{colour}">■ {escape(str(sense))}</span>' for colour, sense in zip(theme.SERIES, tags_of)
    )
    words = ", ".join(sorted(set(df["word"]))) if "word" in df.columns else "the word"
    title = f"Code of factor {', '.join(map(str, sorted(set(df['factor']))))} at “{escape(words)}” by sense"
    return finish(figure, title, width, height, names)


def _bars(go: Any, codes: np.ndarray, edges: np.ndarray, name: str, colour: str) -> Any:
    """The share of the codes in each bin."""
    counts, _ = np.histogram(codes, edges)
    shares = counts / max(len(codes), 1)
    hover = [
        f"{escape(name)}<br>code {low:.3g} to {high:.3g}<br>{count} of {len(codes)}"
        for low, high, count in zip(edges, edges[1:], counts)
    ]
    marker = {"color": colour, "line": {"width": 0}}
    centres = (edges[:-1] + edges[1:]) / 2
    return go.Bar(
        x=centres, y=shares, width=np.diff(edges), hovertext=hover, hoverinfo="text", marker=marker, opacity=0.55
    )
