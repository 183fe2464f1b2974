"""Lists of top tokens, compared as sets, and random permutations of them."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..search.tiles import chunks
from ..space.embedding_space import EmbeddingSpace
from ..weights.parameter_names import Side


def strongest_tokens(space: EmbeddingSpace, x: Float[Tensor, "n d_model"], side: Side, k: int) -> Int[Tensor, "n k"]:
    """The k tokens with the largest absolute score for every vector, as ascending ids."""
    high, high_ids = space.top(x, side, k, largest=True)
    low, low_ids = space.top(x, side, k, largest=False)
    # The sort is stable, so a token with score 0 that is in both lists is taken from the first list only.
    order = torch.cat([high, -low], 1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.cat([high_ids, low_ids], 1).gather(1, order).sort(dim=1).values.int()


def jaccard(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"]) -> Float64[Tensor, " n"]:
    r"""$|A \cap B| / |A \cup B|$, row by row; each row holds k different tokens in ascending order."""
    n, k = a.shape
    n_shared = torch.zeros(n, dtype=torch.float64)
    for rows in chunks(n, 16 * k):  # an int64 position and two int32 ids for each token
        n_shared[rows] = _count_shared(a[rows], b[rows]).double()
    return n_shared / (2 * k - n_shared)


def _count_shared(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """How many tokens of each row of b are in the same row of a."""
    position = torch.searchsorted(a, b.contiguous()).clamp(max=a.shape[1] - 1)
    return (a.gather(1, position) == b).sum(1)


def cyclic_permutation(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random permutation of n things that is one cycle, so that it maps nothing to itself if n > 1."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))
