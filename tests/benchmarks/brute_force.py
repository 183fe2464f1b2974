"""Baselines of the exact search: the same results from products over all tokens."""

from torch import Tensor, cat, empty, int64

TILE = 2048


def tiled_product(vectors: Tensor, rows: Tensor, tile: int = 1024) -> None:
    """The product of all vectors with all rows, in tiles; the results are discarded."""
    for vector_tile in vectors.split(tile):
        for row_tile in rows.split(8192):
            vector_tile @ row_tile.T


def tiled_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k pairs by brute force: a product and a `topk` for each tile, merged with the best so far."""
    a, b = A @ left, B @ right
    best, keys = empty(0), empty(0, dtype=int64)
    for row, tile_a in enumerate(a.split(TILE)):
        for column, tile_b in enumerate(b.split(TILE)):
            scores = tile_a @ tile_b.T
            values, index = scores.flatten().topk(min(k, scores.numel()))
            i, j = index // len(tile_b) + row * TILE, index % len(tile_b) + column * TILE
            best, keys = _merge(best, keys, values, i * len(b) + j, k)
    return best, keys


def filtered_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A faster brute force: once k pairs are known, only scores above the k-th best are sorted."""
    a, b = A @ left, B @ right
    best, keys = empty(0), empty(0, dtype=int64)
    for row, tile_a in enumerate(a.split(TILE)):
        for column, tile_b in enumerate(b.split(TILE)):
            scores = tile_a @ tile_b.T
            if len(best) == k:
                rows = (scores.amax(1) > best[-1]).nonzero()[:, 0]
                i, j = (scores[rows] > best[-1]).nonzero().T
                i = rows[i]
                values = scores[i, j]
            else:
                values, index = scores.flatten().topk(min(k, scores.numel()))
                i, j = index // len(tile_b), index % len(tile_b)
            if len(values):
                best, keys = _merge(best, keys, values, (i + row * TILE) * len(b) + j + column * TILE, k)
    return best, keys


def dense_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The whole d_vocab × d_vocab product and its `topk`, as in Dar et al. (2023), §4."""
    return ((A @ left) @ (B @ right).T).flatten().topk(k)


def _merge(best: Tensor, keys: Tensor, new: Tensor, new_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, all_keys = cat([best, new]), cat([keys, new_keys])
    best, order = values.topk(min(k, len(values)))
    return best, all_keys[order]
