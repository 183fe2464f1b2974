"""Tables in notebooks are legible in every theme, whatever the system's colour scheme, as Chromium draws them."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_chromium, render, screenshot
from handmade import neurons_of

from embspace_lens.display.theme import contrast

pytestmark = [needs_chromium, pytest.mark.full]

PROBE = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const over = (below, colour) => {
  canvas.fillStyle = `rgb(${below.join(" ")})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};
const ground = (element) => {
  const below = element ? ground(element.parentElement) : [255, 255, 255];
  return element ? over(below, getComputedStyle(element).backgroundColor) : below;
};
const cells = [...document.querySelectorAll(".esl th, .esl td, .esl p, .esl .esl-chip")].map((element) => {
  const style = getComputedStyle(element), background = ground(element), box = element.getBoundingClientRect();
  return { text: element.textContent, tag: element.className || element.tagName, align: style.textAlign, background,
    colour: over(background, style.color), box: [box.left, box.top, box.right, box.bottom] };
});
const probe = document.createElement("pre");
probe.id = "probe"; probe.textContent = JSON.stringify(cells); probe.hidden = true; document.body.append(probe);
"""


def table_html():
    tokens = [" film", " films", " movie", "é", "\n"]
    tables = [neurons_of(tokens, neuron=neuron) for neuron in range(6)]
    return pd.concat(tables, ignore_index=True).embspace.show(n=10)._repr_html_()


def lab_page(theme, folder):
    """A table as the output of a cell, in a page with JupyterLab's own styles."""
    nbconvert, nbformat = (pytest.importorskip(name, reason="needs nbconvert") for name in ("nbconvert", "nbformat"))
    data = {"text/html": table_html(), "text/plain": "a table"}
    output = nbformat.v4.new_output("display_data", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("table", outputs=[output])])
    page, _ = nbconvert.HTMLExporter(theme=theme).from_notebook_node(notebook)
    page = re.sub(r'<script[^>]*src="[^"]*"[^>]*>', "<script>", page)  # libraries from other hosts
    return written(page.replace("</body>", f"<script>{PROBE}</script></body>"), folder)


def plain_page(style, folder):
    return written(f"<!doctype html><body style='{style}'>{table_html()}<script>{PROBE}</script></body>", folder)


def written(text, folder):
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    return page


def hexadecimal(rgb):
    return "#" + "".join(f"{channel:02x}" for channel in rgb)


def assert_legible(page, dark_page, dark_system):
    cells = json.loads(
        html.unescape(re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', render(page, dark_system=dark_system), re.S)[1])
    )
    assert len(cells) > 60 and {"é", "⏎"} <= {cell["text"] for cell in cells}
    for cell in cells:
        assert contrast(hexadecimal(cell["colour"]), hexadecimal(cell["background"])) >= 4.5, cell
        assert cell["align"] == ("right" if cell["tag"] == "number" else "left"), cell
        if cell["tag"] in ("quiet", "number", "tokens"):
            assert (max(cell["background"]) < 80) == dark_page, "cells have the ground of the page"
    pixels = picture(page, dark_system)
    for cell in cells:
        left, top, right, bottom = (2 * round(x) for x in cell["box"])
        if cell["tag"].startswith("esl-chip") and bottom <= len(pixels):
            colours = np.unique(pixels[top + 4 : bottom - 4, left + 4 : right - 4].reshape(-1, 3), axis=0)
            by_light = colours[np.argsort(colours.sum(axis=1))]
            assert contrast(hexadecimal(by_light[0]), hexadecimal(by_light[-1])) >= 4.5, cell["text"]


def picture(page, dark_system):
    """The page's pixels, two for each CSS pixel."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    path = screenshot(page, page.with_suffix(".png"), dark_system=dark_system, scale=2)
    return np.asarray(image.open(path).convert("RGB"))


@pytest.mark.parametrize("dark_system", [False, True], ids=["light system", "dark system"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tables_are_legible_in_jupyterlab(theme, dark_system, tmp_path):
    assert_legible(lab_page(theme, tmp_path), theme == "dark", dark_system)


@pytest.mark.parametrize("dark_system", [False, True], ids=["light system", "dark system"])
@pytest.mark.parametrize(
    ("style", "is_dark"),
    [
        ("background:#1e1e1e;--vscode-editor-foreground:#d4d4d4", True),
        ("background:#ffffff;--vscode-editor-foreground:#3b3b3b", False),
        ("background:#202124;color:#e8eaed", True),
        ("", False),
    ],
    ids=["VS Code dark", "VS Code light", "dark page", "plain page"],
)
def test_tables_are_legible_on_other_pages(style, is_dark, dark_system, tmp_path):
    assert_legible(plain_page(style, tmp_path), is_dark, dark_system)
