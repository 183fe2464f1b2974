"""embspace_lens: a transformer's weights as tidy tables of tokens, with no forward pass."""

from .errors import EmbspaceError
from .lens import EmbeddingLens
from .vocabulary import TokenMask, Vocabulary, ascii_tokens, seen_in, well_trained, whole_words
from .weights import Weights

__version__ = "0.1.0"

__all__ = [
    "EmbeddingLens",
    "EmbspaceError",
    "TokenMask",
    "Vocabulary",
    "Weights",
    "ascii_tokens",
    "seen_in",
    "well_trained",
    "whole_words",
]
