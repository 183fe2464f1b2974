"""Positions of labels beside their marks, so that no label covers another."""

import numpy as np
from jaxtyping import Float

from ..display.tokens import width

CHARACTER, LINE = 6.8, 12.0  # pixels of a monospaced character of size 11


class LabelPositions:
    """Places labels one by one, so that each covers no mark and no earlier label.

    Args:
        pixels: The marks.
        size: Width and height of the plot in pixels.
    """

    def __init__(self, pixels: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> None:
        self.taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in pixels]
        self.size = size

    def place(self, x: float, y: float, label: str) -> str | None:
        """`"middle right"`, `"middle left"`, `"top center"` or `"bottom center"` of the mark; None if there is no room."""
        w = CHARACTER * width(label) + 2
        boxes = {
            "middle right": (x + 6, y - LINE / 2, x + 8 + w, y + LINE / 2),
            "middle left": (x - 8 - w, y - LINE / 2, x - 6, y + LINE / 2),
            "top center": (x - w / 2, y - 6 - LINE, x + w / 2, y - 6),
            "bottom center": (x - w / 2, y + 6, x + w / 2, y + 6 + LINE),
        }
        for position, (left, top, right, bottom) in boxes.items():
            is_inside = left >= 0 and top >= 0 and right <= self.size[0] and bottom <= self.size[1]
            if is_inside and not any(left < c and a < right and top < d and b < bottom for a, b, c, d in self.taken):
                self.taken.append((left, top, right, bottom))
                return position
        return None
