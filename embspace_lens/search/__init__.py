"""Exact top-k search over embeddings: the best tokens of a vector, the best pairs of tokens of a bilinear form."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
