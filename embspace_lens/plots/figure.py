"""What all plots share: plotly when it is asked for, and a quiet theme."""

from html import escape
from typing import Any

import pandas as pd

from .. import errors
from ..display import theme
from ..display.table_groups import Unit, count, units
from ..display.tokens import display
from ..errors import EmbspaceError


def plotly() -> Any:
    """Plotly's figures.

    Raises:
        EmbspaceError: If plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as reason:
        raise errors.missing_extra("plotly", "plots") from reason
    return go


def text(token: str) -> str:
    """A token for a label of a figure, where plotly would read HTML."""
    return escape(display(token))


def quiet(figure: Any, title: str, width: int, height: int, subtitle: str = "") -> Any:
    """Give a figure the look that all plots share."""
    heading = {
        "text": title,
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "pad": {"l": 16},
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "font": {"size": 16},
    }
    heading["pad"]["t"] = 16
    if subtitle:
        heading["subtitle"] = {"text": subtitle, "font": {"size": 12, "color": theme.LIGHT.quiet}}
    figure.update_layout(
        template="none",
        title=heading,
        font={"family": theme.SANS, "size": 13, "color": theme.LIGHT.text},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        hoverlabel={"font": {"family": theme.MONO, "size": 12}, "bgcolor": "#ffffff", "bordercolor": theme.LIGHT.line},
        showlegend=False,
        width=width,
        height=height,
    )
    return figure


def few(df: pd.DataFrame, limit: int, what: str, way_out: str) -> list[Unit]:
    """A table's units, where they are few enough to draw.

    Raises:
        EmbspaceError: If there are none, or more than `limit`.
    """
    found = list(units(df, limit + 1))
    if not found:
        raise EmbspaceError("The table is empty: there is nothing to draw.")
    if len(found) > limit:
        raise EmbspaceError(f"{what} draws at most {limit} at a time, and this table holds {count(df):,}. {way_out}")
    return found
