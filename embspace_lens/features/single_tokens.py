"""The codes of features for single tokens: one forward pass per token, without other text."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..forward.batches import TokenBatch
from ..forward.runs import collect_activations
from ..search.tiles import chunks
from .dictionary import Features

MAX_BATCH = 512  # tokens of one forward pass


def single_token_codes(
    model: Any, features: Features, feature: Int[np.ndarray, " n"], token: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The code of one feature for one token, for each of n pairs; the model runs once on each token.

    Args:
        model: A TransformerLens model.
        features: The dictionary.
        feature: The feature of each pair.
        token: The token id of each pair.

    Raises:
        EmbspaceError: If the dictionary has no hook point or no non-linearity.
    """
    if not features.hook:
        raise errors.no_hook_of_features(features.name)
    codes = np.zeros(len(token), dtype=np.float32)
    tokens, row = np.unique(token, return_inverse=True)
    order = np.argsort(row, kind="stable")
    first = np.searchsorted(row[order], np.arange(len(tokens) + 1))
    for chunk in chunks(len(tokens), max(4 * len(features), 2**24 // MAX_BATCH)):
        pairs = order[first[chunk.start] : first[chunk.stop]]
        of_tokens = features.encode(token_states(model, torch.from_numpy(tokens[chunk]), features.hook)).cpu().numpy()
        codes[pairs] = of_tokens[row[pairs] - chunk.start, feature[pairs]]
    return codes


@torch.no_grad()
def token_states(model: Any, tokens: Int[Tensor, " n"], hook: str) -> Float[Tensor, "n d_model"]:
    """The values at a hook point for each token by itself, after the beginning-of-sequence token if there is one."""
    first = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    rows = tokens[:, None]
    if first is not None:
        rows = torch.cat([torch.full_like(rows, first), rows], dim=1)
    zeros = torch.zeros_like(tokens)
    mask = torch.ones_like(rows, dtype=torch.bool)
    batch = TokenBatch(torch.arange(len(tokens)), zeros, rows, mask, zeros + rows.shape[1])
    return collect_activations(model, batch, [hook])[hook][:, -1]
