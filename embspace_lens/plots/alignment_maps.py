"""Similarity of the layers of two models: one map of layers × layers for every weight."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import errors
from ..compare.alignment import Alignment
from ..display import theme
from ..tables.checks import check_choice
from .figure import axis_title, escape, finish, plotly

MAX_COLUMNS = 4
MAP_SIZE = 260  # approximate number of pixels of a map's longer side
SMALLEST_NUMBERED = 36  # pixels of a cell that has room for a number
LEFT, TOP, BOTTOM = 66, 112, 56
GAP_X, GAP_Y = 62, 92  # pixels between maps, for axes and titles


def plot_alignment(alignment: Alignment, *, weights: str | Sequence[str] | None = None) -> Any:
    """Draw a map of layers × layers for every weight, layer 0 on top; frames mark the assignment.

    Each map has its own range of colours, from its smallest to its largest mean |correlation|, because the level differs
    between weights and does not affect the assignment.

    Args:
        alignment: A result of `align()`.
        weights: Which of the compared weights to draw; all by default.

    Returns:
        A plotly figure. Its titles count the layers whose nearest layer, and whose match, has the same number. A frame is
        thick and its number bold if a layer is matched with the layer of the same number.

    Raises:
        EmbspaceError: If a weight was not compared; or plotly is not installed.

    Example:
        >>> from embspace_lens import align
        >>> plot_alignment(align(lens, other, weights="W_O")).layout.title.text
        'Layers with the same number: 2 of 4 nearest, 4 of 4 matched one to one (1 by chance)'
    """
    go = plotly()
    from plotly.subplots import make_subplots

    compared = [str(weight) for weight in alignment.correlation["weight"].unique()]
    chosen = compared if weights is None else [weights] if isinstance(weights, str) else list(weights)
    chosen = [check_choice("weight", weight, compared) for weight in chosen]
    if not chosen:
        raise errors.no_weights_to_draw()
    counts = {row["weight"]: row for row in alignment.on_diagonal().to_dict("records")}
    n_layers = [len(alignment.correlation[name].unique()) for name in ("layer_a", "layer_b")]
    cell = int(np.clip(MAP_SIZE / max(n_layers), 8, 44))
    n_columns = min(MAX_COLUMNS, len(chosen))
    n_rows = -(-len(chosen) // n_columns)
    width = n_columns * (n_layers[1] * cell + GAP_X) - GAP_X
    height = n_rows * (n_layers[0] * cell + GAP_Y) - GAP_Y
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[_map_title(alignment, weight, counts[weight]) for weight in chosen],
        horizontal_spacing=GAP_X / width if n_columns > 1 else 0,
        vertical_spacing=GAP_Y / height if n_rows > 1 else 0,
    )
    figure.update_annotations(font={"size": 13, "family": theme.MONO})
    for i, weight in enumerate(chosen):
        _draw_map(go, figure, alignment, weight, {"row": i // n_columns + 1, "col": i % n_columns + 1}, cell)
    columns = ("n_nearest", "n_matched", "n_layers", "chance")
    n_nearest, n_matched, n_shared, chance = (sum(counts[weight][column] for weight in chosen) for column in columns)
    title = (
        f"Layers with the same number: {n_nearest} of {n_shared} nearest, "
        f"{n_matched} of {n_shared} matched one to one ({chance:.3g} by chance)"
    )
    space = "coordinates of the residual stream"
    if alignment.n_tokens is not None:
        space = f"{alignment.n_tokens:,} shared tokens"
    subtitle = (
        f"mean |correlation| of the vectors of two layers over {space}; counts: nearest / matched; frames: matched"
    )
    figure.update_layout(margin={"l": LEFT, "r": 24, "t": TOP, "b": BOTTOM})
    return finish(figure, title, LEFT + width + 24, TOP + height + BOTTOM, subtitle)


def _map_title(alignment: Alignment, weight: str, counts: dict[Any, Any]) -> str:
    """How many layers are nearest to, and matched with, their own number, and the range of the map's colours."""
    values = alignment.correlation.loc[alignment.correlation["weight"] == weight, "correlation"]
    title = f"<b>{weight}</b> {counts['n_nearest']} / {counts['n_matched']} of {counts['n_layers']}"
    if values.notna().any():
        title += f" <span style='font-size:11px'>{_short(float(values.min()))}–{_short(float(values.max()))}</span>"
    return title


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _draw_map(go: Any, figure: Any, alignment: Alignment, weight: str, panel: dict[str, int], cell: int) -> None:
    rows = alignment.correlation.loc[alignment.correlation["weight"] == weight]
    grid = rows.pivot(index="layer_a", columns="layer_b", values="correlation")
    values = grid.to_numpy(dtype=float)
    low, high = (float(f(values)) if np.isfinite(values).any() else 0.0 for f in (np.nanmin, np.nanmax))
    high = high if high > low else low + 1
    names = escape(alignment.name_a), escape(alignment.name_b)
    hover = [
        [
            f"{weight}<br>{names[0]} layer {a}<br>{names[1]} layer {b}<br>mean |correlation| {value:.4f}"
            if np.isfinite(value)
            else ""
            for b, value in zip(grid.columns, line)
        ]
        for a, line in zip(grid.index, values)
    ]
    heat_map = go.Heatmap(
        z=values,
        x=list(map(str, grid.columns)),
        y=list(map(str, grid.index)),
        xgap=1,
        ygap=1,
        colorscale=theme.SEQUENTIAL,
        zmin=low,
        zmax=high,
        showscale=False,
        hoverinfo="text",
        hovertext=hover,
        hoverongaps=False,
    )
    figure.add_trace(heat_map, **panel)
    matches = alignment.matches.loc[alignment.matches["weight"] == weight]
    assigned = set(zip(matches["layer_a"].tolist(), matches["layer_b"].tolist()))
    for (y, x), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        pair = (int(grid.index[y]), int(grid.columns[x]))
        is_own = pair in assigned and pair[0] == pair[1]
        colour = theme.readable_on(theme.sequential((value - low) / (high - low)))
        if cell >= SMALLEST_NUMBERED:
            text = f"<b>{_short(value)}</b>" if is_own else _short(value)
            figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 11, "color": colour}, **panel)
        if pair in assigned:
            box = {"x0": x - 0.42, "x1": x + 0.42, "y0": y - 0.42, "y1": y + 0.42}
            dash = "solid" if is_own or cell < 20 else "dot"
            line = {"color": colour, "width": 2.5 if is_own else 1.2, "dash": dash}
            figure.add_shape(type="rect", **box, line=line, **panel)
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "ticks": "", "zeroline": False, "showline": False}
    axis |= {"constrain": "domain", "dtick": -(-24 // cell)}  # the space between labels fits two digits
    x_axis = figure.get_subplot(**panel).xaxis.plotly_name.replace("axis", "")
    x_title = axis_title(f"layer of {names[1]}", standoff=4)
    y_title = axis_title(f"layer of {names[0]}" if panel["col"] == 1 else "", standoff=4)
    figure.update_xaxes(title=x_title, tickangle=0, side="bottom", **axis, **panel)
    figure.update_yaxes(title=y_title, autorange="reversed", ticklabelstandoff=3, scaleanchor=x_axis, **axis, **panel)
