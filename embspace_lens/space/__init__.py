"""The embedding space: tokens and token masks, embeddings, and the projection of residual vectors onto them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
