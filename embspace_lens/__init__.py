"""A transformer's weights as tidy tables of tokens, with no forward pass."""

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    value = _load(name)
    if name == "EmbeddingLens":
        from . import accessor  # noqa: F401 (registers `frame.embspace` for every user of a lens)
    return value
