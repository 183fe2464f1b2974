"""Colours and fonts of pages and plots."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import errors


class Palette(NamedTuple):
    """Colours as hexadecimal sRGB. The strongest token has `TINT` of `tint` (or of `tint_negative`) as its background."""

    page: str
    card: str
    text: str
    quiet: str
    line: str
    accent: str
    tint: str
    tint_negative: str


LIGHT = Palette("#fdfdfc", "#ffffff", "#1d2126", "#545b64", "#e3e4e1", "#1a5fa8", "#5b9bd9", "#e8964b")
DARK = Palette("#15171a", "#1b1e22", "#e6e7e9", "#a3a9b1", "#30343a", "#8fbdf0", "#3f77b5", "#a8632a")
TINT = 0.42
"""Opacity of the tint behind the strongest token."""

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'

BLUE, ORANGE, GREY = "#2b6cb0", "#b4560a", "#8a9099"
SERIES = ("#2b6cb0", "#b4560a", "#00796b", "#8e44ad", "#5d6d1e", "#b03060")

Stop = tuple[float, str]
SEQUENTIAL = "Viridis"
DIVERGING: tuple[Stop, ...] = (
    (0.0, "#1b4f8a"),
    (0.25, "#7fb0dd"),
    (0.5, "#f6f6f4"),
    (0.75, "#eda765"),
    (1.0, "#9c4a06"),
)
"""A plotly colour scale from blue through white (zero) to orange; plotly has no such scale."""


def sequential(share: float) -> str:
    """The colour of viridis at a position between 0 and 1."""
    return _sample(SEQUENTIAL, share)


def diverging(share: float) -> str:
    """The colour between blue (0) and orange (1); 0.5 is zero."""
    return _sample([list(stop) for stop in DIVERGING], share)


def _sample(scale: str | Sequence[list[float | str]], share: float) -> str:
    """The colour of a plotly scale at a position, which is clipped to [0, 1], in hexadecimal.

    Raises:
        EmbspaceError: If plotly is not installed.
    """
    try:
        from plotly.colors import sample_colorscale
    except ImportError as reason:
        raise errors.missing_extra("plotly", "plots") from reason
    channels: Any = sample_colorscale(scale, [min(1.0, max(0.0, share))], colortype="tuple")[0]
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def rgb(colour: str) -> tuple[int, int, int]:
    """`"#1a5fa8"` as three numbers between 0 and 255."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours, between 1 and 21.

    References:
        W3C (2018), Web Content Accessibility Guidelines 2.1, "contrast ratio".
    """

    def luminance(colour: str) -> float:
        shares = [channel / 255 for channel in rgb(colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def readable_on(background: str) -> str:
    """Black or white: the one with the higher contrast to the background."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, background))
