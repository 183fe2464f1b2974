r"""Directions near a vector along which the vocabulary's scores have heavy tails, for many vectors at once.

The excess kurtosis of u's scores is a ratio of forms in u. Along a great circle $u(\theta) = u\cos\theta + p\sin\theta$ the
scores are $c\cos\theta + q\sin\theta$, so that the kurtosis of the whole circle follows from eight sums of products of c and
q: every step goes to the best point of its circle, near or far, for the price of two products with the embeddings.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

Project = Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n n_tokens"]]
Back = Callable[[Float[Tensor, "n n_tokens"]], Float[Tensor, "n d_model"]]

# A circle is searched on a grid, then around its best point on finer ones: to 2π / 128 / 16² of it, some 2e-4 rad.
GRIDS = (129, 33, 33)
FIRST_STEPS = 10


def slog(x: Tensor) -> Tensor:
    """The logarithm on both sides of zero: sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def excess_kurtosis(c: Float[Tensor, "n n_tokens"]) -> Float[Tensor, " n"]:
    """Fourth moment of centred scores over their squared second, less 3; 0 for scores that do not vary."""
    second = c.square().mean(dim=1)
    ratio = c.pow(4).mean(dim=1) / second.square()
    return torch.where(second > 0, ratio - 3, torch.zeros_like(ratio))


def objective(kurtosis: Tensor, cosine: Tensor, kurtosis_weight: float) -> Tensor:
    """What is climbed: the kurtosis counts by its logarithm, and leaving the vector costs one less the cosine."""
    return kurtosis_weight * slog(kurtosis) - (1 - cosine)


def centred(scores: Tensor) -> Tensor:
    """Scores less their mean over the tokens."""
    return scores - scores.mean(dim=1, keepdim=True)


def climb(
    vectors: Float[Tensor, "n d_model"],
    mask: Float[Tensor, "n n_tokens"],
    project: Project,
    back: Back,
    *,
    kurtosis_weight: float = 0.3,
    tolerance: float = 1e-5,
    max_steps: int = 100,
) -> Float[Tensor, "n d_model"]:
    r"""Climb from each vector w to a direction r that stays near and whose scores have heavy tails.

    .. math:: \max_r \lambda \operatorname{slog} \kappa\big((rE) \circ m\big) - \big(1 - \cos(w, r)\big)

    There are many heights, and the first steps decide which is climbed. So each vector climbs twice: straight on, and with a
    third of λ at first, which stays nearer to w. The higher end stands.

    Args:
        vectors: Where to begin, a vector a row.
        mask: What the scores of each vector's tokens are multiplied by.
        project: From residual vectors to scores of tokens.
        back: Its transpose, from a number for each token to residual vectors.
        kurtosis_weight: λ.
        tolerance: The lift of a step below which a vector is done.
        max_steps: How many steps a vector takes at most.

    Returns:
        Unit directions, one for each vector; zeros for zeros.
    """
    w = normalize(vectors, dim=1)
    near, _ = _ascend(w, w, mask, project, back, kurtosis_weight / 3, tolerance, FIRST_STEPS)
    ends = [_ascend(w, u, mask, project, back, kurtosis_weight, tolerance, max_steps) for u in (w, near)]
    (straight, height), (nearer, other) = ends
    return torch.where((height >= other)[:, None], straight, nearer)


def _ascend(w, u, mask, project, back, kurtosis_weight, tolerance, max_steps):
    """Conjugate gradients on the sphere from u (Polak–Ribière): directions and the objective there, which never falls.

    A vector that a step lifts by less than the tolerance is done, and costs nothing from then on.
    """
    found, todo, m = u, torch.arange(len(u), device=u.device), mask
    c = centred(project(u) * m)
    value = objective(excess_kurtosis(c), (u * w).sum(1), kurtosis_weight)
    height = value
    way, uphill = torch.zeros_like(u), torch.zeros_like(u)  # the last step's, as seen from where it led
    for _ in range(max_steps):
        gradient = _tangent(back(_by_score(c, kurtosis_weight) * m) + w, u)
        turn = (gradient * (gradient - uphill)).sum(1) / uphill.square().sum(1).clamp(min=1e-30)
        way_on = gradient + turn.clamp(min=0)[:, None] * way
        way = torch.where(((way_on * gradient).sum(1) > 0)[:, None], way_on, gradient)
        p = normalize(_tangent(way, u), dim=1)
        q = centred(project(p) * m)
        angle, reached = _best_angle(c, q, (w * u).sum(1), (w * p).sum(1), kurtosis_weight)
        cos, sin = angle.cos(), angle.sin()
        way = (cos * p - sin * u) * way.norm(dim=1, keepdim=True)
        u, c = normalize(cos * u + sin * p, dim=1), cos * c + sin * q
        uphill = _tangent(gradient, u)
        found, height = found.index_copy(0, todo, u), height.index_copy(0, todo, reached)
        go = reached - value > tolerance
        if not go.any():
            break
        value = reached
        if not go.all():
            todo, w, u, c, m, value, way, uphill = (t[go] for t in (todo, w, u, c, m, value, way, uphill))
    return found, height


