"""The embedding space: residual vectors as scores over tokens, and back."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .. import errors
from ..search.pairs import top_pairs
from ..search.tiles import working_dtype
from ..search.tokens import top_tokens
from ..tables.checks import check_choice
from ..weights.effective import Side, Weights
from .embeddings import NO_NORM, Embedding, Score, as_tensor

Space = Literal["circuit", "unembed", "embed"]
Inverse = Literal["transpose", "pinv"]
SPACES: tuple[Space, ...] = ("circuit", "unembed", "embed")
INVERSES: tuple[Inverse, ...] = ("transpose", "pinv")
SCORES: tuple[Score, ...] = ("dot", "centered", "cosine")
SIDES: tuple[Side, ...] = ("read", "write")


class EmbeddingSpace:
    r"""Residual vectors of one model as scores over its tokens.

    Reading directions are projected through E', writing directions through E:

    .. math:: s_\mathrm{read}(w) = w E', \qquad s_\mathrm{write}(w) = w E

    Args:
        weights: The model's effective weights.
        space: `"circuit"` reads through W_E and writes through W_U; `"unembed"` uses W_U for both, the paper's single E;
            `"embed"` uses W_E for both.
        inverse: The right inverse E': `"transpose"` (Eᵀ) or `"pinv"` (the pseudo-inverse, which is exact).
        score: `"dot"`, `"centered"` (the mean embedding is subtracted) or `"cosine"` (between the centred embedding and the
            vector, after the inverse). The `"cosine"` score of a pair is the bilinear form of normalised centred embeddings; where a
            model normalises queries and keys, it is the cosine between them.
        token_ids: The tokens to read, in ascending order; None for all.
        mask: The name of this selection, for messages and captions.

    Attributes:
        kind: The option `space`.
        inverse: The option `inverse`.
        score: The option `score`.
        token_ids: The ids of the tokens that are read, ascending; always a tensor.
        mask: The name of this selection.
        name: The model's name.
        d_model: Width of the residual stream.
        d_vocab: How many tokens the model has.
        read: The embeddings through which reading directions are scored.
        write: The embeddings through which writing directions are scored.

    Raises:
        EmbspaceError: If an option is unknown, or an embedding holds NaN.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §3. https://arxiv.org/abs/2209.02535
    """

    def __init__(
        self,
        weights: Weights,
        *,
        space: Space = "circuit",
        inverse: Inverse = "transpose",
        score: Score = "dot",
        token_ids: Int[Tensor, " n_tokens"] | None = None,
        mask: str = "all",
    ) -> None:
        self.kind: Space = check_choice("space", space, SPACES)
        self.inverse: Inverse = check_choice("inverse", inverse, INVERSES)
        self.score: Score = check_choice("score", score, SCORES)
        self.mask = mask
        self.name, self.d_model, self.d_vocab = weights.name, weights.d_model, weights.d_vocab
        self.token_ids: Int[Tensor, " n_tokens"] = torch.arange(self.d_vocab) if token_ids is None else token_ids.cpu()
        stored, norm = weights.unembedding
        embedding = Embedding(weights.W_E, NO_NORM, token_ids, self.score)
        unembedding = Embedding(stored.T, norm, token_ids, self.score, embedding.device)
        self.read = unembedding if self.kind == "unembed" else embedding
        self.write = embedding if self.kind == "embed" else unembedding
        if len(self.read) != len(self.write):
            raise errors.different_token_counts(self.name, len(self.read), len(self.write))
        self.read.check(f"{'W_E' if self.read is embedding else 'W_U'} of {self.name}")
        self.write.check(f"{'W_E' if self.write is embedding else 'W_U'} of {self.name}")

    @property
    def n_tokens(self) -> int:
        """How many tokens are read."""
        return len(self.token_ids)

    def rows(self, side: Side) -> Embedding:
        """The embeddings of one side."""
        return self.read if check_choice("side", side, SIDES) == "read" else self.write

    def vectors(self, x: Float[Tensor, "*n d_model"], side: Side) -> Float[Tensor, "*n d_model"]:
        """Map vectors so that their inner products with that side's rows are the scores (inverse, normalisation).

        Raises:
            EmbspaceError: If the width is not d_model, or an entry is NaN or infinite.
        """
        rows = self.rows(side)
        if x.shape[-1] != self.d_model:
            raise errors.bad_width(x.shape[-1], self.name, self.d_model)
        if not torch.isfinite(x).all():
            raise errors.not_finite("the vectors given")
        x = x.to(device=rows.device, dtype=torch.promote_types(rows.dtype, working_dtype(x.dtype)))
        x = self.inverted(x, side)
        return normalize(x, dim=-1) if self.score == "cosine" else x

    def inverted(self, x: Float[Tensor, "*n d_model"], side: Side) -> Float[Tensor, "*n d_model"]:
        """Vectors times (EᵀE)⁻¹ if that side is read through the pseudo-inverse; otherwise unchanged."""
        return x @ self.read.inverse_gram.to(x) if self.inverse == "pinv" and side == "read" else x

    def project(self, x: Any, side: Side = "write") -> Float[Tensor, "*n d_vocab"]:
        """Score every token for residual vectors; NaN for tokens that are not read. See `EmbeddingLens.project`."""
        x = as_tensor(x, "vectors")
        vectors = self.vectors(x.reshape(-1, x.shape[-1]), side)
        scores = self.rows(side).scores(vectors)
        if self.n_tokens < self.d_vocab:
            all_scores = scores.new_full((len(scores), self.d_vocab), torch.nan)
            all_scores[:, self.token_ids.to(scores.device)] = scores
            scores = all_scores
        return scores.reshape(*x.shape[:-1], self.d_vocab)

    def embed(self, scores: Any, side: Side = "write") -> Float[Tensor, "*n d_model"]:
        """Map scores over tokens back to residual vectors, through the chosen inverse; scores of other tokens are ignored.

        With `inverse="pinv"`, `embed(project(x)) == x` for every x in the span of the embeddings. With an RMSNorm this is every
        x, with a LayerNorm every centred x.
        """
        rows, scores = self.rows(side), as_tensor(scores, "scores")
        if scores.shape[-1] != self.d_vocab:
            raise errors.bad_score_count(scores.shape[-1], self.name, self.d_vocab)
        dtype = torch.promote_types(rows.dtype, working_dtype(scores.dtype))
        flat = scores.reshape(-1, self.d_vocab).to(device=rows.device, dtype=dtype)
        if self.n_tokens < self.d_vocab:
            flat = flat[:, self.token_ids.to(flat.device)]
        vectors = rows.combine(flat)
        if self.inverse == "pinv" and side == "write":
            vectors = vectors @ rows.inverse_gram.to(vectors)
        return vectors.reshape(*scores.shape[:-1], self.d_model)

    def top(
        self,
        x: Float[Tensor, "n d_model"],
        side: Side,
        k: int,
        *,
        largest: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The best k tokens of each vector: scores and token ids. `progress` is called with (tokens done, all tokens)."""
        scores, index = top_tokens(self.vectors(x, side), self.rows(side), k, largest=largest, progress=progress)
        return scores.cpu(), self.token_ids[index.cpu()]

    def top_pairs(
        self,
        left: Float[Tensor, "d_model rank"],
        right: Float[Tensor, "d_model rank"],
        sides: tuple[Side, Side],
        k: int,
        *,
        largest: bool = True,
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The best k pairs of tokens of the bilinear form `left rightᵀ`: scores, left token ids, right token ids."""
        a, b = self.rows(sides[0]), self.rows(sides[1])
        left = self.inverted(left.to(a.device, a.dtype).T, sides[0]).T
        right = self.inverted(right.to(b.device, b.dtype).T, sides[1]).T
        scores, i, j = top_pairs(a, left, right, b, k, largest=largest)
        return scores.cpu(), self.token_ids[i.cpu()], self.token_ids[j.cpu()]

    def embedding_of(self, token: int, side: Side) -> Float[Tensor, " d_model"]:
        """The row of one token: its inner product with `vectors(x, side)` is the score of the token for x.

        Raises:
            EmbspaceError: If the token is not read.
        """
        position = torch.nonzero(self.token_ids == token)[:, 0]
        if len(position) == 0:
            raise errors.token_not_read(token, self.n_tokens)
        rows = self.rows(side)
        return rows[position.to(rows.device)][0]
