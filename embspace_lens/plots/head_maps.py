"""A number for every head as a map of layers and heads."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..display import theme
from ..display.table_groups import ends, units
from ..display.tokens import figures, pair
from ..errors import EmbspaceError
from .figure import plotly, quiet


def plot_heads(df: pd.DataFrame, value: str = "score") -> Any:
    """Draw a number for each head as a map of layers and heads, layer 0 on top.

    Args:
        df: A table of `ov()` or `qk()`, of which the best pair counts, or any table with `layer`, `head` and one row
            a head, such as patching results.
        value: The column to draw.

    Returns:
        A plotly figure: viridis for values of one sign, blue to orange around zero for both.

    Raises:
        EmbspaceError: If a column is missing, or a head has several values; or plotly is not installed.
    """
    go = plotly()
    grid, said = heads_grid(df, value)
    low, high = float(np.nanmin(grid.to_numpy())), float(np.nanmax(grid.to_numpy()))
    diverging = low < 0 < high
    size = max(abs(low), abs(high))
    n_layers, n_heads = grid.shape
    cell = int(np.clip(560 / max(n_layers, n_heads), 16, 56))
    colours = (
        {"colorscale": [list(stop) for stop in theme.DIVERGING], "zmin": -size, "zmax": size}
        if diverging
        else {"colorscale": "Viridis", "zmin": low, "zmax": high if high > low else low + 1}
    )
    hover = [
        [
            f"layer {layer}, head {h}<br>{escape(value)} {figures(float(grid.at[layer, h]))}" + said.get((layer, h), "")
            if grid.at[layer, h] == grid.at[layer, h]
            else ""
            for h in grid.columns
        ]
        for layer in grid.index
    ]
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(dtype=float),
            x=list(map(str, grid.columns)),
            y=list(map(str, grid.index)),
            xgap=1,
            ygap=1,
            hoverinfo="text",
            hovertext=hover,
            hoverongaps=False,
            **colours,
            colorbar={
                "title": {"text": escape(value), "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
                "len": 1,
                "lenmode": "fraction",
                "nticks": 5,
            },
        )
    )
    if cell >= 34:
        _number_cells(figure, grid, -size if diverging else low, size if diverging else high, diverging)
    every = max(1, -(-20 // cell))
    figure.update_xaxes(
        title={"text": "head", "standoff": 6, "font": {"size": 12}},
        type="category",
        side="bottom",
        showgrid=False,
        ticks="",
        dtick=every,
        zeroline=False,
        showline=False,
        constrain="domain",
    )
    figure.update_yaxes(
        title={"text": "layer", "standoff": 6, "font": {"size": 12}},
        type="category",
        autorange="reversed",
        showgrid=False,
        ticks="",
        dtick=every,
        zeroline=False,
        showline=False,
        scaleanchor="x",
        constrain="domain",
    )
    weight = str(df["weight"].iloc[0]) if "weight" in df.columns else ""
    title = f"The best pair of each head, {weight}" if said and value == "score" else f"{value} of each head"
    if weight and not said:
        title += f", {weight}"
    figure.update_layout(margin={"l": 66, "r": 90, "t": 62, "b": 56})
    return quiet(figure, escape(title), max(380, n_heads * cell + 156), n_layers * cell + 118)


def _number_cells(figure: Any, grid: pd.DataFrame, low: float, high: float, diverging: bool) -> None:
    """Write each cell's number in it, black or white, whichever reads better on the cell."""
    for y, row in enumerate(grid.to_numpy(dtype=float)):
        for x, number in enumerate(row):
            if number == number:
                share = (number - low) / ((high - low) or 1.0)
                ground = theme.diverging(share) if diverging else theme.sequential(share)
                font = {"size": 11, "color": theme.readable_on(ground)}
                figure.add_annotation(x=x, y=y, text=figures(float(number), 2), showarrow=False, font=font)


def heads_grid(df: pd.DataFrame, value: str = "score") -> tuple[pd.DataFrame, dict[tuple[int, int], str]]:
    """One number for each layer and head, and what to say of it beside: its best pairs.

    Raises:
        EmbspaceError: If a column is missing, the column is no number, or a head has several values.
    """
    columns = list(map(str, getattr(df, "columns", ())))
    missing = [name for name in ("layer", "head", value) if name not in columns]
    if missing:
        raise EmbspaceError(
            f"plot_heads() needs 'layer', 'head' and {value!r}; {', '.join(map(repr, missing))} is not there."
        )
    if df.empty:
        raise EmbspaceError("The table is empty: there is nothing to draw.")
    if not pd.api.types.is_numeric_dtype(df[value]):
        raise EmbspaceError(f"plot_heads() draws numbers, and column {value!r} holds none.")
    if "weight" in columns and len(df["weight"].unique()) > 1:
        weights = ", ".join(map(str, df["weight"].unique()))
        raise EmbspaceError(
            f"plot_heads() draws one weight, and this table holds {weights}. Select one: df[df.weight == …]."
        )
    said: dict[tuple[int, int], str] = {}
    if "rank" in columns and "src_token_string" in columns:
        left, right = ends(df)
        for unit in units(df.loc[df["rank"] < 3]):
            rows = unit.rows
            layer, h = int(rows["layer"].iloc[0]), int(rows["head"].iloc[0])
            strings = zip(rows[f"{left}_token_string"], rows[f"{right}_token_string"], strict=True)
            said[layer, h] = "".join(f"<br>{escape(pair(a, b))}" for a, b in strings)
        df = df.loc[df["rank"] == df["rank"].min()]
    if df.duplicated(["layer", "head"]).any():
        raise EmbspaceError(
            f"Some head has several values of {value!r}. Give one row a head, as df.groupby(['layer', 'head']) can."
        )
    grid = df.pivot(index="layer", columns="head", values=value)
    if not np.isfinite(grid.to_numpy(dtype=float)).any():
        raise EmbspaceError(f"Column {value!r} holds no finite number.")
    layers, heads = df["layer"].to_numpy(), df["head"].to_numpy()
    grid = grid.reindex(index=range(int(layers.min()), int(layers.max()) + 1))
    return grid.reindex(columns=range(int(heads.min()), int(heads.max()) + 1)), said
