"""Demo models: small language models of movie reviews, part of the package, loaded without a network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
