"""Tables made visible: plots, `df.embspace`, lines for a terminal, and a report of one file."""

from ..accessor import EmbspaceAccessor
from ..plots.alignment_maps import plot_alignment
from ..report.page import write_report
from ..site import pages as explore
from .plots import (
    plot_agreement,
    plot_displacement,
    plot_heads,
    plot_importance,
    plot_keep_k,
    plot_pairs,
    plot_plane,
    plot_recall,
    plot_related_pairs,
    plot_stitch,
    plot_tokens,
)

__all__ = [
    "EmbspaceAccessor",
    "explore",
    "plot_agreement",
    "plot_alignment",
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
    "write_report",
]
