"""Transformer factors: hidden states as sparse non-negative sums of learnt directions.

The system is that of Yun et al. (2021), Transformer visualization via dictionary learning: https://arxiv.org/abs/2103.15949
"""

from .dictionary import Factors
from .fitting import FactorFitter
from .sparse_coding import SparseCodes, sparse_codes

__all__ = ["FactorFitter", "Factors", "SparseCodes", "sparse_codes"]
