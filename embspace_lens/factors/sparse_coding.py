r"""Non-negative sparse codes, exact to a duality gap.

For each vector a small working set of directions is kept. On it the problem is solved exactly, by Lawson and Hanson's
active-set steps, batched over vectors; then one product with the dictionary finds the directions that are still missing,
and bounds how far the objective can be from its minimum. A dozen such products take the place of hundreds of gradient
steps. float32 does the work; the bound is computed in float64, and vectors that miss it are finished there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.bounds import plain_arithmetic
from ..search.tiles import chunks
from ..space.embeddings import as_tensor

ENTRANTS = 8  # directions that may join a vector's working set in one pass
GRAM_BYTES = {"cpu": 2**21, "cuda": 2**28}  # of products among the directions of working sets, at a time
LARGEST = 1e15  # values whose squares float32 can hold with room to spare
TABLE_BYTES = 2**28  # a table of all products of directions is made if it is no larger


class SparseCodes(NamedTuple):
    """Codes `[n, n_factors]`, and the relative duality gap `[n]` that they reach."""

    codes: Float[Tensor, "n n_factors"]
    gap: Float[Tensor, " n"]


@dataclass(frozen=True)
class Active:
    """Codes without their zeros: which directions, and how much of each (rows padded with values of 0)."""

    index: Int[Tensor, "n width"]
    value: Float[Tensor, "n width"]

    def dense(self, n_factors: int) -> Float[Tensor, "n n_factors"]:
        """With the zeros."""
        return self.value.new_zeros(len(self.value), n_factors).scatter_add_(1, self.index, self.value)

    def times(self, directions: Float[Tensor, "n_factors d_model"]) -> Float[Tensor, "n d_model"]:
        """The sums of directions that the codes stand for."""
        if not self.index.shape[1]:
            return directions.new_zeros(len(self.index), directions.shape[1])
        return torch.nn.functional.embedding_bag(self.index, directions, per_sample_weights=self.value, mode="sum")

    def __getitem__(self, rows: Tensor) -> "Active":
        return Active(self.index[rows], self.value[rows])

    def padded(self, width: int) -> "Active":
        """As wide as that."""
        short = (0, width - self.index.shape[1])
        return Active(torch.nn.functional.pad(self.index, short), torch.nn.functional.pad(self.value, short))

    def to(self, dtype: torch.dtype) -> "Active":
        """In another precision."""
        return Active(self.index, self.value.to(dtype))


def sparse_codes(
    x: Float[Tensor, "n d_model"],
    directions: Float[Tensor, "n_factors d_model"],
    l1: float,
    *,
    gap: float = 1e-4,
    max_iterations: int = 1000,
    warm: Float[Tensor, "n n_factors"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SparseCodes:
    r"""Write each vector as a sparse non-negative sum of directions.

    .. math:: \min_{\alpha \ge 0} P(\alpha) = \tfrac12 \|x - \Phi^\top \alpha\|^2 + \lambda \|\alpha\|_1

    where the rows of :math:`\Phi` are the directions. With the residual r, every :math:`\theta = s r` whose products with
    the directions are at most :math:`\lambda` bounds the minimum from below:

    .. math:: P(\alpha) - \min P \le P(\alpha) - D(\theta), \qquad D(\theta) = x \cdot \theta - \tfrac12 \|\theta\|^2

    That difference, over :math:`P(0) = \tfrac12 \|x\|^2`, is the relative duality gap. Each vector is solved until its own
    gap is small enough, whatever the others need. So how vectors are put together changes a result by no more than the
    gap, and in practice by rounding.

    Args:
        x: The vectors, in any precision.
        directions: The dictionary; rows of length 1 by custom, but any will do.
        l1: The price λ of a code, above 0. Codes are all zero where no product of x with a direction exceeds it.
        gap: The relative duality gap to reach. Codes in float32 carry about 1e-6; give float64 vectors to go below.
        max_iterations: Passes over the dictionary for a vector at most, in each precision.
        warm: Codes to start from, such as those of a dictionary that has changed a little.
        progress: Called with (vectors done, vectors in all) as the work goes on.

    Returns:
        Codes `[n, n_factors]`, in float64 if x or the directions are and in float32 otherwise, and the relative gap `[n]`
        that each vector reached, measured in float64 on the codes returned: above `gap` only where the passes ran out or
        the precision of the codes ends.

    Raises:
        EmbspaceError: If shapes do not match, values are not finite, or l1, gap or max_iterations is not positive.

    Example:
        >>> codes, gap = sparse_codes(torch.tensor([[3.0, 4.0]]), torch.eye(2), l1=1.0)
        >>> codes.round(decimals=3)
        tensor([[2., 3.]])

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2. https://arxiv.org/abs/2103.15949
        Lawson & Hanson (1974), Solving Least Squares Problems, ch. 23: the steps on the working set.
        Fercoq et al. (2015), Mind the duality gap. https://arxiv.org/abs/1505.03410, eq. 8–12: the bound.
    """
    x, directions = checked(x, directions)
    positive("l1", l1)
    positive("gap", gap)
    whole("max_iterations", max_iterations)
    if warm is not None:
        warm = as_tensor(warm, "warm")
        if warm.shape != (len(x), len(directions)):
            raise errors.EmbspaceError(
                f"warm has shape {tuple(warm.shape)}; codes of these vectors have {(len(x), len(directions))}."
            )
        if not warm.isfinite().all():
            raise errors.not_finite("warm")
    double = torch.float64 in (x.dtype, directions.dtype)
    device = directions.device
    coder = Coder(directions, l1, gap=gap, max_iterations=max_iterations)
    codes = torch.empty(len(x), len(directions), dtype=torch.float64 if double else torch.float32, device=device)
    reached = torch.empty(len(x), device=device)
    for some in chunks(len(x), 4 * len(directions)):
        start = None if warm is None else nonzero(warm[some].to(device, codes.dtype).clamp_min(0))
        active, reached[some] = coder.certified(x[some].to(device), start, codes.dtype)
        codes[some] = active.dense(len(directions))
        if progress:
            progress(some.stop, len(x))
    return SparseCodes(codes, reached)


def positive(name: str, value: Any) -> None:
    """Refuse what is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise errors.EmbspaceError(f"{name}={value!r} is not a finite number above 0.")


def whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise errors.EmbspaceError(f"{name}={value!r} is not a whole number of {least} or more.")


def checked(x: Any, directions: Any) -> tuple[Tensor, Tensor]:
    """Vectors and dictionary as tensors that belong together.

    Raises:
        EmbspaceError: If they do not, or hold NaN or infinity.
    """
    x, directions = as_tensor(x, "hidden states"), as_tensor(directions, "directions")
    if directions.ndim != 2 or not len(directions):
        raise errors.EmbspaceError(f"directions have shape {tuple(directions.shape)}; give [n_factors, d_model].")
    if x.ndim != 2:
        raise errors.EmbspaceError(f"hidden states have shape {tuple(x.shape)}; give [n, d_model], one vector a row.")
    if x.shape[1] != directions.shape[1]:
        raise errors.bad_width(x.shape[1], "the dictionary", directions.shape[1], "hidden states")
    for values, what in ((x, "hidden states"), (directions, "directions")):
        if not values.isfinite().all():
            raise errors.not_finite(what)
        if values.numel() and (largest := float(values.abs().max())) > LARGEST:
            raise errors.EmbspaceError(f"{what} reach {largest:.2g}; above {LARGEST:.0e} their squares leave float32.")
    return x, directions


def nonzero(codes: Float[Tensor, "n n_factors"]) -> Active:
    """Codes without their zeros."""
    width = int((codes > 0).sum(1).max()) if len(codes) else 0
    value, index = codes.topk(width, dim=1)
    return Active(index, value)


