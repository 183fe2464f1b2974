"""Effective weights of TransformerLens models, read block by block. No other sub-package uses TransformerLens's attributes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
