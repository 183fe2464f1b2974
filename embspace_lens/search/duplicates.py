"""Equal rows: found by fingerprint, searched once, expanded to all their copies."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .tiles import chunks, row_bytes, take

COPIES = 2**20  # pairs of equal rows listed at a time


def fingerprint(tile: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """Each row's bits times fixed odd numbers, summed in 64 bits: equal for equal rows, in practice only for them."""
    bits = (tile + 0.0).view(torch.int64 if tile.dtype is torch.float64 else torch.int32)  # + 0.0 makes -0 equal to 0
    odd = torch.randint(-(2**62), 2**62, (tile.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    return (bits * odd.to(tile.device)).sum(-1)


def first_of_each(prints: Int[Tensor, " n"]) -> tuple[Int[Tensor, " g"], Int[Tensor, " n"]]:
    """The first row of each kind, in the order of rows; and which of these each row equals."""
    _, kind = prints.unique(return_inverse=True)
    number = torch.arange(len(prints), device=prints.device)
    first = torch.full_like(number[: int(kind.max()) + 1], len(prints)).scatter_reduce(0, kind, number, "amin")
    first, order = first.sort()
    return first, order.argsort()[kind]


def distinct_rows(rows):
    """The first row of each kind, and which of these each row equals."""
    parts = chunks(rows.shape[0], row_bytes(rows, 2))
    return first_of_each(torch.cat([fingerprint(take(rows, some)) for some in parts]))


def expand(score, row, col, group_a, group_b, k):
    """From pairs of kinds, best first, to the best k pairs of rows: scores and keys."""
    (member_a, start_a, count_a), (member_b, start_b, count_b) = members(group_a), members(group_b)
    best, key = score[:0], row[:0]
    for some in torch.arange(len(score), device=row.device).split(max(1, COPIES // k)):
        if len(best) == k and score[some[0]] < best[-1]:
            break
        size = (count_a[row[some]] * count_b[col[some]]).clamp(max=k)
        pair = some.repeat_interleave(size)
        number = torch.arange(len(pair), device=row.device) - (size.cumsum(0) - size).repeat_interleave(size)
        i, j = row[pair], col[pair]
        i, j = member_a[start_a[i] + number // count_b[j]], member_b[start_b[j] + number % count_b[j]]
        new = torch.cat([key, i * len(group_b) + j])
        best, key = best_by_key(torch.cat([best, score[pair.to(score.device)]]), new, k)
    return best, key


def members(group):
    """Row numbers sorted by kind; where each kind begins among them, and how many there are of it."""
    count = group.bincount()
    return group.argsort(stable=True), count.cumsum(0) - count, count


def best_by_key(score, key, k):
    """The best k scores and their keys, equal scores by key."""
    key, by_key = key.sort()
    score, order = score[by_key.to(score.device)].sort(descending=True, stable=True)
    return score[:k], key[order[:k].to(key.device)]
