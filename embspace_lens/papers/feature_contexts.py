"""The contexts in which features of a dictionary are most active, as tokens."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..features.dictionary import Features
from ..forward.batches import token_batches
from ..forward.runs import collect_activations

BATCH_TOKENS, MAX_TOKENS = 8192, 128
NO_TOKEN = -1


class TopContexts(NamedTuple):
    """The positions at which each feature is most active, best first.

    Attributes:
        code: The feature's code; 0 for positions at which it is not active.
        token: The token at the position.
        next_token: The token after it; −1 at the end of a text.
    """

    code: Float[Tensor, "n_features n"]
    token: Int[Tensor, "n_features n"]
    next_token: Int[Tensor, "n_features n"]


@torch.no_grad()
def top_contexts(model: Any, features: Features, texts: Iterable[str], n: int) -> TopContexts:
    """The n positions of texts at which each feature is most active; equal codes in the order of the texts."""
    best = TopContexts(torch.zeros(len(features), n), *(torch.full((len(features), n), NO_TOKEN) for _ in range(2)))
    for batch in token_batches(model, texts, batch_tokens=BATCH_TOKENS, max_tokens=MAX_TOKENS):
        states = collect_activations(model, batch, [features.hook])[features.hook]
        following = torch.nn.functional.pad(batch.tokens[:, 1:], (0, 1), value=NO_TOKEN)
        is_last = torch.arange(batch.tokens.shape[1]) >= batch.length[:, None] - 1
        following = following.masked_fill(is_last, NO_TOKEN)
        codes = features.encode(states[batch.mask.to(states.device)]).float().cpu().T
        new = (codes, *(ids[batch.mask].expand(len(features), -1) for ids in (batch.tokens, following)))
        joined = TopContexts(*(torch.cat(pair, dim=1) for pair in zip(best, new, strict=True)))
        order = joined.code.argsort(dim=1, descending=True, stable=True)[:, :n]
        best = TopContexts(*(part.gather(1, order) for part in joined))
    return best


def commonest(
    ids: Int[Tensor, "n_features n"], code: Float[Tensor, "n_features n"], minimum: int
) -> Int[np.ndarray, " n_features"]:
    """The commonest id among each feature's active positions, the lowest of equally common ones; −1 with fewer than `minimum`."""
    labels = np.full(len(ids), NO_TOKEN)
    for feature, (row, is_active) in enumerate(zip(ids.numpy(), (code > 0).numpy(), strict=True)):
        row = row[is_active & (row != NO_TOKEN)]
        if len(row) >= minimum:
            values, counts = np.unique(row, return_counts=True)
            labels[feature] = values[counts.argmax()]
    return labels
