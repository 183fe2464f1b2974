"""Effective weights: what a weight reads from the residual stream or writes to it, with the linear part of the norms."""

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..checkpoints.checkpoint import is_transpose
from ..checkpoints.lazy_tensor import LazyTensor, loaded
from ..tables.selection import Select, select
from .architectures import Block, Norm
from .circuit_factors import Circuits, HeadCircuits, factored
from .direction_rows import Directions, FoldedDirections, fold
from .experts import NO_EXPERT
from .host import AttentionWeight, Host, MLPWeight, OuterWeight
from .model_facts import ModelFacts
from .notes import collect_notes
from .parameter_names import ATTENTION, FACTORS, MLP, WRITING, Sublayer, WeightIndex, side_of, sublayer_of
from .rotary import rotation_matrix

if TYPE_CHECKING:
    import transformer_lens


class Weights(ModelFacts):
    r"""The effective weights of one TransformerLens model, read block by block; the model is never changed.

    A component reads the residual stream through a norm, $\hat x = \gamma \circ (x - \bar x) / \sigma$ (an RMSNorm does not
    subtract the mean). The scale $\sigma$ differs from token to token; the rest is linear and is folded into the weight:

    .. math:: W_\mathrm{read} = (I - \tfrac{1}{d} 1 1^\top)\, \mathrm{diag}(\gamma)\, W, \qquad W_\mathrm{write} = W\, \mathrm{diag}(\gamma_\mathrm{post})

    Gains are always folded. If TransformerLens has already folded them, they are 1, and folding changes nothing.

    Args:
        model: A TransformerBridge, a HookedTransformer, or its `Host`.
        fold_ln: Whether to fold norms into the weights; with False, weights are read as stored.

    Attributes:
        name: The model's name.
        n_layers: The number of blocks.
        n_heads: The number of query heads of a block.
        d_model: The width of the residual stream.
        has_experts: Whether any block has a mixture of experts.

    Raises:
        EmbspaceError: If `model` is not a TransformerLens model. Reading a weight raises it if the model does not have the
            weight, or if it could only be read incorrectly (meta or quantised tensors).

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Handling layer normalization".
    """

    def __init__(self, model: Any, *, fold_ln: bool = True) -> None:
        self.host = model if isinstance(model, Host) else Host(model)
        self.fold_ln = fold_ln
        self._kept: dict[str, Tensor] = {}
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
        return self._outer("W_E")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        """Unembedding with the final norm folded in, as a new matrix; `unembedding` gives its parts without a copy."""
        stored, norm = self.unembedding
        return fold(stored.T, norm, "read", f"W_U of {self.name}").T

    @property
    def unembedding(self) -> tuple[Float[Tensor, "d_model d_vocab_out"], Norm]:
        """W_U as stored, and the norm to fold into it."""
        return self._outer("W_U"), self.host.final_norm if self.fold_ln else Norm()

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Learned position embeddings, as stored."""
        return self._outer("W_pos")

    @property
    def d_vocab(self) -> int:
        """The number of tokens that the model predicts."""
        return self.host.outer("W_U").shape[1]

    # -- one block

    def W_Q(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Query directions, one per column."""
        return self.directions("W_Q", layer).mT

    def W_K(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Key directions, one per column; shared within a query group."""
        return self.directions("W_K", layer).mT

    def W_V(self, layer: int) -> Float[Tensor, "n_heads d_model d_head"]:
        """Value directions, one per column; shared within a query group."""
        return self.directions("W_V", layer).mT

    def W_O(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        """Output directions, one per row."""
        return self.directions("W_O", layer)

    def W_OV(self, layer: int) -> "transformer_lens.FactoredMatrix":
        """The OV circuit `W_V W_O` of each head, from source to output: `d_model × d_model`, stored as two factors."""
        return factored(self.circuits("W_OV", layer))

    def W_QK(self, layer: int, distance: int | None = None) -> "transformer_lens.FactoredMatrix":
        """The QK circuit `W_Q W_Kᵀ` of each head, query × key: `d_model × d_model`, stored as two factors.

        Positions, norms of queries and keys, the rotary part of multi-head latent attention and the factor 1/√d_head are left
        out. With a distance, rotary positions are included: `W_Q R(Δ) W_Kᵀ` for a key that is `distance` tokens before its query.
        """
        return factored(self.circuits("W_QK", layer, distance))

    def circuits(self, name: str, layer: int, distance: int | None = None) -> Circuits:
        """W_OV or W_QK of a block's heads, made head by head: `circuits[head]` are the factors of one, `left @ right.mT`."""
        left, right = (self.direction_rows(weight, layer) for weight in FACTORS[name])
        return HeadCircuits(left, right, None if distance is None else self.rotation(layer, distance))

    def rotation(self, layer: int, distance: int) -> Float[Tensor, "d_head d_head"]:
        """The rotation R(Δ) of rotary positions, times the factor by which some models scale rotated scores.

        Raises:
            EmbspaceError: If the model has no rotary positions, or the distance is not within its context window.
        """
        return rotation_matrix(self.host, self._block(layer, "attn"), distance)

    def W_in(self, layer: int, expert: int = NO_EXPERT) -> Float[Tensor, "d_model d_mlp"]:
        """Input directions of the neurons, one per column: the keys of the MLP's key-value memory."""
        return self.directions("W_in", layer, expert).mT

    def W_gate(self, layer: int, expert: int = NO_EXPERT) -> Float[Tensor, "d_model d_mlp"]:
        """Gate directions of the neurons, one per column."""
        return self.directions("W_gate", layer, expert).mT

    def W_out(self, layer: int, expert: int = NO_EXPERT) -> Float[Tensor, "d_mlp d_model"]:
        """Output directions of the neurons, one per row: the values of the MLP's key-value memory."""
        return self.directions("W_out", layer, expert)

    # -- blocks, heads and MLPs

    def layers_with(self, sublayer: Sublayer) -> list[int]:
        """The indices of the blocks that have attention (`"attn"`) or an MLP (`"mlp"`)."""
        return self.host.layers_with(sublayer)

    def select_layers(self, layer: Select, sublayer: Sublayer) -> list[int]:
        """The selected blocks, all of which have the sublayer; with None or a slice, blocks without it are omitted.

        Raises:
            EmbspaceError: If a layer is out of range, a selected block lacks the sublayer, or no block has it.
        """
        readable_layers = self._readable_layers(sublayer)
        selected = self.select_any_layers(layer)
        if layer is None or isinstance(layer, slice):
            return [index for index in selected if index in readable_layers]
        missing = [index for index in selected if index not in readable_layers]
        if missing:
            raise errors.blocks_lack(self.name, missing, sublayer, readable_layers)
        return selected

    def select_any_layers(self, layer: Select) -> list[int]:
        """The selected blocks, with or without attention and an MLP."""
        return select("layer", layer, self.n_layers, self.name, "layers")

    def select_heads(self, head: Select) -> list[int]:
        """The selected query heads."""
        return select("head", head, self.n_heads, self.name, "heads")

    def mlps(self, layer: Select = None, expert: Select = None) -> list[WeightIndex]:
        """The MLPs of the selected blocks, one per expert in a mixture; `expert=-1` selects dense and shared MLPs.

        Raises:
            EmbspaceError: As for `select_layers`; or if experts are selected and the model has no mixture.
        """
        indices = [WeightIndex(i, j) for i in self.select_layers(layer, "mlp") for j in self.experts(i)]
        if expert is None:
            return indices
        if not self.has_experts:
            raise errors.no_experts(self.name, expert)
        if isinstance(expert, int) and expert == NO_EXPERT:
            return [index for index in indices if index.expert == NO_EXPERT]
        n_experts = 1 + max((index.expert for index in indices), default=NO_EXPERT)
        selected = select("expert", expert, n_experts, self.name, "experts in a block")
        return [index for index in indices if index.expert in selected]

    def experts(self, layer: int) -> list[int]:
        """The experts of a block's MLP; −1 stands for a dense MLP, or for the shared expert of a mixture."""
        return self.host.experts(self._block(layer, "mlp"))

    def d_mlp(self, layer: int, expert: int = NO_EXPERT) -> int:
        """The number of neurons of the block's MLP, or of one of its experts."""
        block = self._block(layer, "mlp")
        return self._stored_mlp(block, "W_out", self._expert(block, expert)).shape[0]

    def is_gated(self, layer: int) -> bool:
        """Whether the block's MLP has a W_gate."""
        block = self._block(layer, "mlp")
        return self.host.mlp(block, "W_gate", self.host.experts(block)[-1]) is not None

    # -- any weight by its name

    def directions(
        self, weight: str, layer: int, expert: int = NO_EXPERT
    ) -> Float[Tensor, "n_heads d_head d_model"] | Float[Tensor, "d_mlp d_model"]:
        """The residual directions of a weight, one per row: columns of reading weights, rows of writing weights.

        Returns:
            `[d_mlp, d_model]` for W_in, W_gate and W_out; `[n_heads, d_head, d_model]` for W_Q, W_K, W_V and W_O.
        """
        return self.direction_rows(weight, layer, expert)[:]

    def direction_rows(self, weight: str, layer: int, expert: int = NO_EXPERT) -> Directions:
        """The directions of a weight, made on demand: `rows[index]` are those of some neurons or heads; otherwise as `directions`."""
        sublayer, side = sublayer_of(weight), side_of(weight)
        block = self._block(layer, sublayer)
        group = 1
        if sublayer == "mlp":
            stored = self._stored_mlp(block, cast(MLPWeight, weight), self._expert(block, expert))
        else:
            stored = self.host.attention(block, cast(AttentionWeight, weight), fold_inner=self.fold_ln)
            # A bridge has one matrix per key-value head, a HookedTransformer one per query head.
            group = self.n_heads // len(stored)
        stored = loaded(stored) if side == "write" else loaded(stored).mT
        norm = self.norm(weight, layer) if self.fold_ln else Norm()
        return FoldedDirections(stored, norm, side, f"{weight} of block {layer} of {self.name}", group=group)

    def stored(self, weight: str, layer: int = -1, expert: int = NO_EXPERT) -> Tensor:
        """A weight as the model stores it, without norms; layer −1 for W_E, W_U and W_pos."""
        if layer < 0:
            return self._outer(cast(OuterWeight, weight))
        block = self.host.blocks[layer]
        if weight in ATTENTION:
            return loaded(self.host.attention(block, cast(AttentionWeight, weight)))
        return loaded(self._stored_mlp(block, cast(MLPWeight, weight), expert))

    def norm(self, weight: str, layer: int = -1) -> Norm:
        """The norm that is folded into a weight: before a reading weight, after a writing weight."""
        if weight == "W_U":
            return self.host.final_norm
        if weight not in (*ATTENTION, *MLP):
            return Norm()
        position = "after" if weight in WRITING else "before"
        return getattr(self.host.blocks[layer], f"{position}_{sublayer_of(weight)}")

    def dtype_of_factors(self, weight: str, layer: int) -> torch.dtype | None:
        """The precision of the two factors of a weight in multi-head latent attention; None for a weight of one matrix."""
        return self.host.dtype_of_factors(self.host.blocks[layer], weight) if weight in ATTENTION else None

    def inner_norm(self, weight: str, layer: int = -1) -> Norm:
        """The norm between the two factors of a weight in multi-head latent attention; its gain is folded in."""
        if weight not in ATTENTION:
            return Norm()
        return self.host.inner_norm(self.host.blocks[layer], cast(AttentionWeight, weight))

    def folded(self, weight: str, layer: int = -1) -> str:
        """What was folded into a weight, as text: `ln1 gain + centred`; empty for nothing."""
        norm, inner = self.norm(weight, layer), self.inner_norm(weight, layer)
        if not self.fold_ln:
            return ""
        parts = {f"{each.name} gain": each.gain is not None for each in (norm, inner) if each.name}
        parts["centred"] = norm.centres
        return " + ".join(part for part, is_folded in parts.items() if is_folded)

    def notes(self) -> dict[str, str]:
        """Scales, caps and norms between a weight and its effect, by weight."""
        return self.host.notes or collect_notes(self.host)

    # -- internals

    def _outer(self, name: OuterWeight) -> Tensor:
        """Embeddings as stored. Those of a checkpoint are kept, because every reading needs them."""
        stored = self.host.outer(name)
        if not isinstance(stored, LazyTensor):
            return stored
        if name not in self._kept:
            is_tied = name == "W_U" and is_transpose(stored, self.host.outer("W_E"))
            self._kept[name] = self._outer("W_E").T if is_tied else stored.read()
        return self._kept[name]

    def _readable_layers(self, sublayer: Sublayer) -> list[int]:
        """The blocks that have the sublayer, at least one."""
        if self.host.is_encoder_decoder or not self.host.blocks:
            raise errors.no_readable_blocks(self.name, self.host.is_encoder_decoder)
        if not (layers := self.layers_with(sublayer)):
            raise errors.blocks_lack(self.name, range(self.n_layers), sublayer, [])
        return layers

    def _block(self, layer: int, sublayer: Sublayer) -> Block:
        readable_layers = self._readable_layers(sublayer)
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not 0 <= layer < self.n_layers:
            raise errors.out_of_range("layer", layer, self.name, self.n_layers, "layers")
        if layer not in readable_layers:
            raise errors.blocks_lack(self.name, [layer], sublayer, readable_layers)
        return self.host.blocks[layer]

    def _expert(self, block: Block, expert: int) -> int:
        experts = self.host.experts(block)
        if expert not in experts:
            raise errors.no_such_expert(self.name, block.layer, expert, experts)
        return expert

    def _stored_mlp(self, block: Block, name: MLPWeight, expert: int) -> Tensor:
        weight = self.host.mlp(block, name, expert)
        if weight is None:
            raise errors.not_gated(self.name, block.layer)
        return weight
