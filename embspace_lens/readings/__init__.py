"""Readings of one model: every parameter as a table of tokens. The methods of `EmbeddingLens` call these functions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
