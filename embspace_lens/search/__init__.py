"""Exact top-k search: the best tokens of vectors, and the best pairs of tokens of low-rank bilinear forms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
