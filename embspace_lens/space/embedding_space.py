"""The space of vocabulary items: residual vectors as scores over tokens, and back."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tiles import float64
from ..search.tokens import top_pairs, top_tokens
from ..weights.effective import Weights
from ..weights.host import Norm

SPACES = ("circuit", "unembed", "embed")
INVERSES = ("transpose", "pinv")
SCORES = ("dot", "centered", "cosine")
SIDES = ("read", "write")
Side = Literal["read", "write"]
NO_NORM = Norm()
TILE = 8192  # rows of an embedding made at a time, so that no copy of it is ever whole


def full(dtype: torch.dtype) -> torch.dtype:
    """The precision in which weights of this dtype are multiplied."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_tensor(values: Any, what: str) -> Tensor:
    """A float tensor out of a tensor, an array, or a sequence of either.

    Raises:
        EmbspaceError: If it does not become one.
    """
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
            values = torch.stack(list(values))
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.EmbspaceError(f"{what} cannot be made a tensor: {reason}") from reason
    return tensor if tensor.is_floating_point() else tensor.float()


class Embedding:
    """Token embeddings as the lens scores them, made by the tile: `rows[ids]`, as a tensor's.

    A row is the stored one times the norm's gain, centred over d_model where that norm is a LayerNorm; then, by the score,
    less the mean row and divided by its length. The stored matrix is never copied.
    """

    def __init__(
        self,
        matrix: Tensor,
        norm: Norm = NO_NORM,
        ids: Tensor | None = None,
        score: str = "dot",
        device: torch.device | None = None,
    ) -> None:
        self._matrix = matrix
        self._norm = norm
        self._score = score
        self.ids = ids
        self.device = matrix.device if device is None else device  # where rows are wanted; models may be spread
        self.dtype = full(matrix.dtype)
        self.shape = (len(matrix) if ids is None else len(ids), matrix.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def _folded(self, index: slice | Tensor) -> Tensor:
        if self.ids is not None:
            index = self.ids.to(self.device)[index]
        if isinstance(index, Tensor):  # several times as fast as indexing by a tensor
            rows = self._matrix.index_select(0, index.to(self._matrix.device))
        else:
            rows = self._matrix[index]
        rows = rows.to(device=self.device, dtype=self.dtype)
        if self._norm.gain is not None:
            rows = rows * self._norm.gain.to(rows)
        return rows - rows.mean(dim=1, keepdim=True) if self._norm.centres else rows

    @cached_property
    def _mean(self) -> Tensor:
        total = torch.stack([float64(self._folded(tile)).sum(dim=0) for tile in self._tiles()]).sum(dim=0)
        return (total / len(self)).to(device=self.device, dtype=self.dtype)

    def __getitem__(self, index: slice | Tensor) -> Float[Tensor, "n d_model"]:
        rows = self._folded(index)
        if self._score == "dot":
            return rows
        rows = rows - self._mean
        return rows if self._score == "centered" else torch.nn.functional.normalize(rows, dim=1)

    def tiles(self) -> Iterator[Tensor]:
        """All rows, a tile at a time."""
        return (self[tile] for tile in self._tiles())

    def _tiles(self) -> Sequence[slice]:
        return [slice(start, start + TILE) for start in range(0, len(self), TILE)]

    def scores(self, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_tokens"]:
        """Every row's inner product with every vector."""
        return torch.cat([vectors @ self[tile].T for tile in self._tiles()], dim=1)

    def combine(self, coefficients: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n d_model"]:
        """Sums of rows, one for each row of coefficients."""
        return sum((coefficients[:, tile] @ self[tile] for tile in self._tiles()), coefficients.new_zeros(()))

    @cached_property
    def gram(self) -> Float[Tensor, "d_model d_model"]:
        """Second moment of the rows, EᵀE, in float64 (on the CPU where the device has none)."""
        total = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
        for tile in self._tiles():
            rows = float64(self[tile])
            total = total.to(rows.device) + rows.T @ rows
        return total

    @cached_property
    def inverse_gram(self) -> Float[Tensor, "d_model d_model"]:
        """Pseudo-inverse of `gram`; directions below 1e-5 of E's largest singular value are rounding, and count as absent.

        A LayerNorm's centring leaves one such direction: all ones, which no token reads.
        """
        return torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10).to(device=self.device, dtype=self.dtype)

    def check(self, name: str) -> None:
        """Refuse NaN and infinite entries."""
        for start in range(0, len(self._matrix), TILE):
            if not torch.isfinite(self._matrix[start : start + TILE]).all():
                raise errors.not_finite(name)


def unembedding_rows(weights: Weights) -> Embedding:
    """W_Uᵀ behind the final norm, made by the tile."""
    stored, norm = weights.unembedding
    return Embedding(stored.T, norm)


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
