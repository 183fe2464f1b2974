"""The activity of all factors in one layer, updated batch by batch in memory that does not depend on the texts."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..forward.batches import TokenBatch

GAP = 1e-3  # the duality gap of the codes
NO_TOKEN = -1
BINS_PER_OCTAVE, LOWEST_BIN, N_BINS = 2, -16, 48  # codes from 2⁻⁸ to 2¹⁶; the first and the last bin take the rest


@runtime_checkable
class Dictionary(Protocol):
    """A dictionary whose codes are collected, such as `Factors`."""

    @property
    def n_factors(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def l1(self) -> float: ...
    def encode(self, states: Any, /, *, gap: float) -> Tensor: ...
    def decode(self, codes: Any, /) -> Tensor: ...


class LayerActivity:
    """The largest codes of every factor in one layer, their contexts, and sums for the layer's measures.

    Args:
        factors: The dictionary.
        n: How many codes per factor are kept for the importance.
        n_contexts: How many contexts per factor are kept.
        window: How many tokens before and after the target a context has.

    Attributes:
        top_codes: The n largest codes of each factor.
        context_codes: The codes of the contexts, largest first; 0 for contexts that do not exist.
        bin_counts: How many codes of each factor above 0 are in each bin; a bin begins at `2 ** ((LOWEST_BIN + i) / 2)`.
        contexts: For each context: example, pos, and the tokens from `window` before to `window` after the target.
    """

    top_codes: Float[Tensor, "n_factors n"]
    context_codes: Float[Tensor, "n_factors n_contexts"]
    contexts: Int[Tensor, "n_factors n_contexts cells"]

    def __init__(self, factors: Dictionary, n: int, n_contexts: int, window: int) -> None:
        self.factors, self.n, self.n_contexts, self.window = factors, n, n_contexts, window
        self.top_codes = torch.zeros(factors.n_factors, n)
        self.context_codes = torch.zeros(factors.n_factors, n_contexts)
        cells = 2 + 2 * window + 1
        self.contexts = torch.full((factors.n_factors, n_contexts, cells), NO_TOKEN, dtype=torch.int32)
        self.bin_counts = torch.zeros(factors.n_factors, N_BINS, dtype=torch.int64)
        self._n_vectors, self._n_active, self._sum_codes, self._unexplained = 0, 0, 0.0, 0.0
        self._sum, self._sum_squares = torch.zeros(factors.d_model, dtype=torch.float64), 0.0

    def update(
        self,
        states: Float[Tensor, "n_states d_model"],
        example: Int[Tensor, " n_states"],
        pos: Int[Tensor, " n_states"],
        windows: Int[Tensor, "n_states width"],
    ) -> None:
        """Add the hidden states of a batch, with their positions and the tokens around them."""
        states = states.float().cpu()
        codes = self.factors.encode(states, gap=GAP).cpu()
        self._update_sums(states, codes)
        largest = codes.T.topk(min(self.n, len(codes)), dim=1).values
        self.top_codes = torch.cat([self.top_codes, largest], dim=1).topk(self.n, dim=1).values
        if self.n_contexts:
            value, row = codes.T.topk(min(self.n_contexts, len(codes)), dim=1)
            cells = torch.cat([example[:, None], pos[:, None], windows], dim=1).int()
            self.context_codes, order = torch.cat([self.context_codes, value], dim=1).topk(self.n_contexts, dim=1)
            candidates = torch.cat([self.contexts, cells[row]], dim=1)
            self.contexts = candidates.gather(1, order[..., None].expand(-1, -1, candidates.shape[2]))

    def _update_sums(
        self, states: Float[Tensor, "n_states d_model"], codes: Float[Tensor, "n_states n_factors"]
    ) -> None:
        exact = states.double()
        self._unexplained += float((exact - self.factors.decode(codes).double()).square().sum())
        self._sum_codes += float(codes.double().sum())
        row, factor = (codes > 0).nonzero(as_tuple=True)
        self._n_active += len(row)
        bins = (codes[row, factor].log2() * BINS_PER_OCTAVE).floor().long() - LOWEST_BIN
        flat = factor * N_BINS + bins.clamp(0, N_BINS - 1)
        self.bin_counts += torch.bincount(flat, minlength=self.bin_counts.numel()).reshape(self.bin_counts.shape)
        self._n_vectors += len(states)
        self._sum += exact.sum(dim=0)
        self._sum_squares += float(exact.square().sum())

    def importance(self) -> Float[Tensor, " n_factors"]:
        """The mean of each factor's n largest codes."""
        return self.top_codes.mean(dim=1)

    def measures(self) -> dict[str, Any]:
        """How well the codes explain the layer, and how sparse they are."""
        variance = self._sum_squares - float(self._sum.square().sum()) / self._n_vectors
        return {
            "n_vectors": self._n_vectors,
            "objective": (self._unexplained / 2 + self.factors.l1 * self._sum_codes) / self._n_vectors,
            "explained_variance": 1 - self._unexplained / variance if variance > 0 else np.nan,
            "n_active": self._n_active / self._n_vectors,
        }

    def histogram(self, layer: int) -> dict[str, Any]:
        """Columns of the histogram of codes for this layer; bins without codes are left out."""
        factor, bins = self.bin_counts.nonzero(as_tuple=True)
        return {
            "factor": factor.numpy(),
            "layer": np.full(len(factor), layer),
            "code_from": 2.0 ** ((bins.numpy() + LOWEST_BIN) / BINS_PER_OCTAVE),
            "n": self.bin_counts[factor, bins].numpy(),
        }

    def context_table(self, layer: int, tokenizer: Any) -> dict[str, Any]:
        """Columns of the contexts table for this layer; empty if no factor is active."""
        exists = self.context_codes > 0
        if not exists.any():
            return {}
        factor, rank = (index.numpy() for index in exists.nonzero(as_tuple=True))
        cells = self.contexts[exists].numpy()
        example, pos, tokens = cells[:, 0], cells[:, 1], cells[:, 2:]
        target = tokens[:, self.window].astype(np.int64)
        return {
            "factor": factor,
            "layer": np.full(len(factor), layer),
            "rank": rank,
            "code": self.context_codes[exists].numpy(),
            "example": example,
            "pos": pos,
            "token_index": target,
            "before": _decode(tokenizer, tokens[:, : self.window]),
            "after": _decode_after(tokenizer, target, tokens[:, self.window :]),
        }


