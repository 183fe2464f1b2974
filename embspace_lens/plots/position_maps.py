"""Maps of query position × key position, side by side: scores of `position_qk`, or attention."""

from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..display import theme
from ..display.measurements import format_measure
from .figure import AXIS, axis_title, balanced_columns, escape, finish, plotly

MAX_MAPS, MAPS_PER_ROW = 12, 3
SIZE, GAP_X, GAP_Y = 236, 34, 74  # pixels
KEYS = ("model", "layer", "head")


def plot_position_qk(df: pd.DataFrame, value: str = "score") -> Any:
    """Draw the scores of query positions (rows) for key positions (columns) as maps, one for each head.

    A constant added to all scores of a query does not change its attention, so each row of scores is drawn minus its mean. Each
    map has its own colour scale.

    Args:
        df: A table of `position_qk`, or any table with `layer`, `head`, `dest_pos`, `src_pos` and a column of numbers, such as
            attention. If it has a column `model`, there is one map for each model and head.
        value: The column to draw. Columns other than `score` are drawn as they are.

    Returns:
        A plotly figure: blue to orange around zero; viridis for values of one sign.

    Raises:
        EmbspaceError: If a column is missing, a pair of positions has several values, or there are more than 12 maps; or
            plotly is not installed.

    Example:
        >>> figure = plot_position_qk(position_qk(lens, layer=0, head=[0, 1]))
        >>> [title.text for title in figure.layout.annotations]
        ['L0H0', 'L0H1']
    """
    go = plotly()
    from plotly.subplots import make_subplots

    maps = _maps(df, value)
    n_columns = balanced_columns(len(maps), MAPS_PER_ROW)
    n_rows = -(-len(maps) // n_columns)
    width, height = n_columns * (SIZE + GAP_X) - GAP_X, n_rows * (SIZE + GAP_Y) - GAP_Y
    spacing: dict[str, Any] = {"horizontal_spacing": GAP_X / width, "vertical_spacing": GAP_Y / height}
    figure = make_subplots(n_rows, n_columns, subplot_titles=list(map(escape, maps)), **spacing)
    for i, grid in enumerate(maps.values()):
        row, column = i // n_columns + 1, i % n_columns + 1
        values = grid.to_numpy(dtype=float)
        largest = float(np.nanmax(np.abs(values))) or 1.0
        is_diverging = float(np.nanmin(values)) < 0
        hover = [
            [f"query {dest}, key {src}<br>{escape(value)} {format_measure(v)}" for src, v in zip(grid.columns, line)]
            for dest, line in zip(grid.index, values)
        ]
        heat_map = go.Heatmap(
            z=values,
            x=grid.columns.tolist(),
            y=grid.index.tolist(),
            hovertext=hover,
            hoverinfo="text",
            hoverongaps=False,
            colorscale=[list(stop) for stop in theme.DIVERGING] if is_diverging else theme.SEQUENTIAL,
            zmin=-largest if is_diverging else 0.0,
            zmax=largest,
            showscale=False,
        )
        figure.add_trace(heat_map, row, column)
        axis = {**AXIS, "showgrid": False, "constrain": "domain", "nticks": 5}
        number = "" if i == 0 else str(i + 1)
        figure.update_xaxes(**axis, row=row, col=column)
        figure.update_yaxes(**axis, autorange="reversed", scaleanchor=f"x{number}", row=row, col=column)
        if column == 1:
            figure.update_yaxes(title=axis_title("query position"), row=row, col=column)
        if i + n_columns >= len(maps):
            figure.update_xaxes(title=axis_title("key position"), row=row, col=column)
    figure.update_annotations(font={"size": 13, "color": theme.LIGHT.text})
    figure.update_layout(margin={"l": 66, "r": 24, "t": 104, "b": 56})
    title = (
        "Scores of key positions" if value == "score" else f"{escape(value[:1].upper() + value[1:])} by key position"
    )
    note = (
        "each row minus its mean; each map has its own colour scale"
        if value == "score"
        else "each map has its own colour scale"
    )
    return finish(figure, title, width + 90, height + 160, note)


def _maps(df: pd.DataFrame, value: str) -> dict[str, pd.DataFrame]:
    """By title, each head's values: rows are queries, columns are keys.

    Raises:
        EmbspaceError: If a column is missing, is not numeric or has no numbers, there are too many maps, or a pair of positions has several values.
    """
    columns = list(map(str, getattr(df, "columns", ())))
    if missing := [name for name in ("layer", "head", "dest_pos", "src_pos", value) if name not in columns]:
        raise errors.missing_columns("plot_position_qk()", missing)
    if df.empty:
        raise errors.empty_table()
    if not pd.api.types.is_numeric_dtype(df[value]):
        raise errors.not_numeric("plot_position_qk()", value)
    if not np.isfinite(df[value].to_numpy(dtype=float)).any():
        raise errors.no_finite_number(value)
    keys = [name for name in KEYS if name in columns]
    if df.duplicated([*keys, "dest_pos", "src_pos"]).any():
        raise errors.several_values_per_position(value)
    n_maps = len(df[keys].drop_duplicates())
    if n_maps > MAX_MAPS:
        raise errors.too_many_groups("plot_position_qk()", MAX_MAPS, "maps", n_maps, "Select fewer layers or heads.")
    maps = {}
    for key, rows in df.groupby(keys, sort=False):
        cells = dict(zip(keys, key if isinstance(key, tuple) else (key,), strict=True))
        grid = rows.pivot(index="dest_pos", columns="src_pos", values=value)
        prefix = f"{cells['model']}, " if "model" in cells else ""
        title = f"{prefix}L{cells['layer']}H{cells['head']}"
        maps[title] = grid.sub(grid.mean(axis=1), axis=0) if value == "score" else grid
    return maps
