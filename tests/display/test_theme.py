"""Colours are legible."""

import numpy as np
import pytest
from plotly.colors import find_intermediate_color

from embspace_lens.display import theme


def _blend(background, tint):
    """The colour of the strongest chip."""
    colours = [tuple(map(float, theme.rgb(colour))) for colour in (background, tint)]
    return "#" + "".join(f"{round(channel):02x}" for channel in find_intermediate_color(*colours, theme.TINT))


def test_colour_scales_begin_and_end_at_their_limits():
    assert (theme.sequential(0), theme.sequential(1)) == ("#440154", "#fde725")
    assert (theme.sequential(-1), theme.sequential(2)) == ("#440154", "#fde725")
    assert [theme.diverging(share) for share in (0, 0.5, 1)] == ["#1b4f8a", "#f6f6f4", "#9c4a06"]


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK])
def test_text_has_sufficient_contrast_on_pages_and_tints(palette):
    for ground in (palette.page, palette.card):
        assert theme.contrast(palette.text, ground) >= 7
        assert theme.contrast(palette.quiet, ground) >= 4.5
        for tint in (palette.tint, palette.tint_negative):
            assert theme.contrast(palette.text, _blend(ground, tint)) >= 4.5


def test_numbers_have_sufficient_contrast_in_cells_of_every_colour():
    for share in np.linspace(0, 1, 101):
        for ground in (theme.sequential(share), theme.diverging(share)):
            assert theme.contrast(theme.readable_on(ground), ground) >= 4.5
    for colour in (*theme.SERIES, theme.BLUE, theme.ORANGE, theme.LIGHT.quiet):
        assert theme.contrast(colour, "#ffffff") >= 4.5
