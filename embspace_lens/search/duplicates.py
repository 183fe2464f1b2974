"""Equal rows: recognised by a fingerprint, searched once, and expanded to all their copies at the end.

A *group* is a set of equal rows. Groups are numbered by their first row, in the order of rows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .tiles import Rows, chunk_rows, chunks, row_bytes, take


def fingerprint(rows: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """A 64-bit hash of each row's bits: a sum of products with fixed odd numbers. Equal rows have equal hashes."""
    bits = (rows + 0.0).view(torch.int64 if rows.dtype is torch.float64 else torch.int32)  # + 0.0 makes −0 equal to 0
    odd = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    return (bits * odd.to(rows.device)).sum(-1)


def group_by_fingerprint(fingerprints: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n_groups"], Int[Tensor, " n"]]:
    """The first row of each group, ascending; and the group of each row."""
    _, group = fingerprints.unique(return_inverse=True)
    row = torch.arange(len(fingerprints), device=fingerprints.device)
    n_groups = int(group.max()) + 1
    first = torch.full_like(row[:n_groups], len(row)).scatter_reduce(0, group, row, "amin")
    first, order = first.sort()
    return first, order.argsort()[group]


def distinct_rows(rows: Rows) -> tuple[Int[Tensor, " n_groups"], Int[Tensor, " n"]]:
    """The first row of each group of equal rows, ascending; and the group of each row."""
    parts = [fingerprint(take(rows, chunk)) for chunk in chunks(rows.shape[0], row_bytes(rows, copies=2))]
    return group_by_fingerprint(torch.cat(parts))


def expand_pairs(
    score: Float[Tensor, " p"],
    row: Int[Tensor, " p"],
    column: Int[Tensor, " p"],
    group_a: Int[Tensor, " n"],
    group_b: Int[Tensor, " m"],
    k: int,
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The best k pairs of rows, from the best pairs of groups.

    Args:
        score: Scores of pairs of groups, best first.
        row: The group of each pair's first row.
        column: The group of each pair's second row.
        group_a: The group of each row of the first matrix.
        group_b: The group of each row of the second matrix.
        k: How many pairs of rows.

    Returns:
        Scores and keys (row · m + column), best first, equal scores by key.
    """
    members_a, start_a, size_a = _group_members(group_a)
    members_b, start_b, size_b = _group_members(group_b)
    best, key = score[:0], row[:0]
    # At most k copies of a pair of groups can be in the result; each copy takes 16 bytes.
    for batch in torch.arange(len(score), device=row.device).split(chunk_rows(16 * k)):
        if len(best) == k and score[batch[0]] < best[-1]:
            break
        n_copies = (size_a[row[batch]] * size_b[column[batch]]).clamp(max=k)
        pair = batch.repeat_interleave(n_copies)
        copy = torch.arange(len(pair), device=row.device) - (n_copies.cumsum(0) - n_copies).repeat_interleave(n_copies)
        i, j = row[pair], column[pair]
        i, j = members_a[start_a[i] + copy // size_b[j]], members_b[start_b[j] + copy % size_b[j]]
        keys = torch.cat([key, i * len(group_b) + j])
        best, key = best_by_key(torch.cat([best, score[pair.to(score.device)]]), keys, k)
    return best, key


def _group_members(group: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " g"], Int[Tensor, " g"]]:
    """All rows, group by group; where each group begins among them; and how many rows each group has."""
    size = group.bincount()
    return group.argsort(stable=True), size.cumsum(0) - size, size


def best_by_key(
    score: Float[Tensor, " p"], key: Int[Tensor, " p"], k: int
) -> tuple[Float[Tensor, " q"], Int[Tensor, " q"]]:
    """The best k scores and their keys, or all if there are fewer; equal scores in the order of keys."""
    key, by_key = key.sort()
    score, order = score[by_key.to(score.device)].sort(descending=True, stable=True)
    return score[:k], key[order[:k].to(key.device)]
