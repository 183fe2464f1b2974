"""Transformer factors: hidden states as sparse non-negative sums of learned directions.

Source: Yun et al. (2021), Transformer visualization via dictionary learning, https://arxiv.org/abs/2103.15949
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
