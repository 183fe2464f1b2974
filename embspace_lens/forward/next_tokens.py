"""Log-probabilities of the next token, with and without interventions."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .batches import TokenBatch
from .runs import Hook, logits


@torch.no_grad()
def next_log_probabilities(
    model: Any, batch: TokenBatch, *, hooks: Sequence[Hook] = ()
) -> Float[Tensor, "batch pos_before_last"]:
    """The log-probability of the token after each position but the last.

    Args:
        model: A TransformerLens model.
        batch: The tokens.
        hooks: Interventions, as `run_with_hooks` takes them.
    """
    log_p = logits(model, batch, hooks=hooks)[:, :-1].float().log_softmax(dim=-1)
    return log_p.gather(2, batch.tokens[:, 1:, None].to(log_p.device))[..., 0].cpu()


def mean_loss(model: Any, batches: Iterable[TokenBatch], *, hooks: Sequence[Hook] = ()) -> float:
    """The mean negative log-probability of each token of the texts, given the tokens before it."""
    total = n_tokens = 0.0
    for batch in batches:
        log_p = next_log_probabilities(model, batch, hooks=hooks)[batch.mask[:, 1:]]
        total, n_tokens = total - float(log_p.sum()), n_tokens + len(log_p)
    return total / n_tokens
