"""The measurements of Dar et al. (2023), each with its control.

Source: Analyzing Transformers in Embedding Space, https://arxiv.org/abs/2209.02535
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
