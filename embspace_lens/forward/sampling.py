"""Text sampled from a model."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import EmbspaceError
from ..weights.configuration import device_of, is_causal
from .batches import TokenBatch

SAMPLE_BYTES = 2**28  # of predictions and noise, while a model makes up text


@torch.no_grad()
def own_words(
    model: Any,
    n_rows: int,
    n_tokens: int,
    *,
    tokens: Int[Tensor, " n"] | None = None,
    rounds: int = 8,
    seed: int = 0,
) -> Iterator[TokenBatch]:
    r"""Let a model make up text: no corpus is needed to see its hidden states at work.

    A text is sampled token by token, with fixed Gumbel noise, from the model's own predictions:

    .. math:: x_t = \arg\max_v \big(\log p(v \mid x_{<t}) + g_{t, v}\big)

    All positions are sampled at once, each round from the text of the round before (Jacobi iteration). After r rounds the
    first r tokens are the model's exact sample; those behind them have the model's word frequencies and most of its phrases.

    Args:
        model: A causal TransformerLens model.
        n_rows: How many texts.
        n_tokens: How long each is, the beginning-of-sequence token apart.
        tokens: The ids to choose among; all by default.
        rounds: Forward passes over each text.
        seed: Of the noise.

    Returns:
        Batches of rows; `mask` leaves the beginning-of-sequence token out.

    Raises:
        EmbspaceError: If the model is not causal.
    """
    if not is_causal(model):
        raise EmbspaceError("A model that looks both ways does not write text; give texts instead.")
    device, d_vocab = device_of(model), int(model.cfg.d_vocab)
    allowed = torch.arange(d_vocab) if tokens is None else tokens
    tokenizer = getattr(model, "tokenizer", None)
    bos = getattr(tokenizer, "bos_token_id", None) or 0
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, SAMPLE_BYTES // (8 * (n_tokens + 1) * d_vocab))
    for start in range(0, n_rows, at_once):
        n = min(at_once, n_rows - start)
        # exponential noise, for argmax(log p + Gumbel) = argmax(p / Exp)
        noise = torch.empty(n, n_tokens, len(allowed)).exponential_(generator=generator)
        text = allowed[torch.randint(len(allowed), (n, n_tokens), generator=generator)]
        for _ in range(rounds):
            rows = torch.cat([torch.full((n, 1), bos), text], dim=1).to(device)
            p = model(rows)[:, :-1, allowed.to(device)].float().softmax(dim=-1).cpu()
            text = allowed[(p / noise).argmax(dim=-1)]
        rows = torch.cat([torch.full((n, 1), bos), text], dim=1)
        mask = torch.ones_like(rows, dtype=torch.bool)
        mask[:, 0] = False
        length = torch.full((n,), n_tokens + 1)
        yield TokenBatch(torch.arange(start, start + n), torch.zeros(n, dtype=torch.long), rows, mask, length)
