"""ROTATE's optimiser as published: a Householder reflection of the weight, learned with AdamW."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..circuits.kurtosis import centred, excess_kurtosis, objective

LEARNING_RATE, WEIGHT_DECAY, WARMUP = 8e-4, 0.01, 100
MAX_STEPS, CANDIDATE_EVERY = 10_000, 100
# A batch stops when the loss of each vector has varied less than this over a window, after a minimum of steps.
CONVERGENCE, WINDOW, MIN_STEPS = 1e-4, 100, 2_000
KURTOSIS_WEIGHT = 0.3


class HouseholderResult(NamedTuple):
    """The result of the published optimiser for a batch of vectors.

    Attributes:
        by_kurtosis: The candidate with the largest absolute kurtosis of the scores without the mask: the published choice.
        by_objective: The candidate with the largest objective.
        n_steps: The number of steps.
    """

    by_kurtosis: Float[Tensor, "n d_model"]
    by_objective: Float[Tensor, "n d_model"]
    n_steps: int


def reflect(u: Float[Tensor, "n d_model"], w: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """H(u) w = w − 2 u (u · w) / |u|²: a vector of the same length as w."""
    return w - 2 * u * (u * w).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True)


def householder_channels(
    w: Float[Tensor, "n d_model"],
    rows: Float[Tensor, "n_tokens d_model"],
    mask: Float[Tensor, " n_tokens"],
    *,
    max_steps: int = MAX_STEPS,
    seed: int = 0,
) -> HouseholderResult:
    r"""The first channel of each vector by the authors' loop: AdamW on u, where H(u) w is the channel.

    .. math:: \min_u -0.3 \operatorname{slog} \kappa\big((H(u) w\, E) \circ m\big) + 1 - \cos(w, H(u) w)

    u starts as a normal vector. The learning rate is 8e-4 after a linear warm-up of 100 steps, the weight decay 0.01. Every
    hundredth step is a candidate. The batch stops after 10,000 steps, or after 2,000 once each loss has converged.

    Args:
        w: The vectors.
        rows: The embedding E, one row per token.
        mask: The factors m.
        max_steps: The largest number of steps.
        seed: Seed of the start.

    References:
        Avrahamy, Gur-Arieh & Geva (2026), https://arxiv.org/abs/2604.06005; the loop is that of `rotate/pursuit.py` and
        `docs/method.md` in https://github.com/AsafAvr/rotating-neurons.
    """
    w, rows = w.detach(), rows.detach()
    u = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed)).to(w).requires_grad_()
    optimiser = torch.optim.AdamW([u], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, step / WARMUP))
    best = [torch.full((len(w),), -torch.inf).to(w) for _ in range(2)]
    chosen = [w.clone() for _ in range(2)]
    losses = torch.zeros(WINDOW, len(w)).to(w)
    converged = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    step = 0
    for step in range(max_steps):
        r = reflect(u, w)
        scores = r @ rows.T
        masked_kurtosis = excess_kurtosis(centred(scores * mask))
        value = objective(masked_kurtosis, torch.cosine_similarity(r, w, dim=1), KURTOSIS_WEIGHT)
        optimiser.zero_grad()
        (-value.mean()).backward()
        optimiser.step()
        warmup.step()
        losses[step % WINDOW] = -value.detach()
        if step + 1 >= MIN_STEPS:
            converged |= losses.std(dim=0, correction=0) < CONVERGENCE
            if converged.all():
                break
        if step % CANDIDATE_EVERY == 0:
            with torch.no_grad():
                for i, measure in enumerate((excess_kurtosis(centred(scores)).abs(), value)):
                    improves = measure > best[i]
                    best[i] = torch.where(improves, measure, best[i])
                    chosen[i] = torch.where(improves[:, None], r.detach(), chosen[i])
    return HouseholderResult(chosen[0], chosen[1], step + 1)
