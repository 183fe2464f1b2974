"""The non-linearities with which dictionaries of features compute their codes."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..factors.sparse_coding import sparse_codes
from ..search.tiles import PART_SCALE, chunks

ActivationKind = Literal[
    "relu", "tanh_relu", "jumprelu", "threshold", "topk", "signed_topk", "linear_topk", "groupmax", "gated"
]
Normalization = Literal["", "layer_norm", "constant_norm_rescale", "expected_average_only_in"]


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

    .. math:: h = (N(x) - b_\mathrm{in})\, W_\mathrm{enc} + b

    =============  =======================================================================================
    kind           codes
    =============  =======================================================================================
    relu           max(h, 0)
    tanh_relu      tanh(max(h, 0))
    jumprelu       max(h, 0) · [h > θ]
    threshold      h · [h > θ], which differs from jumprelu where θ < 0
    topk           the k largest of max(h, 0); the others are 0
    linear_topk    the k largest of h, also those below 0
    signed_topk    the k values of h with the largest \|h\|
    groupmax       of max(h, 0), the largest in each of k groups of n/k consecutive features
    gated          [u + g > 0] · max(u · exp(r) + b, 0) with u = h − b
    =============  =======================================================================================

    The vector is normalised first, by N: nothing; `"layer_norm"`, (x − mean) / (std + 1e-5) with the unbiased standard
    deviation; `"constant_norm_rescale"`, x √d_model / ‖x‖; or `"expected_average_only_in"`, a factor that the file does not
    contain, so that codes cannot be computed.

    Attributes:
        kind: One of the kinds above.
        bias: b; None for none.
        input_bias: b_in, which is subtracted from the vector; None for nothing.
        threshold: θ, for `"jumprelu"` and `"threshold"`.
        k: How many codes are kept, for the kinds with k.
        gate_bias: g, for `"gated"`.
        log_gain: r, for `"gated"`.
        normalization: N, by SAELens's names; empty for nothing.
    """

    kind: ActivationKind = "relu"
    bias: Float[Tensor, " n"] | None = None
    input_bias: Float[Tensor, " d_model"] | None = None
    threshold: Float[Tensor, " n"] | None = None
    k: int | None = None
    gate_bias: Float[Tensor, " n"] | None = None
    log_gain: Float[Tensor, " n"] | None = None
    normalization: Normalization = ""

    def codes(
        self, x: Float[Tensor, "*batch d_model"], encoder: Float[Tensor, "d_model n"]
    ) -> Float[Tensor, "*batch n"]:
        """The codes of vectors, in the precision of x.

        Raises:
            EmbspaceError: If the vectors must be scaled by a factor that is unknown.
        """
        x = self.normalized(x)
        u = columns_product(x if self.input_bias is None else x - self.input_bias.to(x), encoder)
        if self.kind == "gated" and self.gate_bias is not None and self.log_gain is not None:
            gate = u + self.gate_bias.to(u) > 0
            return gate * _plus(u * self.log_gain.to(u).exp(), self.bias).relu()
        h = _plus(u, self.bias)
        if self.kind in ("jumprelu", "threshold") and self.threshold is not None:
            return (h.relu() if self.kind == "jumprelu" else h) * (h > self.threshold.to(h))
        if self.kind in ("linear_topk", "signed_topk") and self.k is not None:
            return _keep_largest(h, h.abs() if self.kind == "signed_topk" else h, self.k)
        h = h.relu()
        if self.kind == "tanh_relu":
            return h.tanh()
        if self.kind == "topk" and self.k is not None:
            return _keep_largest(h, h, self.k)
        if self.kind == "groupmax" and self.k is not None:
            groups = h.unflatten(-1, (self.k, -1))
            return _keep_largest(groups, groups, 1).flatten(-2)
        return h

    def normalized(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """N(x).

        Raises:
            EmbspaceError: If the vectors must be scaled by a factor that is unknown.
        """
        if self.normalization == "expected_average_only_in":
            raise errors.unknown_input_scale()
        mean, scale = self._moments(x)
        if self.normalization == "layer_norm":
            scale = scale + 1e-5
        return (x - mean) / scale if self.normalization else x

    def denormalized(
        self, written: Float[Tensor, "*batch d_model"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """A reconstruction of N(x), as a reconstruction of x."""
        mean, scale = self._moments(x)
        return written * scale + mean if self.normalization else written

    def _moments(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch one"], Float[Tensor, "*batch one"]]:
        """What is subtracted from vectors, and what they are divided by."""
        if self.normalization == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return torch.zeros_like(x[..., :1]), x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5


def _plus(h: Float[Tensor, "*batch n"], bias: Float[Tensor, " n"] | None) -> Float[Tensor, "*batch n"]:
    return h if bias is None else h + bias.to(h)


def _keep_largest(h: Float[Tensor, "*batch n"], score: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch n"]:
    """The values with the k largest scores; the others are 0."""
    index = score.topk(min(k, h.shape[-1]), dim=-1).indices
    return torch.zeros_like(h).scatter_(-1, index, h.gather(-1, index))


def columns_product(
    x: Float[Tensor, "*batch d_model"], matrix: Float[Tensor, "d_model n"]
) -> Float[Tensor, "*batch n"]:
    """X W in the precision of x. A matrix of another precision is converted part by part, never as a whole."""
    if matrix.dtype == x.dtype:
        return x @ matrix.to(x.device)
    product = x.new_empty(*x.shape[:-1], matrix.shape[1])
    for part in chunks(matrix.shape[1], x.element_size() * len(matrix), scale=PART_SCALE):
        product[..., part] = x @ matrix[:, part].to(x)
    return product


def rows_product(x: Float[Tensor, "*batch n"], matrix: Float[Tensor, "n d_model"]) -> Float[Tensor, "*batch d_model"]:
    """The same for a matrix whose rows are features."""
    if matrix.dtype == x.dtype:
        return x @ matrix.to(x.device)
    product = x.new_zeros(*x.shape[:-1], matrix.shape[1])
    for part in chunks(len(matrix), x.element_size() * matrix.shape[1], scale=PART_SCALE):
        product += x[..., part] @ matrix[part].to(x)
    return product