def _tangent(x: Tensor, u: Tensor) -> Tensor:
    """Take off x's part along u; twice, for the first difference rounds."""
    x = x - (x * u).sum(1, keepdim=True) * u
    return x - (x * u).sum(1, keepdim=True) * u


def _by_score(c, kurtosis_weight):
    """The derivative of λ slog κ by each score."""
    square = c.square()
    second, fourth = square.mean(dim=1, keepdim=True), square.square().mean(dim=1, keepdim=True)
    second = second.clamp(min=torch.finfo(c.dtype).tiny ** 0.25)  # scores that do not vary have no slope
    slope = 4 * kurtosis_weight / (1 + (fourth / second**2 - 3).abs()) / second**2 / c.shape[1]
    return (centred(square * c) - c * (fourth / second)) * slope


def _best_angle(c, q, along, across, kurtosis_weight):
    """The angle to the best point of each great circle, and the objective there."""
    products = (c.square(), c * q, q.square())
    second = torch.stack([products[0].mean(1), 2 * products[1].mean(1), products[2].mean(1)], dim=1)
    pairs = ((0, 0, 1), (0, 1, 4), (1, 1, 6), (1, 2, 4), (2, 2, 1))  # c⁴, 4c³q, 6c²q², 4cq³, q⁴
    fourth = torch.stack([n * torch.einsum("nv,nv->n", products[i], products[j]) for i, j, n in pairs], dim=1)
    fourth = fourth / c.shape[1]

    def value(angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        form = (cos * cos, cos * sin, sin * sin)
        above = torch.zeros_like(cos * along[:, None])
        for n, (i, j, _) in enumerate(pairs):
            above = above + fourth[:, n, None] * form[i] * form[j]
        below = (second[:, 0, None] * form[0] + second[:, 1, None] * form[1] + second[:, 2, None] * form[2]).square()
        kurtosis = torch.where(below > 0, above / below - 3, torch.zeros_like(below))
        return objective(kurtosis, along[:, None] * cos + across[:, None] * sin, kurtosis_weight)

    angle, reached, width = torch.zeros_like(along)[:, None], along, math.pi
    for n in GRIDS:
        grid = angle + width * torch.linspace(-1, 1, n, dtype=c.dtype, device=c.device)
        reached, at = value(grid).max(dim=1)
        angle, width = grid.gather(1, at[:, None]), width * 2 / (n - 1)
    return angle, reached


def stand_out(c: Float[Tensor, "n n_tokens"], threshold: float, one_sided_skew: float = 10.0):
    """Which tokens stand out from centred scores, by standard deviations; on one side alone where the skew is extreme.

    Returns:
        A boolean for each token, and each row's skew.
    """
    deviation = c.square().mean(dim=1, keepdim=True).sqrt()
    z = c / deviation.clamp(min=torch.finfo(c.dtype).tiny)
    skew = z.pow(3).mean(dim=1)
    one_sided = torch.where(skew[:, None].abs() > one_sided_skew, z * skew[:, None].sign(), z.abs())
    return one_sided > threshold, skew


def long_rows(lengths: Float[Tensor, " n_tokens"], share: float) -> Int[Tensor, " n_long"]:
    """Rows longer than the given quantile of lengths; none where all are of one length but for rounding."""
    edge = torch.quantile(lengths.float(), share)
    return (lengths > edge * (1 + 1e-4)).nonzero()[:, 0]
