"""A sparse dictionary in training: BatchTopK, with an auxiliary loss for features that are never active."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AUXILIARY_WEIGHT = 1 / 32
THRESHOLD_RATE = 0.02  # the weight of a new batch in the running mean of the threshold
THRESHOLD_ROWS = 512  # vectors of a batch from which its threshold is computed


class Evaluated(NamedTuple):
    """What one batch gives, before anything is changed.

    Attributes:
        loss: The fraction of variance unexplained, and the auxiliary loss.
        unexplained: The fraction of variance unexplained alone.
        threshold: The value that `k` codes per vector exceed in this batch, on average.
        is_active: The features with a code above the threshold.
    """

    loss: Float[Tensor, ""]
    unexplained: Float[Tensor, ""]
    threshold: Float[Tensor, ""]
    is_active: Bool[Tensor, " n"]


class SparseDictionary(torch.nn.Module):
    r"""Features that rebuild `y` from a sparse code of `x`; for an SAE, both are the same vectors.

    .. math:: h = \max(x W_\mathrm{enc} + b_\mathrm{enc}, 0), \qquad a = h\,[h > \theta], \qquad
              \hat y = a W_\mathrm{dec} + b_\mathrm{dec}

    θ is such that `k` codes per vector are active, on average over a batch. Rows of W_dec have norm 1. Inputs and outputs
    are standardised with one mean vector and one scale each, from the first batch; `folded` undoes this.

    Args:
        d_in: The width of x.
        d_out: The width of y.
        n_features: The number of features.
        k: The mean number of active features per vector.
        seed: The seed of the initial weights.
        is_sae: Whether x and y are the same vectors. The encoder then begins as the transposed decoder.
        dead_after: The number of vectors without activity after which the auxiliary loss trains a feature.

    References:
        Bussmann et al. (2024), BatchTopK sparse autoencoders, https://arxiv.org/abs/2412.06410
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, https://arxiv.org/abs/2406.04093, appendix A.2
    """

    def __init__(
        self, d_in: int, d_out: int, n_features: int, k: int, *, seed: int, is_sae: bool, dead_after: int = 200_000
    ) -> None:
        super().__init__()
        self.k, self.dead_after = k, dead_after
        generator = torch.Generator().manual_seed(seed)
        decoder = _unit_rows(torch.randn(n_features, d_out, generator=generator))
        reading = decoder if is_sae else _unit_rows(torch.randn(n_features, d_in, generator=generator))
        # Contiguous, as a checkpoint stores it: the optimizer's state must have the same strides after it is loaded.
        self.W_enc = torch.nn.Parameter(reading.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = torch.nn.Parameter(torch.zeros(n_features))
        self.W_dec = torch.nn.Parameter(decoder)
        self.b_dec = torch.nn.Parameter(torch.zeros(d_out))
        # State of the run, without gradients: parameters, so that a checkpoint contains it.
        self.input_mean = _state(torch.zeros(d_in))
        self.output_mean = _state(torch.zeros(d_out))
        self.input_scale = _state(torch.ones(()))
        self.output_scale = _state(torch.ones(()))
        self.threshold = _state(torch.zeros(()))
        self.since_active = _state(torch.zeros(n_features))  # vectors since a feature was last active

    @torch.no_grad()
    def standardise(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
        """Take means and scales from these vectors: coordinates then have mean 0, and variance 1 on average."""
        self.input_mean.copy_(x.mean(0))
        self.output_mean.copy_(y.mean(0))
        self.input_scale.copy_((x - self.input_mean).square().mean().sqrt())
        self.output_scale.copy_((y - self.output_mean).square().mean().sqrt())

    def forward(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> Evaluated:
        """The loss of a batch; nothing is changed."""
        x = (x - self.input_mean) / self.input_scale
        y = (y - self.output_mean) / self.output_scale
        h = (x @ self.W_enc + self.b_enc).float().relu()
        threshold = self._batch_threshold(h.detach())
        codes = h * (h > threshold)
        error = y - (codes @ self.W_dec + self.b_dec).float()
        loss = unexplained = error.square().mean()
        dead = self.since_active > self.dead_after
        if dead.any():
            candidates = h[:, dead]
            best, index = candidates.topk(min(y.shape[1] // 2, candidates.shape[1]), dim=1)
            dead_codes = torch.zeros_like(candidates).scatter(1, index, best)
            auxiliary = (error.detach() - dead_codes @ self.W_dec[dead]).square().mean() / unexplained.detach()
            loss = loss + AUXILIARY_WEIGHT * auxiliary
        return Evaluated(loss, unexplained.detach(), threshold, (codes.detach() > 0).any(0))

    def _batch_threshold(self, h: Float[Tensor, "n n_features"]) -> Float[Tensor, ""]:
        """The value that `k` codes per vector exceed, from evenly spaced vectors of the batch."""
        sample = h[:: max(1, len(h) // THRESHOLD_ROWS)]
        return sample.flatten().kthvalue(max(1, sample.numel() - self.k * len(sample))).values

    @torch.no_grad()
    def update(self, evaluated: Evaluated, n_vectors: int, step: int) -> None:
        """After the optimizer's step: unit rows of the decoder, the running threshold, activity."""
        self.W_dec.copy_(_unit_rows(self.W_dec))
        self.threshold.lerp_(evaluated.threshold, max(THRESHOLD_RATE, 1 / (step + 1)))
        self.since_active.add_(n_vectors).mul_(~evaluated.is_active)

    @torch.no_grad()
    def folded(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """The tensors of a JumpReLU dictionary of the vectors as they are, in SAELens's names and orientation.

        Codes are lengths in the output's units, because rows of W_dec have norm 1. The bias is computed from the
        rounded encoder, so that rounding does not shift the codes of the mean vector.
        """
        scale = self.output_scale
        W_enc = (self.W_enc * (scale / self.input_scale)).to(dtype)
        tensors = {
            "W_enc": W_enc,
            "b_enc": self.b_enc * scale - self.input_mean @ W_enc.to(self.input_mean),
            "W_dec": self.W_dec,
            "b_dec": self.b_dec * scale + self.output_mean,
            "threshold": (self.threshold * scale).expand(len(self.b_enc)),
        }
        return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}

    @property
    def n_dead(self) -> int:
        """How many features are dead at present."""
        return int((self.since_active > self.dead_after).sum())


def planned_rate(step: int, n_steps: int, peak: float) -> float:
    """The learning rate of a step: linear warm-up over 5 % of the steps, then cosine decay to zero."""
    warmup = max(1, n_steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def _unit_rows(matrix: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(matrix, dim=1)


def _state(tensor: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
