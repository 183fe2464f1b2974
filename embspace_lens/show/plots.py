"""Plots of the lens's tables: plotly figures whose title says what is seen."""

from .bars import plot_tokens
from .heads import plot_heads
from .pairs import plot_pairs
from .plane import plot_plane

__all__ = ["plot_heads", "plot_pairs", "plot_plane", "plot_tokens"]
