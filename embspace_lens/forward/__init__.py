"""Forward passes: texts, batches of tokens, hidden states, a cache on disk, sampling. No other sub-package runs a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
