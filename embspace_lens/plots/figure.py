"""What all plots share: plotly, loaded when a plot is made; titles, axes and margins; the limit on what is drawn."""

import html
import re
from typing import Any

import pandas as pd

from .. import errors
from ..display import theme
from ..display.table_groups import TableGroup, count_groups, table_groups
from ..display.tokens import display, width

TITLE_PIXELS, SUBTITLE_PIXELS = 8.5, 6.6  # the width of a character, in a wide font
TITLE_MARGIN = 16
TOP = 104  # pixels above the panels of a figure with a title and a subtitle

AXIS = {
    "linecolor": theme.LIGHT.line,
    "tickfont": {"size": 11, "color": theme.LIGHT.quiet},
    "zeroline": False,
    "ticks": "",
}
"""The layout of all axes."""


def plotly() -> Any:
    """The module `plotly.graph_objects`.

    Raises:
        EmbspaceError: If plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as reason:
        raise errors.missing_extra("plotly", "plots") from reason
    return go


def escape(text: str) -> str:
    """Text as a label of a figure. Plotly reads labels as HTML, but does not replace `&quot;`."""
    return html.escape(text, quote=False)


def token_label(token: str) -> str:
    """A token as a label of a figure."""
    return escape(display(token))


def axis_title(text: str, **options: Any) -> dict[str, Any]:
    """The title of an axis."""
    return {"text": text, "font": {"size": 12}, "standoff": 6, **options}


def finish(figure: Any, title: str, width: int, height: int, subtitle: str = "") -> Any:
    """Add the title and subtitle, fonts and colours, and a picture in notebooks; the right margin grows if the title would not fit."""
    needed = 2 * TITLE_MARGIN + max(label_width(title) * TITLE_PIXELS, label_width(subtitle) * SUBTITLE_PIXELS)
    added = max(0, int(needed) - width)
    right = figure.layout.margin.r
    heading = {
        "text": title,
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"l": TITLE_MARGIN, "t": TITLE_MARGIN},
        "font": {"size": 16},
    }
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
        width=width + added,
        height=height,
        margin_r=(80 if right is None else right) + added,
    )
    from .notebook_figure import NotebookFigure

    return NotebookFigure(figure)


def label_width(label: str) -> int:
    """How many characters of average width a label takes, without its tags."""
    return width(html.unescape(re.sub(r"<[^>]+>", "", label)))


def groups_to_draw(df: pd.DataFrame, limit: int, caller: str, remedy: str) -> list[TableGroup]:
    """The groups of a table, if they are few enough to draw.

    Raises:
        EmbspaceError: If there are none, or more than `limit`.
    """
    groups = list(table_groups(df, limit + 1))
    if not groups:
        raise errors.empty_table()
    if len(groups) > limit:
        raise errors.too_many_groups(caller, limit, "lists", count_groups(df), remedy)
    return groups


def balanced_columns(n: int, limit: int) -> int:
    """The number of columns, at most `limit`, for which n panels fill their rows as evenly as possible."""
    n_rows = -(-n // limit)
    return -(-n // n_rows)
