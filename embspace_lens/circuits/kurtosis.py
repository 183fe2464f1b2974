r"""Directions near a vector whose scores over the vocabulary have heavy tails; many vectors are optimised at once.

The method is conjugate gradients on the unit sphere. Each step is a line search along a great circle
$u(\theta) = u \cos\theta + p \sin\theta$, where the centred scores are $c \cos\theta + q \sin\theta$. The excess kurtosis of
all points of the circle follows from eight sums of products of c and q. So the line search needs no learning rate, and a
step costs two products with the embedding matrix.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

# Projection of residual vectors to scores over tokens, and its transpose.
Project = Callable[[Tensor], Tensor]
Combine = Callable[[Tensor], Tensor]

Candidate = Literal["kurtosis", "objective"]
CANDIDATES: tuple[Candidate, ...] = ("kurtosis", "objective")

# Grid points of a line search: one grid over the whole circle, then two finer grids around the best point. The last step is 2π / 128 / 16², 2e-4 rad.
GRID_SIZES = (129, 33, 33)
START_STEPS = 10  # steps with the smaller kurtosis weight, for the second starting point
ONE_SIDED_SKEW = 10.0


def slog(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The symmetric logarithm: sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def centred(scores: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n n_tokens"]:
    """Scores minus their mean over the tokens."""
    return scores - scores.mean(dim=1, keepdim=True)


def excess_kurtosis(c: Float[Tensor, "n n_tokens"]) -> Float[Tensor, " n"]:
    """The fourth moment of centred scores over their squared second moment, minus 3; 0 for constant scores."""
    second = c.square().mean(dim=1)
    ratio = c.pow(4).mean(dim=1) / second.square()
    return torch.where(second > 0, ratio - 3, torch.zeros_like(ratio))


def objective(
    kurtosis: Float[Tensor, "*#n"], cosine: Float[Tensor, "*#n"], kurtosis_weight: float
) -> Float[Tensor, "*#n"]:
    """The objective: the weighted symmetric logarithm of the kurtosis, minus the cosine distance to the vector."""
    return kurtosis_weight * slog(kurtosis) - (1 - cosine)


def maximize_kurtosis(
    vectors: Float[Tensor, "n d_model"],
    mask: Float[Tensor, "n n_tokens"],
    project: Project,
    combine: Combine,
    *,
    kurtosis_weight: float = 0.3,
    tolerance: float = 1e-5,
    max_steps: int = 100,
    candidate: Candidate = "objective",
) -> Float[Tensor, "n d_model"]:
    r"""Find a direction r near each vector w whose scores have heavy tails.

    .. math:: \max_r \lambda \operatorname{slog} \kappa\big((rE) \circ m\big) - \big(1 - \cos(w, r)\big)

    The objective has many local maxima, so each vector is optimised from two starting points: from w itself, and from the
    result of ten steps with λ/3, which stays closer to w. One of the two results is returned.

    Args:
        vectors: The vectors w, one per row.
        mask: The factors m of each vector's scores.
        project: Maps residual vectors to scores over tokens.
        combine: Its transpose, which maps coefficients of tokens to residual vectors.
        kurtosis_weight: λ.
        tolerance: A vector has converged when a step increases its objective by no more than this.
        max_steps: The largest number of steps of a vector.
        candidate: Which of the two results is returned: the one with the larger `"objective"`, or the one whose scores without
            the mask have the larger absolute `"kurtosis"`.

    Returns:
        One unit direction per vector; zeros for a zero vector.
    """
    w = normalize(vectors, dim=1)
    start, _ = _conjugate_gradients(w, w, mask, project, combine, kurtosis_weight / 3, tolerance, START_STEPS)
    first, first_value = _conjugate_gradients(w, w, mask, project, combine, kurtosis_weight, tolerance, max_steps)
    second, second_value = _conjugate_gradients(w, start, mask, project, combine, kurtosis_weight, tolerance, max_steps)
    if candidate == "kurtosis":
        first_value, second_value = (excess_kurtosis(centred(project(u))).abs() for u in (first, second))
    return torch.where((first_value >= second_value)[:, None], first, second)


def _conjugate_gradients(
    w: Float[Tensor, "n d_model"],
    u: Float[Tensor, "n d_model"],
    mask: Float[Tensor, "n n_tokens"],
    project: Project,
    combine: Combine,
    kurtosis_weight: float,
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """Maximise the objective from the unit vectors u by Polak–Ribière conjugate gradients on the sphere.

    The objective never decreases. Vectors that have converged take no part in later steps.

    Returns:
        The directions and their objectives.
    """
    directions, active = u, torch.arange(len(u), device=u.device)
    c = centred(project(u) * mask)
    value = objective(excess_kurtosis(c), (u * w).sum(1), kurtosis_weight)
    values = value
    # The search direction and gradient of the previous step, transported to the tangent space of the new point.
    direction, previous_gradient = torch.zeros_like(u), torch.zeros_like(u)
    for _ in range(max_steps):
        gradient = _tangent(combine(_score_gradient(c, kurtosis_weight) * mask) + w, u)
        beta = (gradient * (gradient - previous_gradient)).sum(1) / previous_gradient.square().sum(1).clamp(min=1e-30)
        conjugate = gradient + beta.clamp(min=0)[:, None] * direction
        is_ascent = (conjugate * gradient).sum(1) > 0
        direction = torch.where(is_ascent[:, None], conjugate, gradient)
        p = normalize(_tangent(direction, u), dim=1)
        q = centred(project(p) * mask)
        angle, new_value = _line_search(c, q, (w * u).sum(1), (w * p).sum(1), kurtosis_weight)
        cos, sin = angle.cos(), angle.sin()
        direction = (cos * p - sin * u) * direction.norm(dim=1, keepdim=True)
        u, c = normalize(cos * u + sin * p, dim=1), cos * c + sin * q
        previous_gradient = _tangent(gradient, u)
        directions = directions.index_copy(0, active, u)
        values = values.index_copy(0, active, new_value)
        improves = new_value - value > tolerance
        if not improves.any():
            break
        value = new_value
        if not improves.all():
            active, w, u, c, mask, value, direction, previous_gradient = (
                rows[improves] for rows in (active, w, u, c, mask, value, direction, previous_gradient)
            )
    return directions, values


def _tangent(x: Float[Tensor, "n d_model"], u: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Subtract x's component along u, twice, because the first subtraction leaves a rounding error."""
    x = x - (x * u).sum(1, keepdim=True) * u
    return x - (x * u).sum(1, keepdim=True) * u


