"""Text sampled from a causal model."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tiles import chunk_rows
from ..tables.checks import check_integer
from ..weights.configuration import context_length, d_vocab, device_of, is_causal, model_name
from .batches import TokenBatch

SHARE = 16.0  # of the chunk budget: fewer forward passes over larger batches are about twice as fast


@torch.no_grad()
def sample_tokens(
    model: Any,
    n_rows: int,
    n_tokens: int,
    *,
    tokens: Int[Tensor, " n"] | None = None,
    top_k: int | None = None,
    rounds: int = 8,
    seed: int = 0,
) -> Iterator[TokenBatch]:
    r"""Sample token sequences from a model.

    Each token is sampled from the model's prediction, with Gumbel noise g that is drawn in advance:

    .. math:: x_t = \arg\max_v \big(\log p(v \mid x_{<t}) + g_{t, v}\big)

    Every round samples all positions at once, given the sequence of the previous round (Jacobi iteration). After r
    rounds the first r tokens are an exact sample; the later ones have the model's token frequencies and most of its phrases.
    With `n_tokens` rounds or more the whole sample is exact; it is then computed token by token, which is faster.

    Args:
        model: A causal TransformerLens model.
        n_rows: The number of sequences.
        n_tokens: The length of each sequence, without the beginning-of-sequence token.
        tokens: The ids from which to sample; all by default.
        top_k: The number of most probable tokens from which each token is sampled; all by default.
        rounds: The largest number of forward passes over each sequence. Fewer are run if a round changes nothing.
        seed: The seed of the noise.

    Returns:
        Batches of sequences; their `mask` excludes the beginning-of-sequence token.

    Raises:
        EmbspaceError: If the model is bidirectional, or `top_k` is not from 1 to the number of tokens.

    Example:
        >>> [batch.tokens.shape for batch in sample_tokens(model, 2, 4)]
        [torch.Size([2, 5])]
    """
    if not is_causal(model):
        raise errors.not_causal(model_name(model))
    candidates = torch.arange(d_vocab(model)) if tokens is None else tokens
    if top_k is not None:
        top_k = check_integer("top_k", top_k, minimum=1, maximum=len(candidates), count_of="tokens to sample from")
    generator = torch.Generator().manual_seed(seed)
    positions_per_batch = chunk_rows(2 * 4 * d_vocab(model), scale=SHARE)  # noise and predictions, in float32
    rows_per_batch = max(1, positions_per_batch // (n_tokens + 1))
    for start in range(0, n_rows, rows_per_batch):
        n = min(rows_per_batch, n_rows - start)
        # Exponential noise, because argmax(log p + Gumbel) = argmax(p / exponential).
        noise = torch.empty(n, n_tokens, len(candidates)).exponential_(generator=generator)
        first_sample = candidates[torch.randint(len(candidates), (n, n_tokens), generator=generator)]
        rows = torch.cat([torch.full((n, 1), _bos_token(model)), first_sample], dim=1)
        if rounds >= n_tokens:
            for pos in range(n_tokens):
                rows[:, pos + 1] = _next_tokens(model, rows[:, : pos + 1], noise[:, [pos]], candidates, top_k)[:, 0]
        else:
            for _ in range(rounds):
                sample = _next_tokens(model, rows[:, :-1], noise, candidates, top_k)
                if torch.equal(sample, rows[:, 1:]):
                    break
                rows[:, 1:] = sample
        yield TokenBatch(
            example=torch.arange(start, start + n),
            start=torch.zeros(n, dtype=torch.long),
            tokens=rows,
            mask=torch.arange(n_tokens + 1).expand(n, -1) > 0,
            length=torch.full((n,), n_tokens + 1),
        )


def sample_texts(model: Any, *, n: int = 160, n_tokens: int = 48, top_k: int = 50, seed: int = 0) -> list[str]:
    """Sample texts from a model, for readings that need texts when there is no corpus.

    Args:
        model: A causal TransformerLens model with a tokenizer.
        n: The number of texts. Empty texts are left out.
        n_tokens: The largest number of tokens of a text. It ends earlier at an end-of-sequence token.
        top_k: The number of most probable tokens from which each token is sampled.
        seed: The seed of the noise.

    Returns:
        The texts.

    Raises:
        EmbspaceError: If the model is bidirectional or has no tokenizer, or a number is out of range.

    Example:
        >>> len(sample_texts(model, n=2, n_tokens=4)) <= 2
        True
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise errors.no_tokenizer(model_name(model) or "the model", "sample_texts()")
    if not is_causal(model):
        raise errors.not_causal(model_name(model))
    n = check_integer("n", n, minimum=1)
    n_ctx = context_length(model)
    n_tokens = check_integer("n_tokens", n_tokens, minimum=1, maximum=n_ctx - 1 if n_ctx else None)
    top_k = min(check_integer("top_k", top_k, minimum=1), d_vocab(model))
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    rows = [
        list(takewhile(lambda token: token not in ends, row[1:].tolist()))
        for batch in sample_tokens(model, n, n_tokens, top_k=top_k, rounds=n_tokens, seed=seed)
        for row in batch.tokens
    ]
    texts = tokenizer.batch_decode(rows)
    return [text for text in texts if text.strip()]


def _bos_token(model: Any) -> int:
    """The beginning-of-sequence token; token 0 if the tokenizer has none."""
    return getattr(getattr(model, "tokenizer", None), "bos_token_id", None) or 0


def _next_tokens(
    model: Any,
    rows: Int[Tensor, "batch pos"],
    noise: Float[Tensor, "batch n_last n_candidates"],
    candidates: Int[Tensor, " n_candidates"],
    top_k: int | None,
) -> Int[Tensor, "batch n_last"]:
    """The tokens after each of the last positions, as many as there is noise for."""
    device = device_of(model)
    logits = model(rows.to(device))[:, -noise.shape[1] :, candidates.to(device)]
    probabilities = logits.float().softmax(dim=-1)
    if top_k is not None and top_k < len(candidates):
        smallest = probabilities.topk(top_k, dim=-1).values[..., -1:]
        probabilities = probabilities.where(probabilities >= smallest, 0.0)
    return candidates[(probabilities.cpu() / noise).argmax(dim=-1)]
