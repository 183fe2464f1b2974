"""Figures in notebooks: the interactive form and a picture."""

import base64
import io
import pickle
import sys

import numpy as np
import plotly.io as pio
import pytest
from browser import needs_chromium
from handmade import neurons_of

from embspace_lens.plots import notebook_figure, plot_tokens

INTERACTIVE, PNG = "application/vnd.plotly.v1+json", "image/png"
CELL = """
from embspace_lens import EmbeddingLens
EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="frequent").neurons(2, 302).embspace.plot()
"""


@pytest.fixture
def displayed(monkeypatch):
    """What figures display with plotly's renderer of notebooks."""
    monkeypatch.setattr(pio.renderers, "_default_renderers", pio.renderers._default_renderers)
    monkeypatch.setattr(pio.renderers, "_default_name", pio.renderers._default_name)
    pio.renderers.default = "plotly_mimetype"
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, metadata=None: bundles.append(bundle))
    return bundles


def test_figures_are_displayed_as_a_picture_and_in_the_interactive_form(displayed, monkeypatch):
    monkeypatch.setattr(notebook_figure, "png", lambda figure: "AAAA")
    figure = plot_tokens(neurons_of([" a", " b"]))
    figure._ipython_display_()
    assert set(displayed[0]) >= {INTERACTIVE, PNG} and displayed[0][PNG] == "AAAA"
    monkeypatch.setattr(notebook_figure, "_is_in_notebook", lambda: True)
    figure.show()
    assert displayed[1] == displayed[0]


def test_picture_is_shown_at_the_width_of_the_figure(displayed, monkeypatch):
    """The picture has twice as many pixels; without a width, pages would show it at twice the size of the figure."""
    widths = []
    monkeypatch.setattr(notebook_figure, "png", lambda figure: "AAAA")
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, raw, metadata=None: widths.append((metadata or {}).get(PNG))
    )
    figure = plot_tokens(neurons_of([" a", " b"]))
    figure._ipython_display_()
    assert widths == [{"width": figure.layout.width}]


def test_figures_are_displayed_in_the_interactive_form_without_kaleido(displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    plot_tokens(neurons_of([" a", " b"]))._ipython_display_()
    assert INTERACTIVE in displayed[0] and PNG not in displayed[0]


def test_figures_can_be_pickled():
    figure = plot_tokens(neurons_of([" a", " b"]))
    assert pickle.loads(pickle.dumps(figure)) == figure


@needs_chromium
@pytest.mark.full
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_figures_are_visible_in_html_that_nbconvert_makes(monkeypatch):
    nbclient, nbconvert, nbformat = map(pytest.importorskip, ("nbclient", "nbconvert", "nbformat"))
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL + "None", CELL, CELL.strip() + ".show()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for cell in notebook.cells[1:]:
        (output,) = (output for output in cell.outputs if output.output_type == "display_data")
        assert set(output["data"]) >= {INTERACTIVE, PNG}
        pixels = np.asarray(image.open(io.BytesIO(base64.b64decode(output["data"][PNG]))).convert("RGB"))
        assert pixels.std() > 10, "the picture is not empty"
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert page.count('src="data:image/png;base64,') == 2
