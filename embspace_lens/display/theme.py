"""Colours and type of pages and plots, in one place."""

from typing import NamedTuple


class Palette(NamedTuple):
    """Colours as hexadecimal sRGB; chips are tinted with `tint` (or `tint_negative`) up to `TINT` of the way."""

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
"""How much of the tint the strongest chip shows."""

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'

VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
BLUE, ORANGE, GREY = "#2b6cb0", "#b4560a", "#8a9099"
DIVERGING = ((0.0, "#1b4f8a"), (0.25, "#7fb0dd"), (0.5, "#f6f6f4"), (0.75, "#eda765"), (1.0, "#9c4a06"))
SERIES = ("#2b6cb0", "#b4560a", "#00796b", "#8e44ad", "#5d6d1e", "#b03060")


def rgb(colour: str) -> tuple[int, int, int]:
    """`"#1a5fa8"` as three numbers between 0 and 255."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def blend(under: str, over: str, share: float) -> str:
    """The colour seen where `over` covers `under` by a share."""
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(rgb(under), rgb(over), strict=True))


def sequential(share: float) -> str:
    """Viridis at a place between 0 and 1."""
    place = min(1.0, max(0.0, share)) * (len(VIRIDIS) - 1)
    below = min(int(place), len(VIRIDIS) - 2)
    return blend(VIRIDIS[below], VIRIDIS[below + 1], place - below)


def diverging(share: float) -> str:
    """Blue to orange at a place between 0 and 1."""
    share = min(1.0, max(0.0, share))
    below = max(i for i, (stop, _) in enumerate(DIVERGING[:-1]) if stop <= share)
    (start, one), (end, other) = DIVERGING[below : below + 2]
    return blend(one, other, (share - start) / (end - start))


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two colours, between 1 and 21."""

    def luminance(colour: str) -> float:
        channels = [c / 255 for c in rgb(colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def readable_on(background: str) -> str:
    """Black or white, whichever reads better."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, background))
