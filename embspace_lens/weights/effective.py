"""Effective weights: what a parameter reads from the residual stream, or writes to it, once the norms are accounted for."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from .. import errors
from .architectures import Block, Norm
from .experts import ALWAYS
from .host import Host
from .rotary import rotary_of

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
MLP = ("W_in", "W_gate", "W_out")
WRITING = ("W_O", "W_out")
"""Weights whose rows are added to the residual stream; the columns of all others listen to it."""


def side_of(weight: str) -> str:
    """Whether a parameter's directions `"read"` the residual stream or `"write"` to it."""
    return "write" if weight in WRITING else "read"


class Weights:
    r"""The effective weights of one TransformerLens model, read block by block; the model is never changed.

    A component sees the residual stream through a norm, $\hat x = \gamma \circ (x - \bar x) / \sigma$ (no mean is taken by an
    RMSNorm). The scale $\sigma$ differs from token to token; the rest is linear and belongs to the weight:

    .. math:: W_\mathrm{read} = (I - \tfrac{1}{d} 1 1^\top)\, \mathrm{diag}(\gamma)\, W, \qquad W_\mathrm{write} = W\, \mathrm{diag}(\gamma_\mathrm{post})

    Gains found are always folded: where the host has folded them already they are 1, and folding changes nothing.

    Args:
        model: A TransformerBridge or a HookedTransformer.
        fold_ln: With False, the weights as stored.

    Raises:
        EmbspaceError: If `model` is no TransformerLens model. Reading a weight raises it where the model has none, or where it
            could only be read wrongly (meta or quantised tensors, multi-head latent attention).

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Handling layer normalization".
    """

    def __init__(self, model: Any, *, fold_ln: bool = True) -> None:
        self.host = Host(model)
        self.fold_ln = fold_ln
        self.name = self.host.name
        self.n_layers = len(self.host.blocks)
        self.n_heads = self.host.n_heads
        self.d_model = self.host.d_model
        self.has_experts = self.host.has_experts

    def __repr__(self) -> str:
        return f"Weights({self.name}: {self.n_layers} layers, {'norms folded' if self.fold_ln else 'as stored'})"

    # -- outside the blocks

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embeddings, as stored."""
        return self.host.outer("W_E")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding behind the final norm: a whole new matrix; `unembedding` has its parts without a copy."""
        return self._read(self.host.outer("W_U"), self.host.final_norm, "W_U")

    @property
    def unembedding(self) -> tuple[Float[Tensor, "d_model d_vocab"], Norm]:
        """W_U as stored, and the norm to fold into it."""
        return self.host.outer("W_U"), self.host.final_norm if self.fold_ln else Norm()

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Learned position embeddings, as stored."""
        return self.host.outer("W_pos")

    @property
    def d_vocab(self) -> int:
        return self.host.outer("W_U").shape[1]

    # -- one block

    def W_Q(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Columns listen to the stream for what to look for."""
        return self._reading_heads(layer, "W_Q")

    def W_K(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Columns listen to the stream for what to be found by; query heads of a group share theirs."""
        return self._reading_heads(layer, "W_K")

    def W_V(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Columns listen to the stream for what to move; query heads of a group share theirs."""
        return self._reading_heads(layer, "W_V")

    def W_O(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        """Rows are what the head adds to the stream."""
        block = self._block(layer, "attn")
        return self._write(self.host.attention(block, "W_O"), block.after_attn, f"W_O of block {layer}")

    def W_OV(self, layer: int) -> FactoredMatrix:
        """Source → written, `W_V W_O`: one `d_model × d_model` matrix a head, kept as its factors."""
        return FactoredMatrix(self.W_V(layer), self.W_O(layer))

    def W_QK(self, layer: int, distance: int | None = None) -> FactoredMatrix:
        """Query × key, `W_Q W_Kᵀ`: one `d_model × d_model` form a head, kept as its factors, without position and 1/√d_head.

        With a distance, `W_Q R(Δ) W_Kᵀ` of rotary positions: a query and a key so many tokens before it.
        """
        q, k = self.W_Q(layer), self.W_K(layer)
        return FactoredMatrix(q if distance is None else q @ self.rotation(layer, distance).to(q), k.transpose(-1, -2))

    def rotation(self, layer: int, distance: int) -> Float[Tensor, "d_head d_head"]:
        """R(Δ) of rotary positions, times what a model multiplies its scores by for their sake.

        Raises:
            EmbspaceError: If the model has no rotary positions, or the distance is no number of tokens within its context.
        """
        block = self._block(layer, "attn")
        n_ctx = int(getattr(self.host.cfg, "n_ctx", 0) or 0)
        whole = hasattr(distance, "__index__") and not isinstance(distance, bool)
        if not whole or distance < 0 or (n_ctx and distance >= n_ctx):
            reach = f" and {n_ctx - 1}" if n_ctx else " and the context's length"
            raise errors.EmbspaceError(
                f"distance={distance!r} is not a number of tokens between 0{reach}, counted back from the query to the key."
            )
        d_head = self.host.attention(block, "W_O").shape[1]
        return rotary_of(self.host, block).matrix(int(distance), d_head)

    def W_in(self, layer: int, expert: int | None = None) -> Float[Tensor, "d_model d_mlp"]:
        """Columns listen to the stream: keys of the MLP's memory."""
        return self._reading_mlp(layer, "W_in", expert)

    def W_gate(self, layer: int, expert: int | None = None) -> Float[Tensor, "d_model d_mlp"]:
        """Columns listen to the stream, and decide by the activation function whether the neuron speaks."""
        return self._reading_mlp(layer, "W_gate", expert)

    def W_out(self, layer: int, expert: int | None = None) -> Float[Tensor, "d_mlp d_model"]:
        """Rows are what a neuron adds to the stream: values of the MLP's memory."""
        block = self._block(layer, "mlp")
        raw = self.host.mlp(block, "W_out", self._expert(block, expert))
        return self._write(raw, block.after_mlp, f"W_out of block {layer}")

    # -- any of them

    def layers_with(self, kind: str) -> list[int]:
        """The numbers of the blocks that have attention (`"attn"`) or an MLP (`"mlp"`)."""
        return [block.layer for block in self.host.blocks if getattr(block, kind) is not None]

    def experts(self, layer: int) -> list[int]:
        """The experts of a block, none where the architecture has no mixtures; −1 is one that every token passes."""
        return self.host.experts(self._block(layer, "mlp"))

    def d_mlp(self, layer: int, expert: int | None = None) -> int:
        """How many neurons the block's MLP (or its expert) has."""
        block = self._block(layer, "mlp")
        weight = self.host.mlp(block, "W_out", self._expert(block, expert))
        assert weight is not None
        return weight.shape[0]

    def is_gated(self, layer: int) -> bool:
        """Whether the block's MLP has a W_gate."""
        block = self._block(layer, "mlp")
        return self.host.mlp(block, "W_gate", (self.host.experts(block) or [ALWAYS])[-1]) is not None

    def directions(self, weight: str, layer: int, expert: int | None = None) -> Float[Tensor, "*heads unit d_model"]:
        """The residual directions of a weight, one a row: columns of what reads, rows of what writes.

        Returns:
            `[d_mlp, d_model]` for W_in, W_gate and W_out; `[n_heads, d_head, d_model]` for W_Q, W_K, W_V and W_O.
        """
        read: Callable[..., Tensor] = getattr(self, weight)
        matrix = read(layer, expert) if weight in MLP else read(layer)
        return matrix if weight in WRITING else matrix.transpose(-1, -2)

    def folded_into(self, weight: str, layer: int) -> str:
        """Which norm's gain the weight carries here, in words; empty for none."""
        if weight == "W_U":
            norm = self.host.final_norm
        elif weight in (*ATTENTION, *MLP):
            block = self.host.blocks[layer]
            before, after = (
                (block.before_attn, block.after_attn) if weight in ATTENTION else (block.before_mlp, block.after_mlp)
            )
            norm = after if weight in WRITING else before
        else:
            norm = Norm()
        if not self.fold_ln or not (norm.name and (norm.gain is not None or norm.centres)):
            return ""
        parts = [norm.name + " gain"] if norm.gain is not None else []
        return " + ".join([*parts, "centred"] if norm.centres else parts)

    # -- how

    def require(self, kind: str) -> None:
        """Refuse a model none of whose blocks has attention, or an MLP, that can be read."""
        if self.host.is_encoder_decoder or not self.host.blocks:
            kinds = "an encoder–decoder model" if self.host.is_encoder_decoder else "a model without blocks"
            raise errors.EmbspaceError(f"{self.name} is {kinds}: only its W_E and W_U are read.")
        if not self.layers_with(kind):
            raise errors.without(self.name, range(self.n_layers), {"attn": "attention", "mlp": "MLP"}[kind], [])

    def _block(self, layer: int, kind: str) -> Block:
        self.require(kind)
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not 0 <= layer < self.n_layers:
            raise errors.out_of_range("layer", layer, self.name, self.n_layers, "layers")
        block = self.host.blocks[layer]
        if getattr(block, kind) is None:
            raise errors.without(self.name, [layer], {"attn": "attention", "mlp": "MLP"}[kind], self.layers_with(kind))
        return block

    def _expert(self, block: Block, expert: int | None) -> int:
        experts = self.host.experts(block)
        if expert is None and len(experts) <= 1:
            return ALWAYS
        if expert is None or expert not in (experts or [ALWAYS]):
            numbers = ", ".join(map(str, experts)) or "none"
            raise errors.EmbspaceError(
                f"expert={expert!r} is not an expert of block {block.layer} of {self.name}: {numbers}."
            )
        return expert

    def _reading_heads(self, layer: int, name: str) -> Tensor:
        block = self._block(layer, "attn")
        weight = self._read(self.host.attention(block, name), block.before_attn, f"{name} of block {layer}")
        # The bridge serves the key/value heads as they are, HookedTransformer one for each query head.
        return weight.repeat_interleave(self.n_heads // len(weight), dim=0) if len(weight) < self.n_heads else weight

    def _reading_mlp(self, layer: int, name: str, expert: int | None) -> Tensor:
        block = self._block(layer, "mlp")
        raw = self.host.mlp(block, name, self._expert(block, expert))
        if raw is None:
            raise errors.EmbspaceError(f"{self.name}'s MLP in block {layer} is not gated: it has no W_gate.")
        return self._read(raw, block.before_mlp, f"{name} of block {layer}")

    def _read(self, weight: Tensor, norm: Norm, what: str) -> Tensor:
        """`[..., d_model, n]` behind `norm`, in float32 at least."""
        weight = weight.float() if weight.dtype != torch.float64 else weight
        if self.fold_ln and norm.gain is not None:
            weight = weight * norm.gain.to(weight)[:, None]
        if self.fold_ln and norm.centres:
            weight = weight - weight.mean(dim=-2, keepdim=True)
        return self._finite(weight, what)

    def _write(self, weight: Tensor | None, norm: Norm, what: str) -> Tensor:
        """`[..., n, d_model]` in front of `norm`, in float32 at least."""
        assert weight is not None
        weight = weight.float() if weight.dtype != torch.float64 else weight
        if self.fold_ln and norm.centres:
            weight = weight - weight.mean(dim=-1, keepdim=True)
        if self.fold_ln and norm.gain is not None:
            weight = weight * norm.gain.to(weight)
        return self._finite(weight, what)

    def _finite(self, weight: Tensor, what: str) -> Tensor:
        if not torch.isfinite(weight).all():
            raise errors.not_finite(f"{what} of {self.name}")
        return weight
