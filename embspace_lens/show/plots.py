"""Plots of the lens's tables: plotly figures whose title says what is seen."""

from .agreement import plot_agreement
from .bars import plot_tokens
from .comparison import plot_displacement, plot_stitch
from .evidence import plot_keep_k, plot_recall, plot_related_pairs
from .heads import plot_heads
from .importance import plot_importance
from .pairs import plot_pairs
from .plane import plot_plane

__all__ = [
    "plot_agreement",
    "plot_displacement",
    "plot_heads",
    "plot_importance",
    "plot_keep_k",
    "plot_pairs",
    "plot_plane",
    "plot_recall",
    "plot_related_pairs",
    "plot_stitch",
    "plot_tokens",
]
