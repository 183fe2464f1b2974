"""Figures that stay visible where a notebook is shown without JavaScript: as a picture beside the interactive form."""

import base64
from typing import Any

import plotly.graph_objects as go

SCALE = 2  # pixels of the picture for each pixel of the figure
PNG = "image/png"


class NotebookFigure(go.Figure):
    """A plotly figure that a notebook stores in the form of plotly's renderer and as a PNG.

    HTML, PDF and slides that nbconvert makes, and pages of GitHub, show the PNG. It is made by kaleido and a Chromium browser;
    without them the notebook stores the interactive form only.
    """

    def _ipython_display_(self) -> None:
        forms = self._repr_mimebundle_()
        if not forms:  # the renderer opens a window
            super()._ipython_display_()
            return
        from IPython.display import display

        picture = None if PNG in forms else png(self)
        if picture is None:
            display(forms, raw=True)
        else:  # the width of the figure, because the picture has SCALE times as many pixels
            display({**forms, PNG: picture}, raw=True, metadata={PNG: {"width": self.layout.width}})

    def show(self, *args: Any, **options: Any) -> None:
        """Show the figure as plotly does; in a notebook, without arguments, as the last value of a cell is shown."""
        if not args and not options and _is_in_notebook():
            self._ipython_display_()
        else:
            super().show(*args, **options)


def _is_in_notebook() -> bool:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def png(figure: go.Figure) -> str | None:
    """A figure as PNG in base64, or None if kaleido or its browser is missing.

    One browser makes all pictures of a session. It is closed at exit.
    """
    try:
        import kaleido

        kaleido.start_sync_server(silence_warnings=True)
        options = {"format": "png", "width": figure.layout.width, "height": figure.layout.height, "scale": SCALE}
        picture = kaleido.calc_fig_sync(figure.to_dict(), opts=options)
    except Exception:  # kaleido raises errors of several packages; the interactive form does not depend on it
        return None
    return base64.b64encode(picture).decode("ascii")
