"""Panels of curves: the claim in colour, its control in grey, bands for intervals, and the curves' names at their ends."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from ..display import theme
from ..display.measurements import format_measure
from .figure import AXIS, TOP, axis_title, escape, finish, plotly

Dash = Literal["solid", "dash", "dot"]
Panel = tuple[str, pd.DataFrame]
"""A panel's title and its rows of the table."""

PANEL_WIDTH, PANEL_HEIGHT = 210, 190
NAME_HEIGHT = 15  # pixels between the names of two curves
CONTROLS = ("shuffled", "permuted", "base", "random")


class CurveEnd(NamedTuple):
    """The name of a curve, the value at which it ends, and its colour."""

    name: str
    value: float
    colour: str


def panel_grid(panels: list[list[Panel]], panel_height: int = PANEL_HEIGHT) -> tuple[Any, int, int]:
    """A figure of panels in rows, with room at the right for the names of curves; its width and its height."""
    from plotly.subplots import make_subplots

    n_columns, n_rows = max(map(len, panels)), len(panels)
    titles = [escape(title) for row in panels for title in [name for name, _ in row] + [""] * (n_columns - len(row))]
    left, right, bottom = 64, 84, 54
    gap_x, gap_y = 34, 74
    width = n_columns * (PANEL_WIDTH + gap_x) - gap_x
    height = n_rows * (panel_height + gap_y) - gap_y
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=gap_x / width,
        vertical_spacing=gap_y / height,
    )
    figure.update_annotations(font={"size": 13, "color": theme.LIGHT.text}, yshift=4)
    figure.update_layout(margin={"l": left, "r": right, "t": TOP, "b": bottom})
    figure.update_xaxes(**AXIS, showgrid=False, showline=True)
    figure.update_yaxes(**AXIS, gridcolor=theme.LIGHT.line, showline=False, nticks=5)
    return figure, width + left + right, height + TOP + bottom


def curve(go: Any, x: Any, y: Any, hover: list[str], colour: str, dash: Dash = "solid") -> Any:
    """A curve with its points."""
    line = {"color": colour, "width": 2, "dash": dash}
    marker = {"size": 5, "color": colour}
    return go.Scatter(x=x, y=y, mode="lines+markers", hovertext=hover, hoverinfo="text", line=line, marker=marker)


def band(go: Any, x: Sequence[Any], low: Sequence[float], high: Sequence[float], colour: str, opacity: float) -> Any:
    """The area between two curves."""
    outline = {"x": [*x, *x[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "mode": "lines", "line": {"width": 0}}
    return go.Scatter(**outline, fillcolor=colour, opacity=opacity, hoverinfo="skip")


def plot_by_layer(panels: list[list[Panel]], value: str, axis: str, title: str, counted: str) -> Any:
    """Draw the claim and its controls over the layers, one panel for each pair or weight.

    Args:
        panels: Panels by row; their tables have `layer`, `sample`, `value`, `low`, `high` and `n`.
        value: The column to draw.
        axis: Title of the vertical axis.
        title: Title of the figure.
        counted: What `n` counts.
    """
    go = plotly()
    figure, width, height = panel_grid(panels)
    for i, row in enumerate(panels, 1):
        top = 1.08 * max(float(rows[[value, "high"]].max().max()) for _, rows in row) or 1.0
        for j, (name, rows) in enumerate(row, 1):
            ends = []
            for sample in sorted(
                rows["sample"].unique(), key=lambda sample: sample not in CONTROLS
            ):  # controls first, so that the claim is drawn above them
                points = rows.loc[rows["sample"] == sample].sort_values(by="layer")
                colour = theme.GREY if sample in CONTROLS else theme.BLUE
                known = points.dropna(subset=["low", "high"])
                layers, low, high = (known[column].tolist() for column in ("layer", "low", "high"))
                figure.add_trace(band(go, layers, low, high, colour, 0.22), i, j)
                hover = [
                    f"{escape(name)}, layer {point['layer']}<br>{escape(str(sample))} {format_measure(point[value])} "
                    f"({format_measure(point['low'])} to {format_measure(point['high'])})<br>{point['n']:,} {counted}"
                    for point in points.to_dict("records")
                ]
                dash = "dot" if sample == "base" else "solid"  # the second control
                figure.add_trace(curve(go, points["layer"], points[value], hover, colour, dash), i, j)
                ends.append(CurveEnd(str(sample), float(points[value].iloc[-1]), colour))
            if j == len(row):
                name_ends(figure, ends, (0.0, top), PANEL_HEIGHT, (i, j))
            figure.update_xaxes(dtick=layer_step(rows["layer"].tolist(), 8), row=i, col=j)
            if i == len(panels) or j > len(panels[i]):  # the lowest panel of its column
                figure.update_xaxes(title=axis_title("layer"), row=i, col=j)
        figure.update_yaxes(range=[0, top], row=i)
        figure.update_yaxes(title=axis_title(axis), row=i, col=1)
    return finish(figure, title, width, height, "bands: 95 % intervals; grey: controls")


def layer_step(layers: Sequence[int], n_ticks: int) -> int:
    """The distance between ticks for which an axis of layers has at most `n_ticks`."""
    return max(1, -(-(max(layers) - min(layers) + 1) // n_ticks))


def name_ends(
    figure: Any,
    ends: list[CurveEnd],
    y_range: tuple[float, float],
    height: int,
    panel: tuple[int, int] | None = None,
) -> None:
    """Write the names of curves to the right of their ends, far enough apart to be legible.

    Names that would overlap form a block around the mean of their ends; blocks stay within the panel, since plotly does not
    draw annotations outside.

    Args:
        figure: The figure.
        ends: The curves' ends.
        y_range: The range of the vertical axis.
        height: The height of the panel in pixels.
        panel: Row and column of the panel; None for a figure with one panel.
    """
    bottom, top = y_range
    step = NAME_HEIGHT * (top - bottom) / height
    blocks: list[list[CurveEnd]] = []

    def lowest(block: list[CurveEnd]) -> float:
        extent = (len(block) - 1) * step
        centred = sum(end.value for end in block) / len(block) - extent / 2
        return max(bottom, min(centred, top - extent))

    for end in sorted(ends, key=lambda end: end.value):
        blocks.append([end])
        while len(blocks) > 1 and lowest(blocks[-1]) < lowest(blocks[-2]) + len(blocks[-2]) * step:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    cell = {} if panel is None else {"row": panel[0], "col": panel[1]}
    for block in blocks:
        for i, end in enumerate(block):
            figure.add_annotation(
                x=1,
                xref="x domain",
                y=lowest(block) + i * step,
                text=end.name,
                showarrow=False,
                xanchor="left",
                xshift=8,
                font={"size": 12, "color": theme.LIGHT.quiet if end.colour == theme.GREY else end.colour},
                **cell,
            )
