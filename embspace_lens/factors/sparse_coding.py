"""Non-negative sparse codes of vectors, each with the duality gap that it reaches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..search.tiles import chunks
from ..space.embeddings import as_tensor
from ..tables.checks import check_integer, check_number
from .active_set import ActiveSetSolver, nonzero_codes

LARGEST = 1e15  # squares of values up to this do not overflow in float32


class SparseCodes(NamedTuple):
    """Codes `[n, n_factors]`, and the relative duality gap `[n]` that they reach."""

    codes: Float[Tensor, "n n_factors"]
    gap: Float[Tensor, " n"]


def sparse_codes(
    x: Any,
    directions: Any,
    l1: float,
    *,
    gap: float = 1e-4,
    max_iterations: int = 1000,
    warm: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> SparseCodes:
    r"""Write each vector as a sparse non-negative sum of directions.

    .. math:: \min_{\alpha \ge 0} P(\alpha) = \tfrac12 \|x - \Phi^\top \alpha\|^2 + \lambda \|\alpha\|_1

    The rows of :math:`\Phi` are the directions. Let r be the residual. Every :math:`\theta = s r` whose inner products with
    the directions are at most :math:`\lambda` gives a lower bound of the minimum:

    .. math:: P(\alpha) - \min P \le P(\alpha) - D(\theta), \qquad D(\theta) = x \cdot \theta - \tfrac12 \|\theta\|^2

    This difference, divided by :math:`P(0) = \tfrac12 \|x\|^2`, is the relative duality gap. Each vector is solved until its
    own gap is small enough, independently of the others. Solving vectors in other batches therefore changes the codes by
    no more than the gap allows; in practice, by rounding errors.

    Args:
        x: The vectors `[n, d_model]`, in any precision.
        directions: The dictionary `[n_factors, d_model]`. Rows usually have length 1, but may have any length.
        l1: The L1 penalty λ, above 0. If no inner product of x with a direction exceeds it, all codes are zero.
        gap: The relative duality gap to reach. Rounding limits codes in float32 to about 1e-6; pass float64 vectors for less.
        max_iterations: The maximum number of passes over the dictionary per vector, in each precision.
        warm: Codes `[n, n_factors]` to start from, such as the codes for a slightly different dictionary.
        progress: Called with (vectors done, all vectors) after each chunk.

    Returns:
        Codes `[n, n_factors]` and the relative gap `[n]` that each vector reaches. Codes are in float64 if x or the
        directions are, and in float32 otherwise. The gap is computed in float64 from the codes returned; it is above `gap`
        only if `max_iterations` was reached or if the precision of the codes does not allow less.

    Raises:
        EmbspaceError: If shapes do not match, values are not finite, or l1, gap or max_iterations is not positive.

    Example:
        >>> codes, gap = sparse_codes(torch.tensor([[3.0, 4.0]]), torch.eye(2), l1=1.0)
        >>> codes.round(decimals=3)
        tensor([[2., 3.]])

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2. https://arxiv.org/abs/2103.15949
        Lawson & Hanson (1974), Solving Least Squares Problems, ch. 23 (active-set steps).
        Fercoq et al. (2015), Mind the duality gap, eq. 8-12 (lower bound). https://arxiv.org/abs/1505.03410
    """
    x, directions = _check_vectors(x, directions)
    l1 = check_number("l1", l1, above=0)
    gap = check_number("gap", gap, above=0)
    max_iterations = check_integer("max_iterations", max_iterations, minimum=1)
    if warm is not None:
        warm = as_tensor(warm, "warm")
        if warm.shape != (len(x), len(directions)):
            raise errors.factor_input_shape("warm", tuple(warm.shape), f"[{len(x)}, {len(directions)}]")
        if not warm.isfinite().all():
            raise errors.not_finite("warm")
    dtype = torch.float64 if torch.float64 in (x.dtype, directions.dtype) else torch.float32
    device = directions.device
    solver = ActiveSetSolver(directions, l1, gap=gap, max_iterations=max_iterations)
    codes = torch.empty(len(x), len(directions), dtype=dtype, device=device)
    reached_gap = torch.empty(len(x), device=device)
    for chunk in chunks(len(x), 4 * len(directions)):
        start = None if warm is None else nonzero_codes(warm[chunk].to(device, dtype).clamp_min(0))
        chunk_codes, reached_gap[chunk] = solver.certified_codes(x[chunk].to(device), start, dtype)
        codes[chunk] = chunk_codes.dense(len(directions))
        if progress:
            progress(chunk.stop, len(x))
    return SparseCodes(codes, reached_gap)


def _check_vectors(x: Any, directions: Any) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n_factors d_model"]]:
    """Vectors and directions as tensors of the same width with finite values."""
    x, directions = as_tensor(x, "hidden states"), as_tensor(directions, "directions")
    if directions.ndim != 2 or not len(directions):
        raise errors.factor_input_shape("directions", tuple(directions.shape), "[n_factors, d_model]")
    if x.ndim != 2:
        raise errors.factor_input_shape("hidden states", tuple(x.shape), "[n, d_model], one vector per row")
    if x.shape[1] != directions.shape[1]:
        raise errors.bad_width(x.shape[1], "the dictionary", directions.shape[1], "hidden states")
    for values, name in ((x, "hidden states"), (directions, "directions")):
        if not values.isfinite().all():
            raise errors.not_finite(name)
        if values.numel() and (largest := float(values.abs().max())) > LARGEST:
            raise errors.too_large_for_float32(name, largest, LARGEST)
    return x, directions