def _score_gradient(c: Float[Tensor, "n n_tokens"], kurtosis_weight: float) -> Float[Tensor, "n n_tokens"]:
    """The derivative of λ slog κ with respect to each score."""
    square = c.square()
    second, fourth = square.mean(dim=1, keepdim=True), square.square().mean(dim=1, keepdim=True)
    second = second.clamp(min=torch.finfo(c.dtype).tiny ** 0.25)  # constant scores get a zero gradient
    slope = 4 * kurtosis_weight / (1 + (fourth / second**2 - 3).abs()) / second**2 / c.shape[1]
    return (centred(square * c) - c * (fourth / second)) * slope


def _line_search(
    c: Float[Tensor, "n n_tokens"],
    q: Float[Tensor, "n n_tokens"],
    cosine_u: Float[Tensor, " n"],
    cosine_p: Float[Tensor, " n"],
    kurtosis_weight: float,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, " n"]]:
    """The angle of the best point on each great circle, and the objective at it.

    Args:
        c: Centred scores of u.
        q: Centred scores of p.
        cosine_u: The cosine of w and u.
        cosine_p: The cosine of w and p.
        kurtosis_weight: λ.
    """
    products = (c.square(), c * q, q.square())
    second = torch.stack([products[0].mean(1), 2 * products[1].mean(1), products[2].mean(1)], dim=1)
    terms = ((0, 0, 1), (0, 1, 4), (1, 1, 6), (1, 2, 4), (2, 2, 1))  # c⁴, 4c³q, 6c²q², 4cq³, q⁴
    fourth = torch.stack([n * torch.einsum("nv,nv->n", products[i], products[j]) for i, j, n in terms], dim=1)
    fourth = fourth / c.shape[1]

    def value(angle: Float[Tensor, "n n_angles"]) -> Float[Tensor, "n n_angles"]:
        cos, sin = angle.cos(), angle.sin()
        powers = (cos * cos, cos * sin, sin * sin)
        numerator = torch.zeros_like(cos * cosine_u[:, None])
        for n, (i, j, _) in enumerate(terms):
            numerator = numerator + fourth[:, n, None] * powers[i] * powers[j]
        variance = second[:, 0, None] * powers[0] + second[:, 1, None] * powers[1] + second[:, 2, None] * powers[2]
        denominator = variance.square()
        kurtosis = torch.where(denominator > 0, numerator / denominator - 3, torch.zeros_like(denominator))
        return objective(kurtosis, cosine_u[:, None] * cos + cosine_p[:, None] * sin, kurtosis_weight)

    angle, best_value, half_width = torch.zeros_like(cosine_u)[:, None], cosine_u, math.pi
    for n in GRID_SIZES:
        grid = angle + half_width * torch.linspace(-1, 1, n, dtype=c.dtype, device=c.device)
        best_value, best = value(grid).max(dim=1)
        angle, half_width = grid.gather(1, best[:, None]), half_width * 2 / (n - 1)
    return angle, best_value


def outliers(
    c: Float[Tensor, "n n_tokens"], threshold: float, one_sided_skew: float = ONE_SIDED_SKEW
) -> tuple[Bool[Tensor, "n n_tokens"], Float[Tensor, " n"]]:
    """Find the tokens whose centred scores lie more than `threshold` standard deviations from 0.

    Where |skew| exceeds `one_sided_skew`, only the side of the longer tail counts.

    Returns:
        A boolean for each token, and the skew of each row.
    """
    deviation = c.square().mean(dim=1, keepdim=True).sqrt()
    z = c / deviation.clamp(min=torch.finfo(c.dtype).tiny)
    skew = z.pow(3).mean(dim=1)
    distance = torch.where(skew[:, None].abs() > one_sided_skew, z * skew[:, None].sign(), z.abs())
    return distance > threshold, skew


def long_rows(lengths: Float[Tensor, " n_tokens"], quantile: float) -> Int[Tensor, " n_long"]:
    """The rows longer than a quantile of the lengths; none if all lengths are equal up to rounding."""
    limit = torch.quantile(lengths.float(), quantile)
    return (lengths > limit * (1 + 1e-4)).nonzero()[:, 0]
