"""Two models in one space: alignment, translation, stitching, and the difference that tuning made."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
