"""Transformer factors: hidden states as sparse non-negative sums of learnt directions.

The system is that of Yun et al. (2021), Transformer visualization via dictionary learning: https://arxiv.org/abs/2103.15949
"""

from .activity import Activity, activity, importance, top_contexts
from .dictionary import Factors
from .fit import fit_factors
from .fitting import FactorFitter
from .levels import level
from .saliency import reach_of, saliency
from .senses import senses
from .shipped import demo_factors
from .sparse_coding import SparseCodes, sparse_codes

__all__ = [
    "Activity",
    "FactorFitter",
    "Factors",
    "SparseCodes",
    "activity",
    "demo_factors",
    "fit_factors",
    "importance",
    "level",
    "reach_of",
    "saliency",
    "senses",
    "sparse_codes",
    "top_contexts",
]
