r"""The best k rows of an embedding for each vector, exactly, in chunks that fit memory.

1. *Screening*: products in low precision select candidates. A row whose score is below the k-th best by more than the proven
   rounding error cannot be in the result. bfloat16 screens first if the device is fast at it, then float32.
2. *Rescoring*: the candidates' scores are computed in float64 from the given numbers and sorted, equal scores by index.

The result equals that of brute force in float64 and does not depend on chunk sizes.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tables.checks import check_k
from .bounds import check_finite, norm_bound, plain_arithmetic
from .duplicates import distinct_rows, expand_pairs
from .screening import Screen, Tile
from .tiles import Progress, Rows, Subset, chunks, float64, row_bytes, signed, take, upcast

MAX_WIDTH = 2048  # candidates of each vector; if these do not determine the result, all rows are scored in float64


def top_tokens(
    vectors: Float[Tensor, "n d_model"],
    embedding: Rows,
    k: int,
    *,
    largest: bool = True,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    r"""Find the rows of an embedding that have the largest inner product with each vector.

    .. math:: \operatorname{top}_k \lbrace x_i \cdot e_j : j < d_\mathrm{vocab} \rbrace

    Args:
        vectors: One query per row.
        embedding: The rows to choose from, made chunk by chunk; every row is made once, and candidate rows twice.
        k: How many rows to return for each vector.
        largest: The largest products; with False, the most negative.
        progress: Called with (rows done, all rows) after each chunk.

    Returns:
        Scores (float32) and row numbers (int64), one row per vector, best first, equal scores by row number.

    Raises:
        EmbspaceError: If k is less than one or more than the number of rows, or a row holds NaN or infinity.
    """
    n_rows = embedding.shape[0]
    k = check_k(k, n_rows, "rows")
    with plain_arithmetic(vectors.device):
        x = upcast(vectors) if largest else -upcast(vectors)
        score = torch.zeros(len(x), k, dtype=torch.float32, device=x.device)
        index = torch.arange(k, device=x.device).repeat(len(x), 1)
        todo = x.any(dim=1).nonzero()[:, 0]  # every row ties for a zero vector: the first k are the answer
        width = k + k // 8 + 4
        while len(todo) and (width <= max(MAX_WIDTH, 2 * k) or width >= n_rows):
            best, rows, is_certain = _screen_and_rescore(x[todo], embedding, k, min(width, n_rows), progress)
            certain = todo[is_certain]
            score[certain], index[certain] = best[is_certain], rows[is_certain]
            todo, width, progress = todo[~is_certain], width * 8, None
        if len(todo):
            best, index[todo] = _search_exhaustively(x[todo], embedding, k)
            score[todo] = best.to(score)
        return signed(score, largest), index


def _screen_and_rescore(
    x: Float[Tensor, "n d_model"], embedding: Rows, k: int, width: int, progress: Progress | None
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Bool[Tensor, " n"]]:
    """The best k rows of each vector among its best `width` in low precision: scores, rows, and whether they are certain.

    The mean row is subtracted before screening: it changes all scores of a vector equally and leaves smaller numbers to round.
    The screened score of a row that is no candidate is at most that of the last candidate, so its true score is at most that
    plus the rounding error. If this is below the k-th best score, the row is not in the result.
    """
    n, n_rows = len(x), embedding.shape[0]
    value = x.new_full((n, width), -math.inf)
    index = torch.zeros(n, width, dtype=torch.int64, device=x.device)
    screen = Screen(x, k, width)
    center, max_norm = x.new_zeros(x.shape[1]), 0.0
    for chunk in chunks(n_rows, row_bytes(embedding)):
        rows = take(embedding, chunk).to(x.dtype)
        center = rows.mean(0) if chunk.start == 0 else center
        tile = Tile(rows - center, screen.dtype)
        max_norm = max(max_norm, check_finite(tile.max_norm))
        # Half the budget for the scores: the float32 scores of a failed batch take memory in addition to those in bfloat16.
        for batch in chunks(n, tile.low_precision.element_size() * len(tile.rows), scale=0.5):
            floor = float64(value[batch, k - 1]) - screen.error_bound(max_norm)[batch]
            tile_value, tile_index = screen.top_rows(batch, tile, floor)
            value[batch], order = torch.cat([value[batch], tile_value], 1).topk(width)
            index[batch] = torch.cat([index[batch], tile_index + chunk.start], 1).gather(1, order)
        if progress:
            progress(chunk.stop, n_rows)
    # A 32nd of the budget stays in the processor's cache.
    batches = chunks(n, row_bytes(embedding, copies=width), scale=1 / 32)
    exact = torch.cat([_exact_scores(x[batch], embedding, index[batch]) for batch in batches])
    value, index = float64(value), index.to(exact.device)
    exact[value.isneginf()] = -math.inf  # slots without a candidate
    last = value[:, -1] + (float64(x) * float64(center)).sum(1)
    index, by_index = index.sort(dim=1)
    exact, order = exact.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    error = screen.error_bound(max_norm) + screen.norm * (1e-11 * check_finite(norm_bound(center[None]).item()))
    is_certain = (exact[:, k - 1] > last + error) | (width == n_rows)
    best, rows = exact[:, :k].to(x.device, torch.float32), index.gather(1, order[:, :k]).to(x.device)
    return best, rows, is_certain.to(x.device)


def _exact_scores(x: Float[Tensor, "n d_model"], embedding: Rows, index: Int[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """Products of each vector with its rows in float64; not by BLAS, whose result may depend on a row's position."""
    rows = float64(take(embedding, index.flatten())).view(*index.shape, -1)
    return rows.mul_(float64(x)[:, None]).sum(-1)


def _search_exhaustively(
    x: Float[Tensor, "n d_model"], embedding: Rows, k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The best k rows of vectors with many nearly equal scores: every distinct row in float64, one vector at a time."""
    first, group = distinct_rows(embedding)
    distinct = Subset(embedding, first)
    n_best = min(k, len(first))
    best = x.new_empty(len(x), 0, dtype=torch.float64)
    index = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for chunk in chunks(len(first), row_bytes(embedding, copies=2)):
        rows = float64(take(distinct, chunk))
        score = torch.cat([best, torch.stack([(rows * vector).sum(-1) for vector in float64(x)])], 1)
        row = torch.arange(chunk.start, chunk.stop, device=x.device).expand(len(x), -1)
        best, order = score.sort(dim=1, descending=True, stable=True)
        best, index = best[:, :n_best], torch.cat([index, row], 1).gather(1, order[:, :n_best])
    zero = torch.zeros(1, dtype=torch.int64, device=x.device)  # each vector is passed as a matrix of one row
    expanded = [expand_pairs(b, zero.expand(n_best), i, zero, group, k) for b, i in zip(best, index, strict=True)]
    return torch.stack([score for score, _ in expanded]), torch.stack([rows for _, rows in expanded])