class Coder:
    """Sparse codes over one dictionary: what all vectors share is made once."""

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
        self._tables: dict[torch.dtype, Tensor] = {}

    def certified(
        self, x: Float[Tensor, "n d_model"], warm: Active | None, dtype: torch.dtype
    ) -> tuple[Active, Float[Tensor, " n"]]:
        """Codes in `dtype` and their gaps, finished in float64 where float32 did not reach what was asked."""
        active = self.solve(x.float(), warm).to(dtype)
        gap = self.gap_of(x, active)
        missed = (gap > self.gap).nonzero()[:, 0]
        if len(missed):
            better = self.solve(x[missed].double(), active[missed]).to(dtype)
            gap[missed] = self.gap_of(x[missed], better)
            width = max(active.index.shape[1], better.index.shape[1])
            active, better = active.padded(width), better.padded(width)
            active.index[missed], active.value[missed] = better.index, better.value
        return active, gap

    def gap_of(self, x: Float[Tensor, "n d_model"], active: Active) -> Float[Tensor, " n"]:
        """The relative duality gap of these codes, in float64."""
        with plain_arithmetic(x.device):
            x, directions = x.double(), self.directions[torch.float64]
            active = active.to(torch.float64)
            residual = x - active.times(directions)
            primal, dual = self._bounds(x, residual, residual @ directions.T, active.value)
            return torch.where(primal > dual, (primal - dual) / (x.square().sum(1) / 2), 0.0).float()

    def _bounds(self, x: Tensor, residual: Tensor, product: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The objective, and what it can at best become: the dual of the residual, scaled as well as is allowed."""
        square, inner = residual.square().sum(1), (x * residual).sum(1)
        most = self.l1 / product.amax(1).clamp_min(torch.finfo(x.dtype).tiny)
        best = (inner / square.clamp_min(torch.finfo(x.dtype).tiny)).clamp_min(0)
        scale = torch.minimum(most, best)
        return square / 2 + self.l1 * value.sum(1), scale * inner - scale.square() * square / 2

    def solve(self, x: Float[Tensor, "n d_model"], warm: Active | None = None) -> Active:
        """Codes to half the gap, or to what the precision of x allows."""
        with plain_arithmetic(x.device):
            return self._solve(x, warm)

    def _solve(self, x: Tensor, warm: Active | None) -> Active:
        directions = self.directions[x.dtype]
        n, target = len(x), self.gap / 2 * x.square().sum(1) / 2
        noise = 4 * torch.finfo(x.dtype).eps * x.square().sum(1) / 2  # changes of the objective below it are rounding
        last = x.new_full((n,), math.inf)
        rows = torch.arange(n, device=x.device)
        active = Active(rows.new_zeros(n, 0), x.new_zeros(n, 0)) if warm is None else warm.to(x.dtype)
        done: list[tuple[Tensor, Active]] = []
        for _ in range(self.max_iterations):
            residual = x - active.times(directions)
            product = residual @ directions.T
            primal, dual = self._bounds(x, residual, product, active.value)
            go_on = (primal - dual > target) & (primal < last - noise)
            if not go_on.all():
                done.append((rows[~go_on], active[~go_on]))
                kept = go_on.nonzero()[:, 0]
                x, rows, active, product = x[kept], rows[kept], active[kept], product[kept]
                target, noise, primal = target[kept], noise[kept], primal[kept]
            if not len(rows):
                break
            last = primal
            active = self._refit(*self._admit(active, product))
        else:
            done.append((rows, active))
        return _together(done, n)

    def _admit(self, active: Active, product: Tensor) -> tuple[Active, Tensor, Tensor]:
        """Working sets of what has a code, and of the directions that promise most; which places are filled; products."""
        # The least of what is written counts: padding may name a direction that has a code, too.
        known = product.gather(1, active.index)
        product.scatter_reduce_(1, active.index, torch.where(active.value > 0, -math.inf, math.inf).to(product), "amin")
        promise, entrant = product.topk(min(ENTRANTS, product.shape[1]), dim=1)
        inside = torch.cat([active.value > 0, promise > self.l1], 1)
        place = (~inside).byte().argsort(dim=1, stable=True)[:, : int(inside.sum(1).max())]
        inside = inside.gather(1, place)
        index = torch.cat([active.index, entrant], 1).gather(1, place)
        value = torch.cat([active.value, torch.zeros_like(promise)], 1).gather(1, place)
        return Active(index, value), inside, torch.cat([known, promise], 1).gather(1, place)

    def _refit(self, active: Active, inside: Tensor, product: Tensor) -> Active:
        """Solve the problem on each working set; vectors whose sets are of about one size together, a few at a time."""
        value = torch.zeros_like(active.value)
        size = inside.sum(1)
        order = size.argsort(descending=True)
        cells = GRAM_BYTES.get(value.device.type, GRAM_BYTES["cpu"]) // value.element_size()
        start = 0
        while start < len(order) and (width := int(size[order[start]])):
            some = order[start : start + max(1, cells // width**2)]
            index, filled, before = (part[some, :width] for part in (active.index, inside, active.value))
            gram = self._gram(index, value.dtype)
            linear = product[some, :width] + (gram @ before[:, :, None])[:, :, 0] - self.l1  # products with x itself
            value[some, :width] = non_negative(gram, linear, before, filled)
            start += len(some)
        return Active(active.index, value)

    def _gram(self, index: Int[Tensor, "n w"], dtype: torch.dtype) -> Float[Tensor, "n w w"]:
        """Products among the directions of each working set."""
        directions = self.directions[dtype]
        n_factors = len(directions)
        if n_factors**2 * directions.element_size() > TABLE_BYTES:
            chosen = directions[index]
            return chosen @ chosen.mT
        if dtype not in self._tables:
            self._tables[dtype] = (directions @ directions.T).flatten()
        table = self._tables[dtype]
        cells = index[:, :, None] * n_factors + index[:, None, :]
        return table.index_select(0, cells.flatten()).view(cells.shape)


def non_negative(
    gram: Float[Tensor, "n w w"], linear: Float[Tensor, "n w"], value: Float[Tensor, "n w"], passive: Tensor
) -> Float[Tensor, "n w"]:
    r"""Minimise ½ aᵀGa − qᵀa over a ≥ 0 for each of n small problems, from a feasible `value`; a is 0 outside `passive`.

    Lawson and Hanson's inner loop: solve for the passive set; where that leaves the orthant, go as far as it allows, drop
    what became zero, solve again. A ridge as small as rounding keeps equal directions solvable; what it costs, the gap
    counts, and float64 makes good.
    """
    answer = torch.zeros_like(value)
    rows = torch.arange(len(value), device=value.device)
    ridge = (64 * torch.finfo(value.dtype).eps * gram.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(1e-30)
    while len(rows):
        solved = _solve_passive(gram, linear, passive, ridge)
        negative = solved < 0
        bad = negative.any(1)
        answer[rows[~bad]] = solved[~bad]
        kept = bad.nonzero()[:, 0]
        rows, gram, linear, value, passive, ridge, solved, negative = (
            part[kept] for part in (rows, gram, linear, value, passive, ridge, solved, negative)
        )
        if not len(rows):
            break
        reach = torch.where(negative, value / (value - solved), math.inf)  # how far until each becomes zero, below 1
        step = reach.amin(1, keepdim=True)
        passive = passive & (reach > step)
        value = torch.where(passive, value + step * (solved - value), 0.0).clamp_min_(0)
    return answer


def _solve_passive(gram: Tensor, linear: Tensor, passive: Tensor, ridge: Tensor) -> Tensor:
    """The unconstrained minimum over the passive set, with the ridge, which grows where rounding left it too small."""
    mask = passive.to(gram)
    masked = gram * (mask[:, :, None] * mask[:, None, :])
    diagonal = masked.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(passive, ridge[:, None], 1.0))
    factor, failed = torch.linalg.cholesky_ex(masked)
    solved = torch.cholesky_solve((linear * mask)[:, :, None], factor)[:, :, 0]
    if failed.any():
        again = failed.nonzero()[:, 0]
        solved[again] = _solve_passive(gram[again], linear[again], passive[again], 100 * ridge[again])
    return solved * mask


def _together(parts: list[tuple[Tensor, Active]], n: int) -> Active:
    """The answers of all vectors, in the order in which they were given."""
    if not parts:
        return Active(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    width = max(active.index.shape[1] for _, active in parts)
    rows = torch.cat([rows for rows, _ in parts]).argsort()
    wide = [active.padded(width) for _, active in parts]
    return Active(torch.cat([a.index for a in wide]), torch.cat([a.value for a in wide]))[rows]
