"""Effective weights of any TransformerLens model, read block by block. No other wing knows the host's attributes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
