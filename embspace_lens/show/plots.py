"""Plots of the lens's tables: plotly figures whose title says what is seen."""

from ..plots.agreement_scatter import plot_agreement
from ..plots.comparison_curves import plot_displacement, plot_stitch
from ..plots.evidence_curves import plot_keep_k, plot_recall, plot_related_pairs
from ..plots.head_maps import plot_heads
from ..plots.importance_curves import plot_importance
from ..plots.pair_lines import plot_pairs
from ..plots.plane import plot_plane
from ..plots.token_bars import plot_tokens

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
