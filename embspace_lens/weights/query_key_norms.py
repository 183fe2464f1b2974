"""Norms of queries and keys: what they compute in each block, as linear maps and scales of residual vectors."""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..checkpoints.lazy_tensor import loaded
from .architectures import ROTATES_BEFORE_NORM, Block
from .attention_scores import attention_bias
from .effective import Weights
from .host import Host
from .modules import readable, unwrap
from .weight_difference import WeightDifference

Letter = Literal["Q", "K"]


class HeadNorm(NamedTuple):
    """The norm of a block's queries or keys.

    Attributes:
        gain: The factors, one row per head, or one row for all heads; None for a norm without parameters.
        over_all_heads: Whether all heads of a token have one scale (OLMo 2, OLMoE); otherwise each head has its own.
        centres: Whether the norm subtracts the mean over d_head, as a LayerNorm does.
        eps: What is added to the mean square.
    """

    gain: Float[Tensor, "n d_head"] | None
    over_all_heads: bool
    centres: bool
    eps: float


class NormalizedProjection(NamedTuple):
    r"""The normalised queries or keys of one head, as a function of a residual vector x of length ℓ(x).

    .. math:: \frac{(x W / \ell + b)\, M}{\sqrt{\operatorname{mean}_{h,i}((x W_h / \ell + b_h)_i^2) + \epsilon}}

    ℓ(x) is the root mean square of x (centred if the norm before attention is a LayerNorm), or 1 without such a norm. The epsilon
    of that norm is left out, because its effect depends on the scale of the residual stream.

    Attributes:
        weight: W, the head's effective weight.
        bias: b, with the bias of the norm before attention; None for 0.
        output: M, the gain, and for queries at a distance the rotation.
        scale_weights: W_h, the heads whose mean square is the squared scale: this head alone, or all heads.
        scale_biases: b_h, their biases; None for 0.
        eps: ε; 0 without a norm before attention, because the scale of the residual stream is then unknown.
        length: How ℓ is computed: `"rms"`, `"centred rms"`, or `"one"`.
        scale_group: Projections of a side with equal groups have equal scales.
        output_group: Projections of a side with equal groups have equal outputs.
    """

    weight: Float[Tensor, "d_model d_head"]
    bias: Float[Tensor, " d_head"] | None
    output: Float[Tensor, "d_head d_head"]
    scale_weights: Float[Tensor, "n d_model d_head"]
    scale_biases: Float[Tensor, "n d_head"] | None
    eps: float
    length: Literal["rms", "centred rms", "one"]
    scale_group: int
    output_group: int


