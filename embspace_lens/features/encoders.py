"""The non-linearities with which dictionaries of features compute their codes."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..factors.sparse_coding import sparse_codes

ActivationKind = Literal["relu", "jumprelu", "topk"]


@runtime_checkable
class Codes(Protocol):
    """A rule that computes the codes of features."""

    def codes(
        self, x: Float[Tensor, "*batch d_model"], encoder: Float[Tensor, "d_model n"], /
    ) -> Float[Tensor, "*batch n"]:
        """The codes of vectors."""
        ...


@dataclass(frozen=True, eq=False)
class SparseCoding:
    """The codes of transformer factors: sparse non-negative sums, with the L1 penalty of the fit (`factors.sparse_codes`)."""

    l1: float

    def codes(
        self, x: Float[Tensor, "*batch d_model"], encoder: Float[Tensor, "d_model n"]
    ) -> Float[Tensor, "*batch n"]:
        """The codes of vectors; the encoder's columns are the factors."""
        flat = sparse_codes(x.reshape(-1, x.shape[-1]), encoder.T, self.l1).codes
        return flat.reshape(*x.shape[:-1], encoder.shape[1])


@dataclass(frozen=True, eq=False)
class Activation:
    r"""From a vector to the codes of its features.

    .. math:: h = (x - b_\mathrm{in})\, W_\mathrm{enc} + b, \qquad
              \mathrm{relu}: \max(h, 0), \quad \mathrm{jumprelu}: \max(h, 0)\, [h > \theta], \quad
              \mathrm{topk}: \text{the } k \text{ largest of } \max(h, 0)

    Attributes:
        kind: `"relu"`, `"jumprelu"` or `"topk"`.
        bias: b; None for none.
        input_bias: What is subtracted from the vector first; None for nothing.
        threshold: θ, for `"jumprelu"`.
        k: How many codes are kept, for `"topk"`.
    """

    kind: ActivationKind = "relu"
    bias: Float[Tensor, " n"] | None = None
    input_bias: Float[Tensor, " d_model"] | None = None
    threshold: Float[Tensor, " n"] | None = None
    k: int | None = None

    def codes(
        self, x: Float[Tensor, "*batch d_model"], encoder: Float[Tensor, "d_model n"]
    ) -> Float[Tensor, "*batch n"]:
        """The codes of vectors, in the precision of x."""
        x = x if self.input_bias is None else x - self.input_bias.to(x)
        h = x @ encoder.to(x)
        h = (h if self.bias is None else h + self.bias.to(x)).relu()
        if self.kind == "jumprelu" and self.threshold is not None:
            return h * (h > self.threshold.to(x))
        if self.kind == "topk" and self.k is not None:
            best, index = h.topk(min(self.k, h.shape[-1]), dim=-1)
            return torch.zeros_like(h).scatter_(-1, index, best)
        return h
