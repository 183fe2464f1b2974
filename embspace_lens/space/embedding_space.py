"""The space of vocabulary items: residual vectors as scores over tokens, and back."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tokens import top_pairs, top_tokens
from ..weights.effective import Weights
from .embeddings import NO_NORM, Embedding, as_tensor, full

SPACES = ("circuit", "unembed", "embed")


INVERSES = ("transpose", "pinv")


SCORES = ("dot", "centered", "cosine")


SIDES = ("read", "write")


Side = Literal["read", "write"]


class EmbeddingSpace:
    r"""One model's residual stream as scores over its tokens.

    What listens is read through E', what writes through E:

    .. math:: s_\mathrm{read}(w) = w E', \qquad s_\mathrm{write}(w) = w E

    Args:
        weights: The model's effective weights.
        space: `"circuit"` reads W_E and writes W_U; `"unembed"` is W_U for both, the paper's single E; `"embed"` W_E for both.
        inverse: Which right inverse E' is: `"transpose"`, Eᵀ, or `"pinv"`, the exact one.
        score: `"dot"`, `"centered"` (minus the mean embedding) or `"cosine"` (between the centred embedding and the vector as it meets it,
            behind the inverse); pairs of tokens under `"cosine"` are bilinear forms of normalised centred embeddings.
        ids: The tokens that are read, in ascending order; None for all.

    Raises:
        EmbspaceError: If an option is unknown, or an embedding holds NaN.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §3. https://arxiv.org/abs/2209.02535
    """

    def __init__(
        self,
        weights: Weights,
        *,
        space: str = "circuit",
        inverse: str = "transpose",
        score: str = "dot",
        ids: Int[Tensor, " n_tokens"] | None = None,
    ) -> None:
        for name, value, options in (
            ("space", space, SPACES),
            ("inverse", inverse, INVERSES),
            ("score", score, SCORES),
        ):
            if value not in options:
                raise errors.choice(name, value, options)
        self.kind, self.inverse, self.score, self.ids = space, inverse, score, ids
        self.name, self.d_model, self.d_vocab = weights.name, weights.d_model, weights.d_vocab
        unembed, norm = weights.unembedding
        embedding = Embedding(weights.W_E, NO_NORM, ids, score)
        unembedding = Embedding(unembed.T, norm, ids, score, embedding.device)
        self.read = unembedding if space == "unembed" else embedding
        self.write = embedding if space == "embed" else unembedding
        if len(self.read) != len(self.write):
            raise errors.unsupported(
                f"{self.name} in this space",
                f"W_E has {len(self.read)} tokens and W_U {len(self.write)}; choose tokens of both",
            )
        for side, used in ((self.read, "W_E" if self.read is embedding else "W_U"), (self.write, "W_U")):
            side.check(f"{used} of {self.name}")

    @property
    def n_tokens(self) -> int:
        """How many tokens are read."""
        return len(self.write)

    def rows(self, side: str) -> Embedding:
        """The embeddings of one side."""
        if side not in SIDES:
            raise errors.choice("side", side, SIDES)
        return self.read if side == "read" else self.write

    def vectors(self, x: Float[Tensor, "n d_model"], side: str) -> Float[Tensor, "n d_model"]:
        """Residual vectors as they meet the embeddings' rows: through the inverse, and of length 1 for a cosine."""
        rows = self.rows(side)
        if x.shape[-1] != self.d_model:
            raise errors.bad_width(x.shape[-1], self.name, self.d_model)
        if not torch.isfinite(x).all():
            raise errors.not_finite("the vectors given")
        x = x.to(device=rows.device, dtype=torch.promote_types(rows.dtype, full(x.dtype)))
        x = self._inverted(x, side)
        return torch.nn.functional.normalize(x, dim=-1) if self.score == "cosine" else x

    def _inverted(self, x: Tensor, side: str) -> Tensor:
        return x @ self.read.inverse_gram.to(x) if self.inverse == "pinv" and side == "read" else x

    def project(self, x: Any, side: str = "write") -> Float[Tensor, "... d_vocab"]:
        """Scores of every token for residual vectors; NaN for tokens that the lens does not read."""
        x = as_tensor(x, "vectors")
        vectors = self.vectors(x.reshape(-1, x.shape[-1]), side)
        scores = self.rows(side).scores(vectors)
        if self.ids is not None:
            everywhere = scores.new_full((len(scores), self.d_vocab), torch.nan)
            everywhere[:, self.ids.to(scores.device)] = scores
            scores = everywhere
        return scores.reshape(*x.shape[:-1], self.d_vocab)

    def embed(self, scores: Any, side: str = "write") -> Float[Tensor, "... d_model"]:
        """Residual vectors from scores over tokens, through the chosen inverse; tokens that are not read count for nothing.

        With `inverse="pinv"`, `embed(project(x)) == x` for x in the span of the embeddings: all x behind an RMSNorm,
        centred x behind a LayerNorm.
        """
        rows, scores = self.rows(side), as_tensor(scores, "scores")
        if scores.shape[-1] != self.d_vocab:
            raise errors.EmbspaceError(
                f"scores have {scores.shape[-1]} columns, but {self.name} has {self.d_vocab} tokens."
            )
        flat = scores.reshape(-1, self.d_vocab).to(
            device=rows.device, dtype=torch.promote_types(rows.dtype, full(scores.dtype))
        )
        flat = flat if self.ids is None else flat[:, self.ids.to(flat.device)]
        vectors = rows.combine(flat)
        if self.inverse == "pinv" and side == "write":
            vectors = vectors @ rows.inverse_gram.to(vectors)
        return vectors.reshape(*scores.shape[:-1], self.d_model)

    def top(
        self,
        x: Float[Tensor, "n d_model"],
        side: str,
        k: int,
        *,
        largest: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The best k tokens of every vector: scores and token ids. `progress` is called with (tokens done, tokens in all)."""
        scores, index = top_tokens(self.vectors(x, side), self.rows(side), k, largest=largest, progress=progress)
        return scores.cpu(), self._token_ids(index)

    def top_pairs(
        self,
        left: Float[Tensor, "d_model rank"],
        right: Float[Tensor, "d_model rank"],
        sides: tuple[str, str],
        k: int,
        *,
        largest: bool = True,
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The best k pairs of tokens of the bilinear form `left rightᵀ`: scores, left token ids, right token ids."""
        a, b = self.rows(sides[0]), self.rows(sides[1])
        left = self._inverted(left.to(a.device, a.dtype).T, sides[0]).T
        right = self._inverted(right.to(b.device, b.dtype).T, sides[1]).T
        scores, i, j = top_pairs(a, left, right, b, k, largest=largest)
        return scores.cpu(), self._token_ids(i), self._token_ids(j)

    def of_token(self, token: int, side: str) -> Float[Tensor, " d_model"]:
        """The row of one token: its product with `vectors(x, side)` is the token's score for x."""
        rows = self.rows(side)
        place = torch.tensor([token])
        if self.ids is not None:
            place = torch.nonzero(self.ids == token)[:, 0]
            if len(place) == 0:
                raise errors.EmbspaceError(
                    f"token {token} is not among the {self.n_tokens} tokens that this lens reads."
                )
        return rows[place.to(rows.device)][0]

    def _token_ids(self, index: Tensor) -> Tensor:
        index = index.cpu()
        return index if self.ids is None else self.ids[index]
