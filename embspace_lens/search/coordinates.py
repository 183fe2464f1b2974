"""Both sides of a low-rank product A·L·Rᵀ·Bᵀ in coordinates of the low-rank space: fast with error bounds, and exact."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .bounds import check_finite, norm_bound, rounding_factor
from .duplicates import fingerprint, group_by_fingerprint
from .tiles import Rows, chunk_rows, chunks, float64, row_bytes, take

N_SAMPLE = 1024  # rows from which the balanced bases are estimated, at least
SAMPLE_PER_DIMENSION = 8  # with fewer rows for each dimension, the estimate makes the norms of other rows too large


def balanced_bases(
    A: Rows, left: Float[Tensor, "d_a rank"], right: Float[Tensor, "d_b rank"], B: Rows
) -> tuple[Float[Tensor, "d_a rank"], Float[Tensor, "d_b rank"], float, float]:
    r"""Bases M = L T and N = R T⁻ᵀ in which both sides have equal norms, so that A M (B N)ᵀ = A L Rᵀ Bᵀ.

    Balanced coordinates make the bound |A_i M||B_j N| on a score as small as possible, so that the search ends early. With the
    Gram matrices of A L and B R factored as PᵀP and QᵀQ, and P Qᵀ = U S Vᵀ, the transformation T is P⁻¹ U √S. Every
    invertible T gives the same answer: a sample of rows is enough, and a ridge makes T invertible if a factor has low rank.

    Returns:
        M and N, and for each side a factor. The factor times the norm of a row bounds the error of the row's coordinates.
        This error comes from T T⁻¹ ≠ 1 and from float64 arithmetic.
    """
    rank = left.shape[1]
    roots = []
    for rows, factor in ((A, left), (B, right)):
        n, n_sample = rows.shape[0], max(N_SAMPLE, SAMPLE_PER_DIMENSION * rank)
        index = torch.arange(min(n_sample, n), device=rows.device) * max(1, n // n_sample)
        gram = torch.zeros(rank, rank, dtype=torch.float64)
        for part in index.split(max(N_SAMPLE, chunk_rows(row_bytes(rows, copies=2)))):
            sample = float64(take(rows, part)) @ float64(factor)
            gram += (sample.T @ sample).cpu()
        ridge = 1e-8 * check_finite(gram.trace().item()) / rank
        gram += torch.eye(rank, dtype=gram.dtype) * (ridge or 1.0)
        roots.append(torch.linalg.cholesky(gram, upper=True))
    # From the eigenvectors V of CᵀC for C = P Qᵀ, which are found several times as fast as a singular value decomposition. Whatever
    # the errors of S, U S Vᵀ = C V Vᵀ is C.
    C = roots[0] @ roots[1].T
    S, V = (part.flip(-1) for part in torch.linalg.eigh(C.T @ C))
    S = S.clamp(min=1e-16 * S[0].item()).sqrt()
    change_left = torch.linalg.solve_triangular(roots[0], C @ V / S.sqrt(), upper=True)
    change_right = torch.linalg.solve_triangular(roots[1], V * S.sqrt(), upper=True)
    basis_a, basis_b = ((float64(f).cpu() @ c).to(f) for f, c in ((left, change_left), (right, change_right)))
    error = torch.linalg.matrix_norm(change_left @ change_right.T - torch.eye(rank, dtype=S.dtype)).item()
    error += 2 * rounding_factor(sum(left.shape) + len(right), torch.float64, torch.device("cpu"))
    error *= torch.linalg.matrix_norm(left).item() * torch.linalg.matrix_norm(right).item()
    norm_a, norm_b = (torch.linalg.matrix_norm(basis.double()).item() for basis in (basis_a, basis_b))
    share = math.sqrt(norm_a / norm_b)
    return basis_a, basis_b, math.sqrt(error) * share, math.sqrt(error) / share


class SortedCoordinates:
    """One side of a product in a basis, in the order of decreasing norm.

    Args:
        rows: The rows.
        basis: The basis.
        error: A factor on the norm of a row that bounds the error of its coordinates (see `balanced_bases`).
        tile: How many rows a tile has.
        resident: Whether to keep all coordinates in memory, rather than compute them again for every visit.
        dtype: The precision of the first pass over a tile.
        widths: Numbers of leading coordinates for `tail` (see `leading_coordinates`).

    Attributes:
        order: The row numbers, largest norm first.
        norm: For each row in this order, a bound on the exact norm of its coordinates.
        slack: For each row in this order, a bound on the error of its coordinates.
        dtype: The precision of the first pass over a tile.
        max_coarse_slack: The largest bound on the error of a row's coordinates in that precision, of each tile.
        max_norm: The largest `norm` of each tile.
        max_slack: The largest `slack` of each tile.
        tail: For each width and row in this order, a bound on the norm of the coordinates after the first `width`.
        max_tail: The largest `tail` of each tile.
    """

    def __init__(
        self,
        rows: Rows,
        basis: Float[Tensor, "d rank"],
        error: float,
        tile: int,
        *,
        resident: bool,
        dtype: torch.dtype = torch.float32,
        widths: Sequence[int] = (),
    ) -> None:
        self.rows, self.basis, self.dtype = rows, basis, dtype
        norms, slacks, coarse_slacks, tails = [], [], [], []
        coordinates = torch.empty(
            rows.shape[0] if resident else 0, basis.shape[1], dtype=torch.float32, device=basis.device
        )
        error += rounding_factor(len(basis) + 2, basis.dtype, basis.device) * torch.linalg.vector_norm(basis).item()
        for chunk in chunks(rows.shape[0], row_bytes(rows)):
            vectors = take(rows, chunk).to(basis.dtype)
            part = (vectors @ basis).float()
            slacks.append((norm_bound(vectors) * error).float() + norm_bound(part) * 2**-23)
            norms.append(norm_bound(part) + slacks[-1])
            is_rounded = dtype is not part.dtype
            coarse_slacks.append(slacks[-1] + (norm_bound(part - part.to(dtype)) if is_rounded else 0))
            tails.append([norm_bound(part[:, width:]) for width in widths])
            if resident:
                coordinates[chunk] = part
        norm, slack = torch.cat(norms), torch.cat(slacks)
        self.norm, self.order = norm.sort(descending=True, stable=True)
        self.slack = slack[self.order]
        self._resident = coordinates.index_select(0, self.order) if resident else None
        self.max_norm: list[float] = self.norm[::tile].tolist()
        self.max_slack: list[float] = [part.max().item() for part in self.slack.split(tile)]
        coarse_slack = torch.cat(coarse_slacks)[self.order]
        self.max_coarse_slack: list[float] = [part.max().item() for part in coarse_slack.split(tile)]
        check_finite(math.fsum(self.max_norm))
        self.tail = {width: torch.cat(parts)[self.order] for width, *parts in zip(widths, *tails, strict=True)}
        self.max_tail = {width: [part.max().item() for part in tail.split(tile)] for width, tail in self.tail.items()}

    def coordinates(self, start: int, stop: int) -> Float[Tensor, "n rank"]:
        """The coordinates of consecutive rows in this order, in float32."""
        if self._resident is not None:
            return self._resident[start:stop]
        index = self.order[start:stop]
        coordinates = torch.empty(len(index), self.basis.shape[1], dtype=torch.float32, device=self.basis.device)
        for chunk in chunks(len(index), row_bytes(self.rows)):
            coordinates[chunk] = take(self.rows, index[chunk]).to(self.basis.dtype) @ self.basis
        return coordinates


def exact_scores(
    A: Rows,
    left: Float[Tensor, "d_a rank"],
    right: Float[Tensor, "d_b rank"],
    B: Rows,
    i: Int[Tensor, " p"],
    j: Int[Tensor, " p"],
) -> Float[Tensor, " p"]:
    """A_i L Rᵀ B_jᵀ in float64 for pairs (i, j).

    Equal rows get equal scores; so do (i, j) and (j, i) of a symmetric product.
    """
    if A is B and torch.equal(left, right):
        a, group = exact_coordinates(A, left, torch.cat([i, j]))
        b, (group_a, group_b) = a, group.chunk(2)
    else:
        (a, group_a), (b, group_b) = exact_coordinates(A, left, i), exact_coordinates(B, right, j)
    step = chunk_rows(8 * a.shape[1])
    batches = zip(group_a.split(step), group_b.split(step), strict=True)
    return torch.cat([(a[p] * b[q]).sum(-1) for p, q in batches])


def exact_coordinates(
    rows: Rows, factor: Float[Tensor, "d rank"], index: Int[Tensor, " p"]
) -> tuple[Float[Tensor, "n_groups rank"], Int[Tensor, " p"]]:
    """Coordinates in float64 of each group of equal rows, and the group of each index."""
    used, position = index.unique(return_inverse=True)
    parts, fingerprints = [], []
    for batch in used.split(chunk_rows(row_bytes(rows, copies=2))):
        vectors = take(rows, batch)
        fingerprints.append(fingerprint(vectors))
        # BLAS may sum in another order at the edge of a matrix: padding moves the edge away from the rows.
        padded = torch.nn.functional.pad(float64(vectors), (0, 0, 0, -len(vectors) % 64))
        parts.append((padded @ float64(factor))[: len(vectors)])
    first, group = group_by_fingerprint(torch.cat(fingerprints))
    coordinates = torch.cat(parts)
    return coordinates[first.to(coordinates.device)], group[position].to(coordinates.device)
