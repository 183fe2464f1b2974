r"""The best k entries of a low-rank product A·L·Rᵀ·Bᵀ, exactly, in tiles that fit memory.

As in `tokens`: products in low precision, with proven error bounds, select candidates; these are rescored in float64 and sorted,
equal scores by index. Rows are visited in the order of decreasing norm, so that the search ends as soon as the product of
two norms is below the k-th best score.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tables.checks import check_k
from . import bounds
from .bounds import plain_arithmetic, rounding_factor
from .candidates import CandidatePairs, TooManyTies, entries_at_least, score_margin
from .coordinates import SortedCoordinates, balanced_bases, exact_scores
from .duplicates import best_by_key, distinct_rows, expand_pairs
from .leading_coordinates import LeadingCoordinates, LeadingScreen
from .tiles import Progress, Rows, Subset, chunk_rows, signed, upcast

# Rows × columns of one tile. The norms that end the search are compared tile by tile, so tiles are small: 1 Mi scores, which
# stay in the processor's cache. Twice as many rows or columns are slower on the demo models' heads.
PAIR_TILE = (512, 2048)
# Coordinates are reused for every tile of the other side, so they may take several budgets: first, for both sides to stay in
# memory; second, for a part of one side otherwise. Coordinates of high rank take longest to compute again.
COORDINATE_BUDGETS, WIDE_COORDINATE_BUDGETS = (8, 2), (8, 16)
MAX_FAILURES = 32  # tiles in which bfloat16 may leave too many candidates, before float32 replaces it


def top_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool = True,
    progress: Progress | None = None,
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
        progress: Called with (pairs done, all pairs) from time to time. It starts again if the rows have many equal copies.

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
                score, key = _search_pairs(A, left, right, B, k, largest=largest, progress=progress)
            except TooManyTies:
                score, key = _search_distinct_pairs(A, left, right, B, k, largest=largest, progress=progress)
        else:  # all scores are zero: the first k pairs are the answer
            key = torch.arange(k, device=left.device)
            score = torch.zeros(k, dtype=torch.float32, device=left.device)
        return signed(score, largest), key // m, key % m


def _search_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool,
    distinct: bool = False,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The best k pairs: scores in float64, negated unless `largest`, and keys (row · m + column).

    Raises:
        TooManyTies: If more pairs tie with the k-th best than the candidates may hold, unless the rows are `distinct`.
    """
    n, m, rank = A.shape[0], B.shape[0], left.shape[1]
    tile_a, tile_b = PAIR_TILE
    basis_a, basis_b, error_a, error_b = balanced_bases(A, left, right, B)
    leading = LeadingScreen(rank)
    resident_budgets, side_budgets = WIDE_COORDINATE_BUDGETS if leading.widths else COORDINATE_BUDGETS
    resident = n + m <= chunk_rows(4 * rank, scale=resident_budgets)
    options = {"resident": resident, "dtype": bounds.screen_dtype(basis_a.device), "widths": leading.widths}
    a = SortedCoordinates(A, basis_a if largest else -basis_a, error_a, tile_a, **options)
    b = SortedCoordinates(B, basis_b, error_b, tile_b, **options)
    # Four times the budget for the candidates: an overflow costs a rescoring, or a search of distinct rows.
    capacity = max(4 * k, chunk_rows(16 * rank, scale=4))

    def rescore(key: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        step = capacity if distinct else len(key)  # equal rows get equal scores only within one batch
        parts = [exact_scores(A, left, right, B, batch // m, batch % m) for batch in key.split(max(1, step))]
        return torch.cat(parts) * (1 if largest else -1)

    candidates = CandidatePairs(k, capacity, rescore if distinct else None, a.order.device)
    rounding = rounding_factor(rank + 4, torch.float32, a.order.device)
    is_fine, n_failures = a.dtype is torch.float32, 0
    candidates.raise_floor(_first_lower_bounds(a, b, k, rounding))
    # Without resident coordinates, those of one side are computed once, and those of the other chunk by chunk.
    step = n if resident else chunk_rows(4 * rank * tile_a, scale=side_budgets) * tile_a
    for start in range(0, n, step):
        x = LeadingCoordinates(a, start, start + step)
        for column in range(0, m, tile_b):
            tile_column = column // tile_b
            if a.max_norm[start // tile_a] * b.max_norm[tile_column] < candidates.floor:
                break
            y = LeadingCoordinates(b, column, column + tile_b)
            columns = slice(column, column + tile_b)
            for row in range(start, min(n, start + step), tile_a):
                tile_row = row // tile_a
                a_max, b_max = a.max_norm[tile_row], b.max_norm[tile_column]
                if a_max * b_max < candidates.floor:
                    break
                rows, x_rows = slice(row, row + tile_a), slice(row - start, row - start + tile_a)
                margin = score_margin(
                    a_max, a.max_coarse_slack[tile_row], b_max, b.max_coarse_slack[tile_column], rounding
                )
                limit = candidates.floor - float(margin)
                limit -= 2**-7 * abs(limit)  # the rounding of a score to bfloat16
                max_tails = {
                    width: a.max_tail[width][tile_row] * b.max_tail[width][tile_column] for width in leading.widths
                }
                max_entries = tile_a * tile_b // rank  # to compute one by one
                entries, score = leading.entries(x, y, x_rows, max_tails, limit, max_entries), None
                if entries is None and not is_fine:
                    entries = entries_at_least(x.rounded[x_rows] @ y.rounded.T, limit)
                    if len(entries[0]) > max_entries:
                        entries, n_failures = None, n_failures + 1
                if entries is None:
                    margin = score_margin(a_max, a.max_slack[tile_row], b_max, b.max_slack[tile_column], rounding)
                    score = x.all[x_rows] @ y.all.T
                    entries = entries_at_least(score, candidates.floor - float(margin))
                i, j = entries
                if not len(i):
                    continue
                if score is None:
                    value = x.all[x_rows].index_select(0, i).mul_(y.all.index_select(0, j)).sum(-1)
                else:
                    value = score[i, j]
                margin = score_margin(
                    a.norm[rows][i], a.slack[rows][i], b.norm[columns][j], b.slack[columns][j], rounding
                )
                candidates.add(value - margin, value + margin, a.order[rows][i] * m + b.order[columns][j])
            is_fine = is_fine or n_failures > MAX_FAILURES
            if progress is not None:
                progress(start * m + min(m, column + tile_b) * (min(n, start + step) - start), n * m)
    if progress is not None:
        progress(n * m, n * m)
    candidates.compact()
    key = candidates.keys
    return best_by_key(rescore(key), key, k)


def _first_lower_bounds(a: SortedCoordinates, b: SortedCoordinates, k: int, rounding: float) -> Float[Tensor, " p"]:
    """Lower bounds on the scores of the rows with the largest norms on both sides; at least k if there are so many."""
    n = max(256, math.isqrt(4 * k) + 1)
    score = a.coordinates(0, n) @ b.coordinates(0, n).T
    margin = score_margin(a.norm[:n, None], a.slack[:n, None], b.norm[:n], b.slack[:n], rounding)
    return (score - margin).flatten()


def _search_distinct_pairs(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    k: int,
    *,
    largest: bool,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """As `_search_pairs`, for matrices with many equal rows: search among distinct rows, then expand to all copies.

    The first row of a group precedes its copies, so the best k pairs of rows are copies of the best k pairs of groups.
    """
    first_a, group_a = distinct_rows(A)
    first_b, group_b = (first_a, group_a) if B is A else distinct_rows(B)
    distinct_a = Subset(A, first_a)
    distinct_b = distinct_a if B is A else Subset(B, first_b)
    n_best = min(k, len(first_a) * len(first_b))
    score, key = _search_pairs(
        distinct_a, left, right, distinct_b, n_best, largest=largest, distinct=True, progress=progress
    )
    return expand_pairs(score, key // len(first_b), key % len(first_b), group_a, group_b, k)
