"""The head of a classifier: the mean of hidden states over tokens → one logit per class."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import errors


class PooledHead(nn.Module):
    r"""Classify texts by the mean of their hidden states.

    .. math:: \mathrm{logits} = W \cdot \operatorname{mean}_{t \in \mathrm{mask}} x_t + b

    Args:
        d_model: The width of the residual stream.
        labels: The names of the classes.

    Raises:
        EmbspaceError: If there are fewer than two different labels.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5 (their classifier, without the final norm).
    """

    def __init__(self, d_model: int, labels: Sequence[str]) -> None:
        super().__init__()
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise errors.bad_labels(list(labels))
        self.labels = tuple(labels)
        self.linear = nn.Linear(d_model, len(labels))

    @property
    def d_model(self) -> int:
        return self.linear.in_features

    @property
    def directions(self) -> Float[Tensor, "n_classes d_model"]:
        """The direction that each class reads, minus their mean; for `lens.directions(…, side="read")`."""
        weight = self.linear.weight.detach()
        return weight - weight.mean(dim=0)

    def forward(
        self, states: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch n_classes"]:
        return self.linear(pool(states, mask).to(self.linear.weight))


def pool(states: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch d_model"]:
    """The mean over the masked positions; zero for a row without any."""
    weight = mask.to(states.device, torch.float32)
    total = (states.float() * weight[..., None]).sum(dim=1)
    return total / weight.sum(dim=1, keepdim=True).clamp_min(1)