class NormalizedCircuit:
    """The queries and keys of all heads of a block, both normalised.

    Args:
        weights: The model's effective weights.
        layer: The block.
        distance: How many positions the key is before the query; None leaves positions out.
        sign: The factor of the scores: −1 for the model before tuning in a difference.

    Raises:
        EmbspaceError: As `Weights.rotation`; or if a distance does not determine the scores.
    """

    def __init__(self, weights: Weights, layer: int, distance: int | None = None, sign: int = 1) -> None:
        self.weights, self.layer, self.sign = weights, layer, sign
        self.norms = head_norms(weights.host, weights.host.blocks[layer])
        self._stacked = {letter: getattr(weights, f"W_{letter}")(layer) for letter in ("Q", "K")}
        self._rotation = None
        if distance is not None:
            self._rotation = weights.rotation(layer, distance)
            if weights.host.architecture.startswith(ROTATES_BEFORE_NORM):
                self._rotation = self._rotation / torch.linalg.matrix_norm(self._rotation, ord=2)
                self._check_gains()

    def query(self, head: int) -> NormalizedProjection:
        """The queries of a head."""
        projection = self._projection("Q", head)
        if self._rotation is None:
            return projection
        return projection._replace(output=projection.output @ self._rotation.to(projection.output))

    def key(self, head: int) -> NormalizedProjection:
        """The keys of a query head, times the circuit's sign."""
        projection = self._projection("K", head)
        return projection._replace(output=projection.output * self.sign)

    def _projection(self, letter: Letter, head: int) -> NormalizedProjection:
        norm, stacked = self.norms[letter], self._stacked[letter]
        n_heads = len(stacked)
        group = self._group(letter)
        before = self.weights.host.blocks[self.layer].before_attn
        heads = slice(None, None, group) if norm.over_all_heads else slice(head, head + 1)
        weights = stacked[heads]
        biases = torch.stack([self._bias(letter, h) for h in range(n_heads)[heads]])
        weight, bias = stacked[head], self._bias(letter, head)
        if norm.centres:
            weight, bias = (x - x.mean(dim=-1, keepdim=True) for x in (weight, bias))
            weights, biases = (x - x.mean(dim=-1, keepdim=True) for x in (weights, biases))
        return NormalizedProjection(
            weight=weight,
            bias=bias if bias.any() else None,
            output=torch.diag(self._gain(letter, head)),
            scale_weights=weights,
            scale_biases=biases if biases.any() else None,
            eps=norm.eps if before.name else 0.0,
            length=("centred rms" if before.centres else "rms") if before.name else "one",
            scale_group=-1 if norm.over_all_heads else head // group,
            output_group=head // group,
        )

    def _group(self, letter: Letter) -> int:
        """How many query heads share a projection: those of a query group for keys."""
        if letter == "Q":
            return 1
        host = self.weights.host
        n_stored = len(host.attention(host.blocks[self.layer], "W_K"))
        # A HookedTransformer has one matrix per query head.
        return self.weights.n_heads // (n_stored if host.is_bridge else host.n_key_value_heads)

    def _bias(self, letter: Letter, head: int) -> Float[Tensor, " d_head"]:
        stacked = self._stacked[letter]
        bias = attention_bias(self.weights, self.layer, head, "b_Q" if letter == "Q" else "b_K")
        return bias.to(stacked).expand(stacked.shape[-1])

    def _gain(self, letter: Letter, head: int) -> Float[Tensor, " d_head"]:
        gain, stacked = self.norms[letter].gain, self._stacked[letter]
        if gain is None:
            return stacked.new_ones(stacked.shape[-1])
        return gain[head // (self.weights.n_heads // len(gain))].to(stacked)

    def _check_gains(self) -> None:
        """Check that the gains commute with rotations, if they multiply rotated queries and keys."""
        step = self.weights.rotation(self.layer, 1)
        for head in range(self.weights.n_heads):
            gain = (self._gain("Q", head) * self._gain("K", head)).to(step)
            if not torch.allclose(gain[:, None] * step, step * gain):
                raise errors.gains_after_rotation(self.weights.name)


def normalized_circuits(weights: Weights, layer: int, distance: int | None = None) -> list[NormalizedCircuit]:
    """The circuits whose scores add up to a head's pair scores, where queries and keys are normalised.

    Returns:
        One circuit; two for a difference of models; none if the block does not normalise queries and keys, or weights are
        read as stored.
    """
    if not weights.fold_ln:
        return []
    if isinstance(weights, WeightDifference):
        after, before = (normalized_circuits(part, layer, distance) for part in (weights.after, weights.before))
        for circuit in before:
            circuit.sign = -circuit.sign
        return after + before
    if not weights.host.has_head_norms(weights.host.blocks[layer]):
        return []
    return [NormalizedCircuit(weights, layer, distance)]


def head_norms(host: Host, block: Block) -> dict[Letter, HeadNorm]:
    """The norms of a block's queries and keys; only for a block that has both."""
    d_head = host.attention(block, "W_O").shape[1]
    q_norm, k_norm = host.query_key_norms(block)
    return {"Q": _head_norm(host, q_norm, d_head, "q_norm"), "K": _head_norm(host, k_norm, d_head, "k_norm")}


def _head_norm(host: Host, module: Any, d_head: int, label: str) -> HeadNorm:
    original: Any = unwrap(module)
    kind = type(original).__name__
    norm = host.norm_of(module, label)
    gain, centres = norm.gain, norm.centres and "L2Norm" not in kind
    parts = getattr(original, "norms", None)  # StableLM 2 has one LayerNorm for each head
    if parts is not None:
        gain = torch.stack([loaded(readable(part.weight, label, host.name)).float() for part in parts])
        original = parts[0]
    over_all_heads = gain is not None and gain.ndim == 1 and len(gain) != d_head
    eps = next((getattr(original, name) for name in ("variance_epsilon", "eps") if hasattr(original, name)), host.eps)
    return HeadNorm(None if gain is None else gain.reshape(-1, d_head), over_all_heads, centres, float(eps))
