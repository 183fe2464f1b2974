"""A number for every head as a map of layers × heads."""

from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..display import theme
from ..display.table_groups import features_as_tokens, pair_ends, table_groups
from ..display.tokens import format_score, pair
from .figure import axis_title, escape, finish, plotly

MAP_SIZE = 560  # pixels of the longer side
SMALLEST_NUMBERED = 34  # pixels of a cell that has room for a number
N_HOVER = 3  # pairs named when the pointer is on a cell


def plot_heads(df: pd.DataFrame, value: str = "score") -> Any:
    """Draw a number for each head as a map of layers × heads, layer 0 on top.

    Args:
        df: A table of `ov()` or `qk()`, of which the best pair of each head is drawn, or any table with `layer`, `head` and one
            row per head, such as patching results.
        value: The column to draw.

    Returns:
        A plotly figure: viridis for values of one sign, blue to orange around zero for values of both.

    Raises:
        EmbspaceError: If a column is missing, or a head has several values; or plotly is not installed.

    Example:
        >>> plot_heads(lens.ov(k=1)).layout.title.text
        'Score of the best pair of each head (W_OV)'
    """
    go = plotly()
    grid, pairs = head_grid(features_as_tokens(df), value)
    values = grid.to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    is_diverging = low < 0 < high
    if is_diverging:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    n_layers, n_heads = grid.shape
    cell = int(np.clip(MAP_SIZE / max(n_layers, n_heads), 16, 56))
    numbers = _cell_numbers(values)
    has_numbers = cell >= SMALLEST_NUMBERED and max(map(len, numbers.ravel())) * 6.5 < cell
    hover = [
        [_hover_text(layer, head, value, float(grid.at[layer, head]), pairs) for head in grid.columns]
        for layer in grid.index
    ]
    colour_bar = {
        "title": {"text": escape(value), "side": "right"},
        "thickness": 10,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        "len": 1,
        "lenmode": "fraction",
        "nticks": 5,
    }
    if has_numbers:  # as many decimals as in the cells
        colour_bar["tickformat"] = f".{max(len(number.partition('.')[2]) for number in numbers.ravel())}f"
    heat_map = go.Heatmap(
        z=values,
        x=list(map(str, grid.columns)),
        y=list(map(str, grid.index)),
        xgap=1,
        ygap=1,
        hoverinfo="text",
        hovertext=hover,
        hoverongaps=False,
        colorscale=[list(stop) for stop in theme.DIVERGING] if is_diverging else theme.SEQUENTIAL,
        zmin=low,
        zmax=high if high > low else low + 1,
        showscale=not (
            has_numbers and n_layers < 3
        ),  # on a map with fewer layers, the colour bar is too short to be legible
        colorbar=colour_bar,
    )
    figure = go.Figure(heat_map)
    if has_numbers:
        _write_numbers(figure, values, numbers, low, high, is_diverging)
    every = -(-20 // cell)
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "ticks": "", "zeroline": False, "showline": False}
    axis |= {"dtick": every, "constrain": "domain"}
    figure.update_xaxes(title=axis_title("head"), side="bottom", **axis)
    figure.update_yaxes(title=axis_title("layer"), autorange="reversed", ticklabelstandoff=3, scaleanchor="x", **axis)
    weight = f" ({df['weight'].iloc[0]})" if "weight" in df.columns else ""
    title = (
        f"Score of the best pair of each head{weight}"
        if pairs and value == "score"
        else f"{value} of each head{weight}"
    )
    figure.update_layout(margin={"l": 66, "r": 90, "t": 62, "b": 56})
    return finish(figure, escape(title), n_heads * cell + 156, n_layers * cell + 118)


def head_grid(df: pd.DataFrame, value: str = "score") -> tuple[pd.DataFrame, dict[tuple[int, int], list[str]]]:
    """One number for each layer (rows) and head (columns), and the best pairs of each (layer, head) if the table has pairs.

    Raises:
        EmbspaceError: If a column is missing, the column does not hold numbers, or a head has several values.
    """
    columns = list(map(str, getattr(df, "columns", ())))
    missing = [name for name in ("layer", "head", value) if name not in columns]
    if missing:
        raise errors.missing_columns("plot_heads()", missing)
    if df.empty:
        raise errors.empty_table()
    if not pd.api.types.is_numeric_dtype(df[value]):
        raise errors.not_numeric("plot_heads()", value)
    if "weight" in columns and len(df["weight"].unique()) > 1:
        raise errors.several_weights("plot_heads()", list(map(str, df["weight"].unique())))
    pairs: dict[tuple[int, int], list[str]] = {}
    if "rank" in columns and "src_token_string" in columns:
        left, right = pair_ends(df)
        for group in table_groups(df.loc[df["rank"] < N_HOVER]):
            rows = group.rows
            strings = zip(rows[f"{left}_token_string"], rows[f"{right}_token_string"], strict=True)
            pairs[int(rows["layer"].iloc[0]), int(rows["head"].iloc[0])] = [pair(a, b) for a, b in strings]
        df = df.loc[df["rank"] == df["rank"].min()]
    if df.duplicated(["layer", "head"]).any():
        raise errors.several_values_per_head(value)
    grid = df.pivot(index="layer", columns="head", values=value)
    if not np.isfinite(grid.to_numpy(dtype=float)).any():
        raise errors.no_finite_number(value)
    layers, heads = df["layer"].to_numpy(), df["head"].to_numpy()
    grid = grid.reindex(index=range(int(layers.min()), int(layers.max()) + 1))
    return grid.reindex(columns=range(int(heads.min()), int(heads.max()) + 1)), pairs


def _hover_text(layer: int, head: int, name: str, value: float, pairs: dict[tuple[int, int], list[str]]) -> str:
    if value != value:
        return ""
    lines = [f"layer {layer}, head {head}", f"{escape(name)} {format_score(value)}"]
    return "<br>".join([*lines, *map(escape, pairs.get((layer, head), []))])


def _cell_numbers(values: np.ndarray) -> np.ndarray:
    """Each cell's number as text, with the decimals that show two significant figures of the largest; empty for NaN."""
    largest = float(np.nanmax(np.abs(np.where(np.isfinite(values), values, np.nan))))
    decimals = 1 - int(np.floor(np.log10(largest))) if largest else 2

    def text(value: float) -> str:
        if not np.isfinite(value):
            return ""
        number = f"{abs(value):.{max(0, decimals)}f}"
        return f"−{number}" if value < 0 and number.strip("0.") else number

    return np.vectorize(text, otypes=[object])(values)


def _write_numbers(
    figure: Any, values: np.ndarray, numbers: np.ndarray, low: float, high: float, is_diverging: bool
) -> None:
    """Write each cell's number in black or white, whichever has the higher contrast."""
    colour_at = theme.diverging if is_diverging else theme.sequential
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            background = colour_at((value - low) / ((high - low) or 1.0))
            font = {"size": 11, "color": theme.readable_on(background)}
            figure.add_annotation(x=x, y=y, text=numbers[y, x], showarrow=False, font=font)
