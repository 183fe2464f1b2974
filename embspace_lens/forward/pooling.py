"""A classifier's head: hidden states, averaged over the tokens, to one score a class."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import EmbspaceError


class PooledHead(nn.Module):
    r"""Score classes from hidden states averaged over a text's own tokens.

    .. math:: \mathrm{logits} = W \cdot \operatorname{mean}_{t \in \mathrm{mask}} x_t + b

    Args:
        d_model: Width of the residual stream.
        labels: Names of the classes.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5 (their classifier, without the final norm).
    """

    def __init__(self, d_model: int, labels: Sequence[str]) -> None:
        super().__init__()
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise EmbspaceError(f"labels={list(labels)!r} does not name two or more different classes.")
        self.labels = tuple(labels)
        self.linear = nn.Linear(d_model, len(labels))

    @property
    def d_model(self) -> int:
        return self.linear.in_features

    @property
    def directions(self) -> Float[Tensor, "n_classes d_model"]:
        """What each class listens to: vectors for `lens.directions(…, side="read")`, their mean taken out."""
        weight = self.linear.weight.detach()
        return weight - weight.mean(dim=0)

    def forward(
        self, states: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch n_classes"]:
        return self.linear(pool(states, mask).to(self.linear.weight))


def pool(states: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d_model"]:
    """The mean over the masked positions; zero where there is none."""
    weight = mask.to(states.device, torch.float32)
    total = (states.float() * weight[..., None]).sum(dim=1)
    return total / weight.sum(dim=1, keepdim=True).clamp_min(1)
