"""The embedding space: residual vectors as scores over tokens, and back."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .. import errors
from ..search.pairs import top_pairs
from ..search.tiles import Rows, float64, working_dtype
from ..search.tokens import top_tokens
from ..tables.checks import check_choice
from ..weights.effective import Weights
from ..weights.parameter_names import Side
from .embeddings import NO_NORM, Embedding, Score, as_tensor
from .feature_rows import FeatureDictionary

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
            vector, after the inverse). The `"cosine"` score of a pair is the bilinear form of normalised centred embeddings,
            divided by the largest singular value of the form (after the inverse), so that it is between −1 and 1. Where a model
            normalises queries and keys, it is the cosine between them.
        token_ids: The tokens to read, in ascending order; None for all.
        mask: The name of this selection, for messages and captions.

    Attributes:
        kind: The option `space`.
        inverse: The option `inverse`.
        score: The option `score`.
        mask: The name of this selection.
        name: The model's name.
        d_model: Width of the residual stream.
        d_vocab: How many tokens the model has.

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
        self._token_ids = torch.arange(self.d_vocab) if token_ids is None else token_ids.cpu()
        self._weights = weights
        stored, norm = weights.unembedding
        self._embedding = Embedding(weights.W_E, NO_NORM, token_ids, self.score)
        self._unembedding = Embedding(stored.T, norm, token_ids, self.score, self._embedding.device)
        if len(self.read) != len(self.write):
            raise errors.different_token_counts(self.name, len(self.read), len(self.write))
        self.read.check(f"{'W_U' if self.kind == 'unembed' else 'W_E'} of {self.name}")
        self.write.check(f"{'W_E' if self.kind == 'embed' else 'W_U'} of {self.name}")

    @property
    def read(self) -> Embedding:
        """The embeddings through which reading directions are scored, as they are now."""
        return self._current_unembedding() if self.kind == "unembed" else self._current_embedding()

    @property
    def write(self) -> Embedding:
        """The embeddings through which writing directions are scored, as they are now."""
        return self._current_embedding() if self.kind == "embed" else self._current_unembedding()

    def _current_embedding(self) -> Embedding:
        self._embedding.update(self._weights.W_E, NO_NORM)
        return self._embedding

    def _current_unembedding(self) -> Embedding:
        stored, norm = self._weights.unembedding
        self._unembedding.update(stored.T, norm)
        return self._unembedding

    @property
    def token_ids(self) -> Int[Tensor, " n_tokens"]:
        """The ids of the tokens that are read, ascending; a `FeatureSpace` raises an error."""
        return self._token_ids

    @property
    def n_tokens(self) -> int:
        """How many tokens are read."""
        return len(self.token_ids)

    def ids(self, side: Side) -> Int[Tensor, " n"]:
        """The ids of the rows of one side, ascending: of tokens or, in a `FeatureSpace`, of features."""
        return self.token_ids

    def size(self, side: Side) -> int:
        """How many tokens or features one side has, read or not."""
        return self.d_vocab

    def features(self, side: Side) -> FeatureDictionary | None:
        """The dictionary whose features are the rows of one side; None for tokens."""
        return None

    @property
    def has_features(self) -> bool:
        """Whether any side is a dictionary of features."""
        return any(self.features(side) is not None for side in SIDES)

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

    def _form(
        self,
        left: Float[Tensor, "d_model rank"],
        right: Float[Tensor, "d_model rank"],
        sides: tuple[Side, Side],
        rows: tuple[Embedding, Embedding],
    ) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_model rank"]]:
        """The factors of a bilinear form that is applied to the rows: after the inverse and, for cosines, the normalisation."""
        factors = []
        for factor, side, embedding in zip((left, right), sides, rows, strict=True):
            factor = factor.to(embedding.device, embedding.dtype)
            is_inverted = self.inverse == "pinv" and side == "read"
            factors.append((factor.T @ embedding.inverse_gram.to(factor)).T if is_inverted else factor)
        left, right = factors
        norm = spectral_norm(left, right) if self.score == "cosine" else 1.0
        return (left / norm if norm else left), right

    def project(self, x: Any, side: Side = "write") -> Float[Tensor, "*n d_vocab"]:
        """Score every token for residual vectors; NaN for tokens that are not read. See `EmbeddingLens.project`."""
        x = as_tensor(x, "vectors")
        vectors = self.vectors(x.reshape(-1, x.shape[-1]), side)
        scores = self.rows(side).scores(vectors)
        ids, size = self.ids(side), self.size(side)
        if len(ids) < size:
            all_scores = scores.new_full((len(scores), size), torch.nan)
            all_scores[:, ids.to(scores.device)] = scores
            scores = all_scores
        return scores.reshape(*x.shape[:-1], size)

    def embed(self, scores: Any, side: Side = "write") -> Float[Tensor, "*n d_model"]:
        """Map scores over tokens back to residual vectors, through the chosen inverse; scores of other tokens are ignored.

        With `inverse="pinv"`, `embed(project(x)) == x` for every x in the span of the embeddings. With an RMSNorm this is every
        x, with a LayerNorm every centred x.
        """
        rows, scores = self.rows(side), as_tensor(scores, "scores")
        ids, size = self.ids(side), self.size(side)
        if scores.shape[-1] != size:
            raise errors.bad_score_count(scores.shape[-1], self.name, size)
        dtype = torch.promote_types(rows.dtype, working_dtype(scores.dtype))
        flat = scores.reshape(-1, size).to(device=rows.device, dtype=dtype)
        if len(ids) < size:
            flat = flat[:, ids.to(flat.device)]
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
        return scores.cpu(), self.ids(side)[index.cpu()]

    def top_pairs(
        self,
        left: Float[Tensor, "d_model rank"],
        right: Float[Tensor, "d_model rank"],
        sides: tuple[Side, Side],
        k: int,
        *,
        largest: bool = True,
        excluded: Int[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """The best k pairs of tokens of the bilinear form `left rightᵀ`: scores, left token ids, right token ids.

        Args:
            left: The first factor of the form.
            right: The second factor.
            sides: The embeddings to which each factor is applied.
            k: How many pairs to return.
            largest: The highest scores; with False, the lowest.
            excluded: Pairs to leave out, as made by `same_tokens`.
        """
        a, b = self.rows(sides[0]), self.rows(sides[1])
        left, right = self._form(left, right, sides, (a, b))
        return self.best_pairs(a, left, right, b, sides, k, largest=largest, excluded=excluded)

    def best_pairs(
        self,
        A: Rows,
        left: Float[Tensor, "d_a rank"],
        right: Float[Tensor, "d_b rank"],
        B: Rows,
        sides: tuple[Side, Side],
        k: int,
        *,
        largest: bool = True,
        excluded: Int[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
        """As `top_pairs`, for the product A left rightᵀ Bᵀ of any rows, one per token that is read on that side."""
        n_excluded = 0 if excluded is None else len(excluded)
        n_searched = k
        while True:
            scores, i, j = top_pairs(A, left, right, B, n_searched, largest=largest)
            if excluded is not None:
                is_kept = ~torch.isin(i * B.shape[0] + j, excluded.to(i.device))
                scores, i, j = scores[is_kept], i[is_kept], j[is_kept]
            if len(scores) >= k:
                break
            n_searched = min(4 * n_searched, k + n_excluded)  # of k + n_excluded pairs, k are not excluded
        scores, i, j = scores[:k].cpu(), i[:k].cpu(), j[:k].cpu()
        # Rounding may put a cosine above 1 by one unit in the last place.
        scores = scores.clamp(-1, 1) if self.score == "cosine" else scores
        return scores, self.ids(sides[0])[i], self.ids(sides[1])[j]

    def top_partners(
        self,
        forms: Iterable[tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_model rank"]]],
        sides: tuple[Side, Side],
        row: Float[Tensor, " d_model"],
        *,
        largest: bool = True,
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """For each bilinear form, the best left token if the right side is a given row: scores and token ids.

        Args:
            forms: The factors of each form.
            sides: The embeddings to which the factors are applied.
            row: A row of `rows(sides[1])`, or a combination of rows.
            largest: The highest score; with False, the lowest.
        """
        rows = self.rows(sides[0]), self.rows(sides[1])
        prepared = (self._form(left, right, sides, rows) for left, right in forms)
        x = torch.stack([left @ (right.T @ row.to(right)) for left, right in prepared])
        scores, index = top_tokens(x, rows[0], 1, largest=largest)
        scores = scores[:, 0].clamp(-1, 1) if self.score == "cosine" else scores[:, 0]
        return scores.cpu(), self.ids(sides[0])[index[:, 0].cpu()]

    def embedding_of(self, tokens: int | Sequence[int], side: Side) -> Float[Tensor, " d_model"]:
        """The row of a token, or the mean of several rows: its inner product with `vectors(x, side)` is the (mean) score for x.

        Raises:
            EmbspaceError: If a token is not read.
        """
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        ids = self.ids(side)
        positions = torch.searchsorted(ids, torch.tensor(tokens)).clamp(max=len(ids) - 1)
        for token, is_read in zip(tokens, ids[positions] == torch.tensor(tokens), strict=True):
            if not is_read:
                raise errors.token_not_read(token, len(ids))
        rows = self.rows(side)
        return rows[positions.to(rows.device)].mean(dim=0)


def spectral_norm(left: Float[Tensor, "n rank"], right: Float[Tensor, "m rank"]) -> float:
    """The largest singular value of `left rightᵀ`."""
    triangles = [torch.linalg.qr(float64(factor), mode="r").R.cpu() for factor in (left, right)]
    return torch.linalg.matrix_norm(triangles[0] @ triangles[1].T, 2).item()
