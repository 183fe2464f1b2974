"""Transformer factors: hidden states as sparse non-negative sums of learnt directions.

The system is that of Yun et al. (2021), Transformer visualization via dictionary learning: https://arxiv.org/abs/2103.15949
"""

from .contexts import Activity, activity, importance, top_contexts
from .dictionary import Factors
from .fitter import FactorFitter
from .levels import level
from .lime import reach_of, saliency
from .pretrained import demo_factors
from .sparse_coding import SparseCodes, sparse_codes
from .training import fit_factors
from .word_senses import senses

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