def token_windows(batch: TokenBatch, window: int) -> Int[Tensor, "n width"]:
    """For each token of the texts, the tokens around it; `NO_TOKEN` beyond the ends of its text."""
    tokens = torch.where(batch.mask, batch.tokens, NO_TOKEN)
    padded = torch.nn.functional.pad(tokens, (window, window), value=NO_TOKEN)
    return padded.unfold(1, 2 * window + 1, 1)[batch.mask]


def _decode(tokenizer: Any, rows: np.ndarray) -> list[str]:
    """The text of each row of tokens."""
    # A position is usually a context of many factors; equal rows are decoded once.
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    token_lists = [row[row != NO_TOKEN].tolist() for row in distinct]
    texts = tokenizer.batch_decode(token_lists, clean_up_tokenization_spaces=False, skip_special_tokens=False)
    return [texts[i] for i in inverse.ravel().tolist()]


def _decode_after(tokenizer: Any, target: np.ndarray, rows: np.ndarray) -> list[str]:
    """The text after each target; rows begin with the target.

    The text is decoded together with the target, because some tokenizers omit the space before the first token.
    """
    with_target, target_text = _decode(tokenizer, rows), _decode(tokenizer, target[:, None])
    without_target = _decode(tokenizer, rows[:, 1:])
    return [
        text[len(token) :] if text.startswith(token) else rest
        for text, token, rest in zip(with_target, target_text, without_target)
    ]
