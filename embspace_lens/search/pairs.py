r"""The best k entries of a low-rank product A·L·Rᵀ·Bᵀ, exactly, in tiles that fit memory.

As in `tokens`: products in low precision, with proven error bounds, select candidates; these are rescored in float64 and sorted,
equal scores by index. Rows are visited in the order of decreasing norm, so that the search ends as soon as the product of
two norms is below the k-th best score.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tables.checks import check_k
from . import bounds
from .bounds import plain_arithmetic, rounding_factor
from .candidates import CandidatePairs, TooManyTies, entries_at_least, score_margin
from .coordinates import SortedCoordinates, balanced_bases, exact_scores
from .duplicates import best_by_key, distinct_rows, expand_pairs
from .tiles import Rows, Subset, chunk_rows, signed, upcast

# Rows × columns of one tile. The norms that end the search are compared tile by tile, so tiles are small: 1 Mi scores, which
# stay in the processor's cache. Twice as many rows or columns are slower on the demo models' heads.
PAIR_TILE = (512, 2048)
MAX_FAILURES = 32  # tiles in which bfloat16 may leave too many candidates, before float32 replaces it


def top_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool = True,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]:
    r"""Find the largest entries of a low-rank product without computing the whole product.

    .. math:: \operatorname{top}_k \lbrace A_i \, L R^\top B_j^\top : i < n, j < m \rbrace

    Args:
        A: The rows of the product, n × d_a.
        left: The factor L; W_Q for pairs of query and key.
        right: The factor R; W_K for pairs of query and key.
        B: The columns of the product, m × d_b.
        k: How many pairs to return.
        largest: The largest entries; with False, the most negative.

    Returns:
        Scores (float32), rows and columns (int64), one per pair, best first, equal scores by row, then by column.

    Raises:
        EmbspaceError: If k is less than one or more than the number of pairs, or a row holds NaN or infinity.
    """
    n, m = A.shape[0], B.shape[0]
    k = check_k(k, n * m, "pairs")
    with plain_arithmetic(left.device):
        left, right = upcast(left), upcast(right)
        if left.any() and right.any():
            try:
                score, key = _search_pairs(A, left, right, B, k, largest=largest)
            except TooManyTies:
                score, key = _search_distinct_pairs(A, left, right, B, k, largest=largest)
        else:  # all scores are zero: the first k pairs are the answer
            key = torch.arange(k, device=left.device)
            score = torch.zeros(k, dtype=torch.float32, device=left.device)
        return signed(score, largest), key // m, key % m


class _Precision(NamedTuple):
    """A precision of the products of coordinates, and the factor that bounds their rounding."""

    dtype: torch.dtype
    rounding: float


def _precisions(rank: int, device: torch.device) -> tuple[_Precision, _Precision]:
    """The precision of the first pass over a tile, and that of the second pass, float32."""
    fine = _Precision(torch.float32, rounding_factor(rank + 4, torch.float32, device))
    if bounds.screen_dtype(device) is not torch.bfloat16:
        return fine, fine
    return _Precision(torch.bfloat16, (1 + 2**-8) ** 3 * (1 + 2 * fine.rounding) - 1), fine  # two inputs, one output


def _search_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool,
    distinct: bool = False,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The best k pairs: scores in float64, negated unless `largest`, and keys (row · m + column).

    Raises:
        TooManyTies: If more pairs tie with the k-th best than the candidates may hold, unless the rows are `distinct`.
    """
    n, m, rank = A.shape[0], B.shape[0], left.shape[1]
    tile_a, tile_b = PAIR_TILE
    basis_a, basis_b, error_a, error_b = balanced_bases(A, left, right, B)
    # Coordinates are reused for every tile of the other side, so they may take eight times the budget in memory.
    resident = n + m <= chunk_rows(4 * rank, scale=8)
    a = SortedCoordinates(A, basis_a if largest else -basis_a, error_a, tile_a, resident=resident)
    b = SortedCoordinates(B, basis_b, error_b, tile_b, resident=resident)
    # Four times the budget for the candidates: an overflow costs a rescoring, or a search of distinct rows.
    capacity = max(4 * k, chunk_rows(16 * rank, scale=4))

    def rescore(key: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        step = capacity if distinct else len(key)  # equal rows get equal scores only within one batch
        parts = [exact_scores(A, left, right, B, batch // m, batch % m) for batch in key.split(max(1, step))]
        return torch.cat(parts) * (1 if largest else -1)

    candidates = CandidatePairs(k, capacity, rescore if distinct else None, a.order.device)
    screen, fine = _precisions(rank, a.order.device)
    n_failures = 0
    candidates.raise_floor(_first_lower_bounds(a, b, k, fine))
    # Without resident coordinates, one side gets twice the budget, and the other is computed chunk by chunk.
    step = n if resident else chunk_rows(4 * rank * tile_a, scale=2) * tile_a
    for start in range(0, n, step):
        x = a.coordinates(start, start + step)
        x_screen = x.to(screen.dtype)
        for column in range(0, m, tile_b):
            b_max = b.max_norm[column // tile_b], b.max_slack[column // tile_b]
            if a.max_norm[start // tile_a] * b_max[0] < candidates.floor:
                break
            y = b.coordinates(column, column + tile_b)
            y_screen = y.to(screen.dtype)
            columns = slice(column, column + len(y))
            for row in range(start, min(n, start + step), tile_a):
                a_max = a.max_norm[row // tile_a], a.max_slack[row // tile_a]
                if a_max[0] * b_max[0] < candidates.floor:
                    break
                rows, x_rows = slice(row, row + tile_a), slice(row - start, row - start + tile_a)
                score = x_screen[x_rows] @ y_screen.T
                i, j = entries_at_least(score, candidates.floor - float(score_margin(*a_max, *b_max, screen.rounding)))
                if not len(i):
                    continue
                if score.dtype is torch.bfloat16 and len(i) * rank <= score.numel():
                    value = (x[x_rows][i] * y[j]).sum(-1)
                else:
                    if score.dtype is torch.bfloat16:  # too many entries to compute one by one
                        score, n_failures = x[x_rows] @ y.T, n_failures + 1
                        i, j = entries_at_least(
                            score, candidates.floor - float(score_margin(*a_max, *b_max, fine.rounding))
                        )
                    value = score[i, j]
                margin = score_margin(
                    a.norm[rows][i], a.slack[rows][i], b.norm[columns][j], b.slack[columns][j], fine.rounding
                )
                candidates.add(value - margin, value + margin, a.order[rows][i] * m + b.order[columns][j])
            if n_failures > MAX_FAILURES and screen.dtype is torch.bfloat16:
                screen, x_screen = fine, x
    candidates.compact()
    key = candidates.keys
    return best_by_key(rescore(key), key, k)


def _first_lower_bounds(
    a: SortedCoordinates, b: SortedCoordinates, k: int, precision: _Precision
) -> Float[Tensor, " p"]:
    """Lower bounds on the scores of the rows with the largest norms on both sides; at least k if there are so many."""
    n = max(256, math.isqrt(4 * k) + 1)
    score = a.coordinates(0, n) @ b.coordinates(0, n).T
    margin = score_margin(a.norm[:n, None], a.slack[:n, None], b.norm[:n], b.slack[:n], precision.rounding)
    return (score - margin).flatten()


def _search_distinct_pairs(
    A: Rows, left: Float[Tensor, "d_a rank"], right: Float[Tensor, "d_b rank"], B: Rows, k: int, *, largest: bool
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """As `_search_pairs`, for matrices with many equal rows: search among distinct rows, then expand to all copies.

    The first row of a group precedes its copies, so the best k pairs of rows are copies of the best k pairs of groups.
    """
    first_a, group_a = distinct_rows(A)
    first_b, group_b = (first_a, group_a) if B is A else distinct_rows(B)
    distinct_a = Subset(A, first_a)
    distinct_b = distinct_a if B is A else Subset(B, first_b)
    n_best = min(k, len(first_a) * len(first_b))
    score, key = _search_pairs(distinct_a, left, right, distinct_b, n_best, largest=largest, distinct=True)
    return expand_pairs(score, key // len(first_b), key % len(first_b), group_a, group_b, k)
