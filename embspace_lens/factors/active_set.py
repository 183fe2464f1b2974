r"""An active-set solver for non-negative sparse codes.

Each vector has a small working set of directions. The problem on the working set is solved exactly, by the active-set
steps of Lawson and Hanson, batched over vectors. Then one product with the dictionary finds the directions that should
join the working set, and bounds the distance of the objective from its minimum. About a dozen such products replace
hundreds of gradient steps. The work is done in float32; the bound is computed in float64. Vectors with a gap that is
still too large are finished in float64.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..search.bounds import plain_arithmetic
from ..search.tiles import chunk_rows

ENTRANTS = 8  # how many directions may join a vector's working set in one pass
# Gram matrices of one chunk. On a CPU they should stay in its cache; on a GPU, large batches are quicker.
GRAM_SCALE = {"cpu": 1 / 8, "cuda": 16.0}
# The inner products of all pairs of directions are computed once if they fit in 256 MiB: up to 8,192 factors in float32.
ALL_PAIRS_SCALE = 16.0


@dataclass(frozen=True)
class ActiveCodes:
    """Codes without their zeros: the indices of the directions and the values; rows are padded with values of 0."""

    index: Int[Tensor, "n width"]
    value: Float[Tensor, "n width"]

    def dense(self, n_factors: int) -> Float[Tensor, "n n_factors"]:
        """The codes with their zeros."""
        return self.value.new_zeros(len(self.value), n_factors).scatter_add_(1, self.index, self.value)

    def decode(self, directions: Float[Tensor, "n_factors d_model"]) -> Float[Tensor, "n d_model"]:
        """The sums of directions, weighted by the codes."""
        if not self.index.shape[1]:
            return directions.new_zeros(len(self.index), directions.shape[1])
        return torch.nn.functional.embedding_bag(self.index, directions, per_sample_weights=self.value, mode="sum")

    def __getitem__(self, rows: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> "ActiveCodes":
        return ActiveCodes(self.index[rows], self.value[rows])

    def pad(self, width: int) -> "ActiveCodes":
        """The same codes, padded to a larger width."""
        padding = (0, width - self.index.shape[1])
        return ActiveCodes(torch.nn.functional.pad(self.index, padding), torch.nn.functional.pad(self.value, padding))

    def to(self, dtype: torch.dtype) -> "ActiveCodes":
        """The same codes in another precision."""
        return ActiveCodes(self.index, self.value.to(dtype))


def nonzero_codes(codes: Float[Tensor, "n n_factors"]) -> ActiveCodes:
    """Dense codes without their zeros."""
    width = int((codes > 0).sum(1).max()) if len(codes) else 0
    value, index = codes.topk(width, dim=1)
    return ActiveCodes(index, value)


class ActiveSetSolver:
    """Computes sparse codes for one dictionary; keeps what all vectors share.

    Args:
        directions: The dictionary.
        l1: The L1 penalty λ.
        gap: The relative duality gap to reach.
        max_iterations: The maximum number of passes over the dictionary.
    """

    def __init__(
        self,
        directions: Float[Tensor, "n_factors d_model"],
        l1: float,
        *,
        gap: float = 1e-4,
        max_iterations: int = 1000,
    ) -> None:
        self.directions = {torch.float32: directions.float(), torch.float64: directions.double()}
        self.l1, self.gap, self.max_iterations = l1, gap, max_iterations
        self._all_pairs: dict[torch.dtype, Tensor] = {}

    def certified_codes(
        self, x: Float[Tensor, "n d_model"], start: ActiveCodes | None, dtype: torch.dtype
    ) -> tuple[ActiveCodes, Float[Tensor, " n"]]:
        """Codes in `dtype` and their gaps. Vectors that miss the gap in float32 are finished in float64."""
        codes = self.solve(x.float(), start).to(dtype)
        gap = self.duality_gap(x, codes)
        missed = (gap > self.gap).nonzero()[:, 0]
        if len(missed):
            finished = self.solve(x[missed].double(), codes[missed]).to(dtype)
            gap[missed] = self.duality_gap(x[missed], finished)
            width = max(codes.index.shape[1], finished.index.shape[1])
            codes, finished = codes.pad(width), finished.pad(width)
            codes.index[missed], codes.value[missed] = finished.index, finished.value
        return codes, gap

    def duality_gap(self, x: Float[Tensor, "n d_model"], codes: ActiveCodes) -> Float[Tensor, " n"]:
        """The relative duality gap of these codes, computed in float64."""
        with plain_arithmetic(x.device):
            x, directions = x.double(), self.directions[torch.float64]
            codes = codes.to(torch.float64)
            residual = x - codes.decode(directions)
            primal, dual = self._objectives(x, residual, residual @ directions.T, codes.value)
            return torch.where(primal > dual, (primal - dual) / (x.square().sum(1) / 2), 0.0).float()

    def solve(self, x: Float[Tensor, "n d_model"], start: ActiveCodes | None = None) -> ActiveCodes:
        """Codes whose gap is half the requested gap, or as small as the precision of x allows."""
        with plain_arithmetic(x.device):
            return self._solve(x, start)

    def _solve(self, x: Float[Tensor, "n d_model"], start: ActiveCodes | None) -> ActiveCodes:
        directions = self.directions[x.dtype]
        n, target = len(x), self.gap / 2 * x.square().sum(1) / 2
        noise = (
            4 * torch.finfo(x.dtype).eps * x.square().sum(1) / 2
        )  # smaller changes of the objective are rounding errors
        previous = x.new_full((n,), math.inf)
        rows = torch.arange(n, device=x.device)
        codes = ActiveCodes(rows.new_zeros(n, 0), x.new_zeros(n, 0)) if start is None else start.to(x.dtype)
        finished: list[tuple[Tensor, ActiveCodes]] = []
        for _ in range(self.max_iterations):
            residual = x - codes.decode(directions)
            product = residual @ directions.T
            primal, dual = self._objectives(x, residual, product, codes.value)
            unfinished = (primal - dual > target) & (primal < previous - noise)
            if not unfinished.all():
                finished.append((rows[~unfinished], codes[~unfinished]))
                keep = unfinished.nonzero()[:, 0]
                x, rows, codes, product = x[keep], rows[keep], codes[keep], product[keep]
                target, noise, primal = target[keep], noise[keep], primal[keep]
            if not len(rows):
                break
            previous = primal
            codes = self._refit(*self._extend(codes, product))
        else:
            finished.append((rows, codes))
        return _in_order(finished, n)

    def _objectives(
        self,
        x: Float[Tensor, "n d_model"],
        residual: Float[Tensor, "n d_model"],
        product: Float[Tensor, "n n_factors"],
        value: Float[Tensor, "n width"],
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The primal objective, and the dual objective of the residual at its best feasible scale."""
        square, inner = residual.square().sum(1), (x * residual).sum(1)
        feasible = self.l1 / product.amax(1).clamp_min(torch.finfo(x.dtype).tiny)
        best = (inner / square.clamp_min(torch.finfo(x.dtype).tiny)).clamp_min(0)
        scale = torch.minimum(feasible, best)
        return square / 2 + self.l1 * value.sum(1), scale * inner - scale.square() * square / 2

    def _extend(
        self, codes: ActiveCodes, product: Float[Tensor, "n n_factors"]
    ) -> tuple[ActiveCodes, Bool[Tensor, "n w"], Float[Tensor, "n w"]]:
        """The working sets: active directions and the best candidates. Also which slots are used, and their products."""
        # "amin" resolves repeated indices: padding may repeat the index of an active direction.
        active_product = product.gather(1, codes.index)
        product.scatter_reduce_(1, codes.index, torch.where(codes.value > 0, -math.inf, math.inf).to(product), "amin")
        entrant_product, entrant = product.topk(min(ENTRANTS, product.shape[1]), dim=1)
        used = torch.cat([codes.value > 0, entrant_product > self.l1], 1)
        slot = (~used).byte().argsort(dim=1, stable=True)[:, : int(used.sum(1).max())]
        used = used.gather(1, slot)
        index = torch.cat([codes.index, entrant], 1).gather(1, slot)
        value = torch.cat([codes.value, torch.zeros_like(entrant_product)], 1).gather(1, slot)
        return ActiveCodes(index, value), used, torch.cat([active_product, entrant_product], 1).gather(1, slot)

    def _refit(
        self, codes: ActiveCodes, used: Bool[Tensor, "n width"], product: Float[Tensor, "n width"]
    ) -> ActiveCodes:
        """Solve the problem on each working set; vectors are batched by the size of their working sets."""
        value = torch.zeros_like(codes.value)
        size = used.sum(1)
        order = size.argsort(descending=True)
        n_cells = chunk_rows(value.element_size(), scale=GRAM_SCALE.get(value.device.type, GRAM_SCALE["cpu"]))
        start = 0
        while start < len(order) and (width := int(size[order[start]])):
            batch = order[start : start + max(1, n_cells // width**2)]
            index, passive, current = (part[batch, :width] for part in (codes.index, used, codes.value))
            gram = self._gram(index, value.dtype)
            # product is with the residual; adding the current sum gives the products with x itself
            linear = product[batch, :width] + (gram @ current[:, :, None])[:, :, 0] - self.l1
            value[batch, :width] = solve_non_negative(gram, linear, current, passive)
            start += len(batch)
        return ActiveCodes(codes.index, value)

    def _gram(self, index: Int[Tensor, "n w"], dtype: torch.dtype) -> Float[Tensor, "n w w"]:
        """Inner products of the directions of each working set."""
        directions = self.directions[dtype]
        n_factors = len(directions)
        if n_factors > chunk_rows(n_factors * directions.element_size(), scale=ALL_PAIRS_SCALE):
            chosen = directions[index]
            return chosen @ chosen.mT
        if dtype not in self._all_pairs:
            self._all_pairs[dtype] = (directions @ directions.T).flatten()
        cells = index[:, :, None] * n_factors + index[:, None, :]
        return self._all_pairs[dtype].index_select(0, cells.flatten()).view(cells.shape)


def solve_non_negative(
    gram: Float[Tensor, "n w w"],
    linear: Float[Tensor, "n w"],
    value: Float[Tensor, "n w"],
    passive: Bool[Tensor, "n w"],
) -> Float[Tensor, "n w"]:
    r"""Minimise :math:`\tfrac12 a^\top G a - q^\top a` over a ≥ 0 for each of n small problems; a is 0 outside `passive`.

    This is the inner loop of Lawson and Hanson, from a feasible `value`: solve on the passive set without the constraint;
    if some entries are negative, move towards that solution until the first entry becomes zero, remove this entry from
    the passive set, and solve again. A ridge of the size of rounding errors makes equal directions solvable. Its effect
    is part of the duality gap, and is removed by the float64 pass where it matters.
    """
    answer = torch.zeros_like(value)
    rows = torch.arange(len(value), device=value.device)
    ridge = (64 * torch.finfo(value.dtype).eps * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(1e-30)
    while len(rows):
        solution = _solve_passive(gram, linear, passive, ridge)
        negative = solution < 0
        infeasible = negative.any(1)
        answer[rows[~infeasible]] = solution[~infeasible]
        keep = infeasible.nonzero()[:, 0]
        rows, gram, linear, value, passive, ridge, solution, negative = (
            part[keep] for part in (rows, gram, linear, value, passive, ridge, solution, negative)
        )
        if not len(rows):
            break
        step_to_zero = torch.where(negative, value / (value - solution), math.inf)  # below 1 for negative entries
        step = step_to_zero.amin(1, keepdim=True)
        passive = passive & (step_to_zero > step)
        value = torch.where(passive, value + step * (solution - value), 0.0).clamp_min_(0)
    return answer


def _solve_passive(
    gram: Float[Tensor, "n w w"],
    linear: Float[Tensor, "n w"],
    passive: Bool[Tensor, "n w"],
    ridge: Float[Tensor, " n"],
) -> Float[Tensor, "n w"]:
    """The unconstrained minimum over the passive set; the ridge grows until the Cholesky decomposition succeeds."""
    mask = passive.to(gram)
    masked = gram * (mask[:, :, None] * mask[:, None, :])
    diagonal = masked.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(passive, ridge[:, None], 1.0))
    factor, failed = torch.linalg.cholesky_ex(masked)
    solution = torch.cholesky_solve((linear * mask)[:, :, None], factor)[:, :, 0]
    if failed.any():
        again = failed.nonzero()[:, 0]
        solution[again] = _solve_passive(gram[again], linear[again], passive[again], 100 * ridge[again])
    return solution * mask


def _in_order(finished: list[tuple[Tensor, ActiveCodes]], n: int) -> ActiveCodes:
    """The codes of all vectors, in the order in which the vectors were given."""
    if not finished:
        return ActiveCodes(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    width = max(codes.index.shape[1] for _, codes in finished)
    order = torch.cat([rows for rows, _ in finished]).argsort()
    padded = [codes.pad(width) for _, codes in finished]
    return ActiveCodes(torch.cat([c.index for c in padded]), torch.cat([c.value for c in padded]))[order]
