"""The space of features: residual vectors as scores over the features of a dictionary."""

import torch
from jaxtyping import Int
from torch import Tensor

from .. import errors
from ..weights.effective import Weights
from ..weights.parameter_names import Side
from .embedding_space import EmbeddingSpace
from .embeddings import Embedding
from .feature_rows import FeatureDictionary, read_rows, written_rows


class FeatureSpace(EmbeddingSpace):
    r"""Residual vectors of one model as scores over features, in place of tokens.

    What is in the stream are the decoder rows of a source dictionary, in place of W_E; what reads it are the encoder columns of a
    target dictionary, in place of W_U:

    .. math:: s_\mathrm{read}(w) = W_\mathrm{dec}^\mathrm{source}\, w, \qquad s_\mathrm{write}(w) = w\, W_\mathrm{enc}^\mathrm{target}

    Args:
        weights: The model's effective weights.
        tokens: The space of tokens, which gives the score, and the rows of a side without a dictionary.
        source: What is in the stream; None for tokens.
        target: What reads the stream; None for tokens.

    Attributes:
        tokens: The space of tokens.

    Raises:
        EmbspaceError: If a dictionary does not fit the model, or the target has no encoder.
    """

    def __init__(
        self,
        weights: Weights,
        tokens: EmbeddingSpace,
        source: FeatureDictionary | None = None,
        target: FeatureDictionary | None = None,
    ) -> None:
        self.kind, self.inverse, self.score, self.mask = tokens.kind, tokens.inverse, tokens.score, tokens.mask
        self.name, self.d_model, self.d_vocab = tokens.name, tokens.d_model, tokens.d_vocab
        self.tokens = tokens
        self._dictionaries: dict[Side, FeatureDictionary | None] = {"read": source, "write": target}
        self._rows: dict[Side, Embedding] = {}
        if source is not None:
            self._rows["read"] = written_rows(weights, source, self.score)
            self._rows["read"].check(f"the decoder of {source.name}")
        if target is not None:
            self._rows["write"] = read_rows(weights, target, self.score)
            self._rows["write"].check(f"the encoder of {target.name}")
        self._ids = {side: torch.arange(len(rows)) for side, rows in self._rows.items()}

    @property
    def read(self) -> Embedding:
        """What is in the stream: rows of the source's decoder, or token embeddings."""
        return self._rows["read"] if "read" in self._rows else self.tokens.read

    @property
    def write(self) -> Embedding:
        """What reads the stream: columns of the target's encoder, or the unembedding of tokens."""
        return self._rows["write"] if "write" in self._rows else self.tokens.write

    def ids(self, side: Side) -> Int[Tensor, " n"]:
        return self._ids[side] if side in self._ids else self.tokens.ids(side)

    def size(self, side: Side) -> int:
        return len(self._rows[side]) if side in self._rows else self.tokens.size(side)

    def features(self, side: Side) -> FeatureDictionary | None:
        return self._dictionaries[side]

    @property
    def token_ids(self) -> Int[Tensor, " n_tokens"]:
        """Not defined: functions that need tokens on both sides raise an error.

        Raises:
            EmbspaceError: Always.
        """
        raise errors.reads_features(self.name)
