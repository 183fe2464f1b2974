"""Panels of curves: the claim in colour, its control in grey, how sure each is, and names at their ends."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from ..display import theme
from ..display.measurements import measure
from ..errors import EmbspaceError
from .figure import plotly, quiet

PANEL, ROW = 210, 190  # pixels of one panel
APART = 15  # pixels between two names
CONTROLS = ("shuffled", "permuted", "base", "random")


def check(df: Any, columns: Sequence[str], caller: str) -> None:
    """Refuse another table, and an empty one.

    Raises:
        EmbspaceError: If so.
    """
    missing = [name for name in columns if name not in getattr(df, "columns", ())]
    if missing:
        raise EmbspaceError(f"{caller} draws another table: {', '.join(map(repr, missing))} is not there.")
    if df.empty:
        raise EmbspaceError("The table is empty: there is nothing to draw.")


def grid(panels: list[list[tuple[str, pd.DataFrame]]], more: int = 0) -> tuple[Any, int, int]:
    """A figure of quiet panels with room for the names of curves at its right; its width and height."""
    from plotly.subplots import make_subplots

    n_columns, n_rows = max(map(len, panels)), len(panels)
    titles = [escape(title) for row in panels for title in [name for name, _ in row] + [""] * (n_columns - len(row))]
    left, right, top, bottom = 64, 84, 92, 54
    gap, space = 34, 66
    width = n_columns * (PANEL + gap) - gap
    height = n_rows * (ROW + more + space) - space
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=gap / width,
        vertical_spacing=space / height,
    )
    figure.update_annotations(font={"size": 13, "color": theme.LIGHT.text}, yshift=4)
    figure.update_layout(margin={"l": left, "r": right, "t": top, "b": bottom})
    axis = {"linecolor": theme.LIGHT.line, "tickfont": {"size": 11, "color": theme.LIGHT.quiet}, "zeroline": False}
    figure.update_xaxes(**axis, showgrid=False, showline=True, ticks="")
    figure.update_yaxes(**axis, gridcolor=theme.LIGHT.line, showline=False, ticks="", nticks=5)
    # Titles with two lines of heading above them need a wider figure than one panel is.
    return figure, max(520, width + left + right), height + top + bottom


def line(go: Any, x: Any, y: Any, hover: list[str], colour: str, dash: str = "solid") -> Any:
    """A curve with its points."""
    style = {"color": colour, "width": 2, "dash": dash}
    marker = {"size": 5, "color": colour}
    return go.Scatter(x=x, y=y, mode="lines+markers", hovertext=hover, hoverinfo="text", line=style, marker=marker)


def by_layer(panels: list[list[tuple[str, pd.DataFrame]]], value: str, axis: str, title: str, unit: str) -> Any:
    """Panels of one curve for the claim and one for its control over the layers."""
    go = plotly()
    figure, width, height = grid(panels)
    for row, several in enumerate(panels, 1):
        top = max(float(rows[[value, "high"]].max().max()) for _, rows in several)
        for column, (name, rows) in enumerate(several, 1):
            ends = []
            for sample in sorted(rows["sample"].unique(), key=lambda s: s not in CONTROLS):  # the claim is drawn on top
                curve = rows.loc[rows["sample"] == sample].sort_values(by="layer")
                colour = theme.GREY if sample in CONTROLS else theme.BLUE
                sure = curve.dropna(subset=["low", "high"])
                figure.add_trace(
                    go.Scatter(
                        x=[*sure["layer"], *sure["layer"][::-1]],
                        y=[*sure["high"], *sure["low"][::-1]],
                        fill="toself",
                        mode="lines",
                        line={"width": 0},
                        fillcolor=colour,
                        opacity=0.22,
                        hoverinfo="skip",
                    ),
                    row,
                    column,
                )
                hover = [
                    f"{escape(name)}, layer {r['layer']}<br>{sample} {measure(r[value])} "
                    f"({measure(r['low'])} to {measure(r['high'])})<br>{r['n']:,} {unit}"
                    for r in curve.to_dict("records")
                ]
                dash = "dot" if sample == "base" else "solid"  # beside the other control
                figure.add_trace(line(go, curve["layer"], curve[value], hover, colour, dash), row, column)
                ends.append((str(sample), float(curve[value].iloc[-1]), colour))
            if column == len(several):
                name_ends(figure, ends, (1.08 * top or 1) / ROW, (row, column))
            layers = rows["layer"].to_numpy()
            every = max(1, -(-(int(layers.max()) - int(layers.min()) + 1) // 8))
            figure.update_xaxes(dtick=every, row=row, col=column)
        figure.update_yaxes(range=[0, 1.08 * top or 1], row=row)
        figure.update_yaxes(title={"text": axis, "font": {"size": 12}}, row=row, col=1)
    figure.update_xaxes(title={"text": "layer", "font": {"size": 12}, "standoff": 6}, row=len(panels))
    return quiet(figure, title, width, height, "bands: 95 % intervals; grey: the control")


def name_ends(
    figure: Any, ends: list[tuple[str, float, str]], unit: float, where: tuple[int, int] | None = None
) -> None:
    """Names at the right of curves, none nearer to another than can be read; a crowd stands around its own middle.

    Args:
        figure: The figure.
        ends: Name, height and colour of each curve's end.
        unit: What a pixel is on the vertical axis.
        where: Row and column of the panel; None where there is only one.
    """
    crowds: list[list[tuple[str, float, str]]] = []

    def lowest(crowd: list[tuple[str, float, str]]) -> float:
        return sum(end[1] for end in crowd) / len(crowd) - (len(crowd) - 1) * APART * unit / 2

    for end in sorted(ends, key=lambda end: end[1]):
        crowds.append([end])
        while len(crowds) > 1 and lowest(crowds[-1]) < lowest(crowds[-2]) + len(crowds[-2]) * APART * unit:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    place = {} if where is None else {"row": where[0], "col": where[1]}
    for crowd in crowds:
        for number, (name, _, colour) in enumerate(crowd):
            figure.add_annotation(
                x=1,
                xref="x domain",
                y=lowest(crowd) + number * APART * unit,
                text=name,
                showarrow=False,
                xanchor="left",
                xshift=8,
                font={"size": 12, "color": colour if colour != theme.GREY else theme.LIGHT.quiet},
                **place,
            )
