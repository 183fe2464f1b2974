"""How alike the layers of two models are, as a map for every weight."""

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ..display import theme
from ..errors import EmbspaceError
from .figure import plotly, quiet

if TYPE_CHECKING:
    from ..compare import Alignment

PER_ROW = 4  # maps beside each other
ROOM = 260  # pixels that a map's longer side takes, as near as its cells allow


def plot_alignment(alignment: "Alignment", *, weights: Any = None) -> Any:
    """Draw a map of layers and layers for every weight, layer 0 on top; the assignment is ringed.

    Each map has its own range of colours, from its least to its largest mean |correlation|: weights differ by much in how far
    their vectors share a direction, and the assignment depends on none of that.

    Args:
        alignment: What `align()` gave.
        weights: Which weights to draw, of those compared; all by default.

    Returns:
        A plotly figure. The ring is heavy and the number bold where a layer is matched with its own number.

    Raises:
        EmbspaceError: If a weight was not compared, or plotly is not installed.
    """
    go = plotly()
    from plotly.subplots import make_subplots

    compared = [str(weight) for weight in alignment.correlation["weight"].unique()]
    wanted = compared if weights is None else [weights] if isinstance(weights, str) else list(weights)
    for weight in wanted:
        if weight not in compared:
            raise EmbspaceError(f"weight={weight!r} was not compared; this alignment has {', '.join(compared)}.")
    if not wanted:
        raise EmbspaceError("weights=[] leaves nothing to draw.")
    counted = {row["weight"]: row for row in alignment.on_diagonal().to_dict("records")}
    layers_a, layers_b = (len(alignment.correlation[name].unique()) for name in ("layer_a", "layer_b"))
    cell = int(np.clip(ROOM / max(layers_a, layers_b), 8, 44))
    n_columns = min(PER_ROW, len(wanted))
    n_rows = -(-len(wanted) // n_columns)
    width, height = layers_b * cell, layers_a * cell
    gap, space = 62, 92  # between maps, in pixels: numbers to the left of one, its axis and the next one's title below
    whole_width, whole_height = n_columns * (width + gap) - gap, n_rows * (height + space) - space
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[_said(alignment, weight, counted[weight]) for weight in wanted],
        horizontal_spacing=gap / whole_width if n_columns > 1 else 0,
        vertical_spacing=space / whole_height if n_rows > 1 else 0,
    )
    figure.update_annotations(font={"size": 13, "family": theme.MONO})
    for place, weight in enumerate(wanted):
        where = {"row": place // n_columns + 1, "col": place % n_columns + 1}
        _map(go, figure, alignment, weight, where, cell)
    where = (
        "residual space, coordinate by coordinate"
        if alignment.n_tokens is None
        else f"embedding space, {alignment.n_tokens:,} shared tokens"
    )
    found, of = (sum(counted[weight][what] for weight in wanted) for what in ("n_matched", "n_layers"))
    by_chance = sum(counted[weight]["chance"] for weight in wanted)
    title = f"{found} of {of} layers are matched with their own number (by chance {by_chance:.3g})"
    subtitle = f"mean |correlation| of two layers' vectors, {where}; ringed: assigned"
    left, right, top, bottom = 66, max(24, 700 - whole_width - 66), 112, 56  # 700: what the title takes
    figure.update_layout(margin={"l": left, "r": right, "t": top, "b": bottom})
    return quiet(figure, title, left + whole_width + right, top + whole_height + bottom, subtitle)


def _said(alignment: "Alignment", weight: str, counted: dict[Any, Any]) -> str:
    """A map's title: what was found, and between which values its colours run."""
    values = alignment.correlation.loc[alignment.correlation["weight"] == weight, "correlation"]
    found = f"<b>{weight}</b> {counted['n_matched']} of {counted['n_layers']}"
    if values.notna().any():
        found += f" <span style='font-size:11px'>{_short(values.min())}–{_short(values.max())}</span>"
    return found


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _map(go: Any, figure: Any, alignment: "Alignment", weight: str, where: dict[str, int], cell: int) -> None:
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
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=list(map(str, grid.columns)),
            y=list(map(str, grid.index)),
            xgap=1,
            ygap=1,
            colorscale="Viridis",
            zmin=low,
            zmax=high,
            showscale=False,
            hoverinfo="text",
            hovertext=hover,
            hoverongaps=False,
        ),
        **where,
    )
    taken = alignment.matches.loc[alignment.matches["weight"] == weight]
    pairs = set(zip(taken["layer_a"].tolist(), taken["layer_b"].tolist()))
    for y, a in enumerate(grid.index):
        for x, b in enumerate(grid.columns):
            value = values[y, x]
            if not np.isfinite(value):
                continue
            ink = theme.readable_on(theme.sequential((value - low) / (high - low)))
            if cell >= 36:
                text = f"<b>{_short(value)}</b>" if (a, b) in pairs and a == b else _short(value)
                figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 11, "color": ink}, **where)
            if (a, b) in pairs:
                box = {"x0": x - 0.42, "x1": x + 0.42, "y0": y - 0.42, "y1": y + 0.42}
                line = {
                    "color": ink,
                    "width": 2.5 if a == b else 1.2,
                    "dash": "solid" if a == b or cell < 20 else "dot",
                }
                figure.add_shape(type="rect", **box, line=line, **where)
    every = max(1, -(-24 // cell))  # labels as far apart as two digits are wide
    axis = {
        "type": "category",
        "showgrid": False,
        "ticks": "",
        "zeroline": False,
        "showline": False,
        "constrain": "domain",
    }
    first = where["col"] == 1
    anchor = figure.get_subplot(**where).xaxis.plotly_name.replace("axis", "")
    standoff = {"standoff": 4, "font": {"size": 12}}
    figure.update_xaxes(
        title={"text": f"layer of {names[1]}", **standoff}, dtick=every, tickangle=0, side="bottom", **axis, **where
    )
    figure.update_yaxes(
        title={"text": f"layer of {names[0]}" if first else "", **standoff},
        dtick=every,
        autorange="reversed",
        scaleanchor=anchor,
        **axis,
        **where,
    )
