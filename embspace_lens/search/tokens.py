r"""Best k of x·Eᵀ, in tiles that fit memory; the best pairs of A·Bᵀ are in `pairs`.

A product in low precision *screens*: what lies further below the k-th best than its proven rounding error cannot belong
to the answer. Where bfloat16 is fast it screens first, and float32 what it leaves. What is left then is *rescored* in
float64 from the numbers that were given, and ranked, equal scores by index. So the answer is that of float64 brute force,
and no tile size can be seen in it.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tables.checks import check_integer
from .bounds import finite, length_bound, plain_arithmetic
from .duplicates import distinct_rows, expand
from .pairs import top_pairs
from .screening import Screen, Tile
from .tiles import Rows, Subset, chunks, float64, row_bytes, signed, take, upcast

__all__ = ["Rows", "top_pairs", "top_tokens"]

MAX_WIDTH = 2048  # candidates kept for each vector before the search turns exhaustive


def top_tokens(
    vectors: Float[Tensor, "n d_model"],
    embedding: Rows,
    k: int,
    *,
    largest: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    r"""Find the rows of an embedding that have the largest product with each vector.

    .. math:: \operatorname{top}_k \{ x_i \cdot e_j : j < d_\mathrm{vocab} \}

    Args:
        vectors: One query per row.
        embedding: The rows to choose from; made a tile at a time, each of them once, the best few once more.
        k: How many rows to keep for each vector.
        largest: Keep the largest products; otherwise the most negative.
        progress: Called with (rows done, rows in all) after each tile of the embedding.

    Returns:
        Scores (float32) and row numbers (int64), one row per vector, best first, equal scores by row number.

    Raises:
        EmbspaceError: If k is less than one or more than there are rows.
    """
    n_rows = embedding.shape[0]
    check_integer("k", k, minimum=1, maximum=n_rows, count_of="rows")
    with plain_arithmetic(vectors.device):
        x = upcast(vectors) if largest else -upcast(vectors)
        score = torch.zeros(len(x), k, device=x.device)
        index = torch.arange(k, device=x.device).repeat(len(x), 1)
        todo = x.any(dim=1).nonzero()[:, 0]  # a zero vector ties with everything: its answer is in place
        width = k + k // 8 + 4
        while len(todo) and (width <= max(MAX_WIDTH, 2 * k) or width >= n_rows):
            found, rows, certain = _screen_and_rescore(x[todo], embedding, k, min(width, n_rows), progress)
            score[todo[certain]], index[todo[certain]] = found[certain], rows[certain]
            todo, width, progress = todo[~certain], width * 8, None
        if len(todo):
            found, index[todo] = _search_exhaustively(x[todo], embedding, k)
            score[todo] = found.to(score)
        return signed(score, largest), index


def _screen_and_rescore(x, embedding, k, width, progress):
    """Best k of each vector out of its best `width` in low precision; and whether that is certain.

    Rows are screened less a centre, which takes the same off all scores of a vector and leaves less to be rounded. A row
    that is not among the candidates has a screened score of at most the last candidate's, hence a true score of at most
    that plus the rounding error. Strictly below the k-th best it can neither win nor tie.
    """
    n, n_rows = len(x), embedding.shape[0]
    value = x.new_full((n, width), -math.inf)
    index = torch.zeros(n, width, dtype=torch.int64, device=x.device)
    screen = Screen(x, k, width)
    centre, longest = x.new_zeros(x.shape[1]), 0.0
    for rows in chunks(n_rows, row_bytes(embedding)):
        made = take(embedding, rows).to(x.dtype)
        centre = made.mean(0) if rows.start == 0 else centre
        tile = Tile(made - centre, screen.dtype)
        longest = max(longest, finite(tile.longest))
        for some in chunks(n, tile.coarse.element_size() * len(tile.coarse), scale=0.5):
            floor = float64(value[some, k - 1]) - screen.error(longest)[some]
            new_value, new_index = screen.best(some, tile, floor)
            value[some], at = torch.cat([value[some], new_value], 1).topk(width)
            index[some] = torch.cat([index[some], new_index + rows.start], 1).gather(1, at)
        if progress:
            progress(rows.stop, n_rows)
    parts = chunks(n, row_bytes(embedding, 32 * width))  # small enough to stay in a cache
    exact = torch.cat([_rescore(x[some], embedding, index[some]) for some in parts])
    value, index = float64(value), index.to(exact.device)
    exact[value.isneginf()] = -math.inf  # places that no candidate has taken
    last = value[:, -1] + (float64(x) * float64(centre)).sum(1)
    index, by_index = index.sort(dim=1)
    exact, order = exact.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    error = screen.error(longest) + screen.length * (1e-11 * finite(length_bound(centre[None]).item()))
    certain = (exact[:, k - 1] > last + error) | (width == n_rows)
    return exact[:, :k].to(x.device, torch.float32), index.gather(1, order[:, :k]).to(x.device), certain.to(x.device)


def _rescore(x, embedding, index):
    """Products with E[index] in float64; not by BLAS, whose result for a row may depend on where it stands."""
    rows = float64(take(embedding, index.flatten())).view(*index.shape, -1)
    return rows.mul_(float64(x)[:, None]).sum(-1)


def _search_exhaustively(x, embedding, k):
    """Best k for vectors with many scores alike: every distinct row in float64, one vector at a time."""
    first, group = distinct_rows(embedding)
    distinct = Subset(embedding, first)
    wanted = min(k, len(first))
    best = x.new_empty(len(x), 0, dtype=torch.float64)
    index = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for rows in chunks(len(first), row_bytes(embedding, 2)):
        tile = float64(take(distinct, rows))
        score = torch.cat([best, torch.stack([(tile * vector).sum(-1) for vector in float64(x)])], 1)
        number = torch.cat([index, torch.arange(rows.start, rows.stop, device=x.device).expand(len(x), -1)], 1)
        best, order = score.sort(dim=1, descending=True, stable=True)
        best, index = best[:, :wanted], number.gather(1, order[:, :wanted])
    one = torch.zeros(1, dtype=torch.int64, device=x.device)
    found = [expand(b, one.expand(wanted), i, one, group, k) for b, i in zip(best, index, strict=True)]
    return torch.stack([s for s, _ in found]), torch.stack([i for _, i in found])
