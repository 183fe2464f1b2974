"""The stored parameters of a TransformerLens model, read block by block.

A weight is read from its block and not from the model: `model.W_Q` copies all layers, and in hybrid models its first
index is not the block's index.
"""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from ..checkpoints.lazy_tensor import loaded
from .architectures import (
    FUSED_IN,
    HEADS_BEFORE_UNEMBED,
    OFFSET_NORMS,
    OUTPUT_NORM,
    POST_NORM,
    UNSCALED_ATTENTION,
    Block,
    Norm,
)
from .configuration import context_length
from .experts import NO_EXPERT, ExpertWeights
from .head_matrices import falcon_heads, heads_of_linear_layers
from .latent_attention import is_latent, latent_factors, latent_modules, latent_output, latent_scale
from .modules import attribute, position_embeddings, readable, unwrap
from .parameter_names import Sublayer

OuterWeight = Literal["W_E", "W_U", "W_pos"]
AttentionWeight = Literal["W_Q", "W_K", "W_V", "W_O"]
MLPWeight = Literal["W_in", "W_gate", "W_out"]


class Host:
    """The parameters of a TransformerBridge or a HookedTransformer.

    Attributes:
        tokenizer: The model's tokenizer; None if it does not have one.
        notes: The model's notes, if they are recorded; otherwise empty (see `collect_notes`).

    Raises:
        EmbspaceError: If `model` is neither.
    """

    def __init__(self, model: Any) -> None:
        if not (isinstance(model, nn.Module) and hasattr(model, "cfg") and hasattr(model, "unembed")):
            raise errors.not_transformer_lens(type(model).__name__)
        self.model = model
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        self.notes: dict[str, str] = {}
        self.is_bridge = "adapter" in model.__dict__
        cfg: Any = model.cfg
        self.cfg = cfg
        self.architecture = str((cfg.architecture if self.is_bridge else None) or type(model).__name__)
        self.hf_config = getattr(model.original_model, "config", None) if self.is_bridge else None
        # The configuration of the language model in a model for texts and images.
        self.text_config = getattr(self.hf_config, "text_config", None)
        name = str(getattr(cfg, "model_name", None) or self.architecture)
        self.name = Path(name).name if Path(name).is_absolute() else name
        self.n_heads = int(cfg.n_heads)
        self.d_model = int(cfg.d_model)
        self.checkpoint = getattr(model, "__dict__", {}).get("checkpoint")
        self.blocks = [self._block(i, block) for i, block in enumerate(cast(Any, model._modules.get("blocks")) or [])]

    # -- configuration

    def from_config(self, name: str, default: Any = None) -> Any:
        """A field of the Hugging Face configuration or, if it is missing there, of TransformerLens's configuration."""
        value = getattr(self.text_config, name, None)
        value = getattr(self.hf_config, name, None) if value is None else value
        return getattr(self.cfg, name, default) if value is None else value

    @property
    def is_encoder_decoder(self) -> bool:
        return "decoder_blocks" in self.model._modules

    @property
    def is_post_norm(self) -> bool:
        """Whether the norms of a block normalize the residual stream after its sublayers."""
        opt = self.architecture == "OPTForCausalLM" and not self.from_config("do_layer_norm_before", True)
        return self.architecture in POST_NORM or opt

    @property
    def n_ctx(self) -> int | None:
        """The length of the context window; None if the configuration does not state it."""
        return context_length(self.model)

    @property
    def eps(self) -> float:
        """The epsilon of the norms."""
        return float(self.cfg.eps)

    @property
    def n_key_value_heads(self) -> int:
        """The number of key-value heads of a block."""
        if self.has_latent_attention:
            return self.n_heads  # the latent vector is shared, the keys and values are not
        return int(getattr(self.cfg, "n_key_value_heads", None) or self.n_heads)

    @property
    def has_latent_attention(self) -> bool:
        """Whether the blocks have multi-head latent attention."""
        return any(is_latent(block.attn) for block in self.blocks)

    @property
    def splits_falcon_incorrectly(self) -> bool:
        """Whether TransformerLens splits the fused queries, keys and values of this Falcon model in the wrong order."""
        return self.architecture == "FalconForCausalLM" and bool(self.from_config("new_decoder_architecture", False))

    @property
    def residual_multiplier(self) -> float:
        """The factor of a block's outputs when they are added to the residual stream (Granite)."""
        return float(self.from_config("residual_multiplier") or 1)

    def score_scale(self, layer: int, d_head: int) -> float:
        """The factor of the products of queries and keys before the softmax, 1/√d_head in most models."""
        if not self.is_bridge:
            attn: Any = self.blocks[layer].attn
            return 1 / float(attn.attn_scale)
        attention: Any = self.blocks[layer].attn
        latent = latent_scale(attention) if is_latent(attention) else None
        if latent is not None:
            return latent
        if self.architecture in UNSCALED_ATTENTION or not self.from_config("scale_attn_weights", True):
            return 1.0
        mpt_scale = getattr(self.from_config("attn_config"), "softmax_scale", None)
        scale = mpt_scale or self.from_config("attention_multiplier")
        scale = scale or (self.from_config("query_pre_attn_scalar") or d_head) ** -0.5
        return float(scale) / (layer + 1 if self.from_config("scale_attn_by_inverse_layer_idx", False) else 1)

    # -- blocks and norms

    def layers_with(self, sublayer: Sublayer) -> list[int]:
        """The indices of the blocks that have attention (`"attn"`) or an MLP (`"mlp"`)."""
        return [block.layer for block in self.blocks if getattr(block, sublayer) is not None]

    def _block(self, layer: int, block: nn.Module) -> Block:
        modules = dict(block._modules)
        if self.architecture in OUTPUT_NORM and "ln1_post" not in modules:
            modules["ln1_post"], modules["ln2_post"] = modules.pop("ln1", None), modules.pop("ln2", None)
        if self.architecture == "OlmoHybridForCausalLM" and "ln2" in modules and "ln1" not in modules:
            modules["ln1_post"] = modules.pop("ln2")  # TransformerLens 3.9
        if self.is_post_norm:
            modules = {name: module for name, module in modules.items() if not name.startswith("ln")}
        # Granite's hybrid models have a mixture named "moe", and an MLP next to it.
        mlp = next((modules[name] for name in ("mlp", "moe", "shared_mlp") if modules.get(name) is not None), None)
        shared = modules.get("shared_mlp")
        # In a parallel block without a second norm, attention and MLP read the same normalized vector.
        mlp_norm = "ln2" if "ln2" in modules or "ln2_post" in modules else "ln1"
        return Block(
            layer=layer,
            attn=modules.get("attn"),
            mlp=mlp,
            shared=shared if shared is not mlp else None,
            before_attn=self._norm(modules, "ln1"),
            after_attn=self._norm(modules, "ln1_post"),
            before_mlp=self._norm(modules, mlp_norm),
            after_mlp=self._norm(modules, "ln2_post"),
        )

    def _norm(self, modules: Any, name: str) -> Norm:
        module = modules.get(name)
        return Norm() if module is None else self.norm_of(module, name)

    def norm_of(self, module: nn.Module, name: str) -> Norm:
        """The norm that a module computes; none if the module is an identity."""
        original: Any = unwrap(module)
        if isinstance(original, nn.Identity) or (self.is_bridge and original is module):
            return Norm()  # this block has no such norm, or the bridge has no module for it
        kind = type(original).__name__
        is_rms = "RMS" in kind or bool(self.is_bridge and getattr(module, "uses_rms_norm", False))
        # A HookedTransformer's norm has .w and .b.
        gain = getattr(original, "weight", None)
        gain = getattr(original, "w", None) if gain is None else gain
        has_offset: Any = False
        if gain is not None:
            gain = readable(gain, f"the gain of {name}", self.name)
            has_offset = getattr(module, "uses_weight_offset", None) if self.is_bridge else False
            has_offset = kind in OFFSET_NORMS if has_offset is None else has_offset
        bias = getattr(original, "bias", None)
        bias = getattr(original, "b", None) if bias is None else bias
        bias = bias.detach() if isinstance(bias, Tensor) else None
        return Norm(name, gain, centres=not is_rms, stored_bias=bias, offset=int(bool(has_offset)))

    @property
    def final_norm(self) -> Norm:
        """The norm before W_U; none if there are other modules between them."""
        if self.head_before_unembed or self.is_post_norm:
            return Norm()
        return self._norm(self.model._modules, "decoder_ln_final" if self.is_encoder_decoder else "ln_final")

    @property
    def head_before_unembed(self) -> str | None:
        """The name of the module between the final norm and W_U; None if there is none."""
        return next((name for name in HEADS_BEFORE_UNEMBED if name in self.model._modules), None)

    def query_key_norms(self, block: Block) -> tuple[nn.Module | None, nn.Module | None]:
        """The modules that normalise a block's queries and keys before their product; None for none."""
        if block.attn is None:
            return None, None
        modules = block.attn._modules
        both = unwrap(block.attn)._modules.get("qk_norm")  # Llama 4; the bridge has no name for it
        return modules.get("q_norm", both), modules.get("k_norm", both)

    def has_head_norms(self, block: Block) -> bool:
        """Whether a block normalises its queries and keys before their product."""
        return all(module is not None for module in self.query_key_norms(block))

    # -- embeddings

    def outer(self, name: OuterWeight) -> Float[Tensor, "n_rows n_columns"]:
        """W_E `[d_vocab, d_model]`, W_U `[d_model, d_vocab]` or W_pos `[n_ctx, d_model]` as stored."""
        if name == "W_pos":
            weight = position_embeddings(self.model, self.architecture)
        else:
            weight = attribute(self.model, name, name, self.name)
        if weight is None:
            raise errors.no_positions(self.name) if name == "W_pos" else errors.no_weight(name, self.name)
        weight = readable(weight, name, self.name)
        width = weight.shape[0 if name == "W_U" else 1]
        if width != self.d_model:
            raise errors.wrong_stream_width(name, self.name, width, self.d_model)
        return weight

    @property
    def has_positions(self) -> bool:
        """Whether the model has learned position embeddings."""
        try:
            return self.outer("W_pos") is not None
        except errors.EmbspaceError:
            return False

    # -- attention

    def attention(
        self, block: Block, name: AttentionWeight, *, fold_inner: bool = False
    ) -> Float[Tensor, "heads d_model d_head"] | Float[Tensor, "heads d_head d_model"]:
        """W_Q, W_K, W_V `[n_heads, d_model, d_head]` or W_O `[n_heads, d_head, d_model]` as stored.

        W_K and W_V have one matrix per key-value head in a bridge and one per query head in a HookedTransformer. In multi-head
        latent attention, weights are products of two factors, with the gain of the norm between them if `fold_inner`.
        """
        label = f"{name} of block {block.layer}"
        if block.attn is None:
            raise errors.unsupported(f"{label} of {self.name}", "the block has no attention")
        if is_latent(block.attn):
            return self._latent_heads(block, name, label, fold_inner)
        weight = attribute(block.attn, name, label, self.name)
        if self.splits_falcon_incorrectly and name != "W_O":
            parts = [attribute(block.attn, part, label, self.name) for part in ("W_Q", "W_K", "W_V")]
            if not any(part is None for part in parts):
                weight = falcon_heads(
                    [readable(part, label, self.name) for part in parts], name, self.n_key_value_heads
                )
        elif weight is None:
            weight = heads_of_linear_layers(block.attn, name, self.n_heads)
        if weight is None:
            raise errors.no_attribute(label, self.name, type(block.attn).__name__)
        weight = readable(weight, label, self.name)
        has_heads = weight.ndim == 3 and weight.shape[2 if name == "W_O" else 1] == self.d_model
        is_grouped = name in ("W_K", "W_V")  # several query heads may share one key-value head
        if not has_heads or (self.n_heads % len(weight) if is_grouped else len(weight) != self.n_heads):
            raise errors.unexpected_shape(label, self.name, tuple(weight.shape), "one matrix per head")
        return weight

    def inner_norm(self, block: Block, name: AttentionWeight) -> Norm:
        """The norm between the two factors of a weight in multi-head latent attention; none in other attention."""
        if block.attn is None or not is_latent(block.attn):
            return Norm()
        module = latent_modules(block.attn, name)[1]
        label = "q_a_layernorm" if name == "W_Q" else "kv_a_layernorm"
        return Norm() if module is None else self.norm_of(module, label)

    def dtype_of_factors(self, block: Block, name: str) -> torch.dtype | None:
        """The precision of the two factors of a weight in multi-head latent attention; None for a weight of one matrix."""
        if block.attn is None or name == "W_O" or not is_latent(block.attn):
            return None
        return loaded(latent_factors(block.attn, name, self.n_heads, name, self.name).up).dtype

    def _latent_heads(self, block: Block, name: AttentionWeight, label: str, fold_inner: bool) -> Tensor:
        attn = cast(nn.Module, block.attn)
        if name == "W_O":
            return latent_output(attn, self.n_heads, label, self.name)
        factors = latent_factors(attn, name, self.n_heads, label, self.name)
        return factors.product(self.inner_norm(block, name).gain if fold_inner else None)

    def lazy(self, name: str, layer: int, expert: int = NO_EXPERT) -> Tensor | None:
        """A weight of a block, which is not read; None if it does not exist, cannot be read, or is a product (latent attention)."""
        block = self.blocks[layer]
        if is_latent(block.attn) and name in ("W_Q", "W_K", "W_V"):
            return None
        try:
            if name in ("W_in", "W_gate", "W_out"):
                return self.mlp(block, cast(MLPWeight, name), expert)
            return self.attention(block, cast(AttentionWeight, name))
        except errors.EmbspaceError:
            return None

    # -- MLPs

    @property
    def has_experts(self) -> bool:
        """Whether any block has a mixture of experts."""
        return any("MoE" in type(block.mlp).__name__ for block in self.blocks)

    def experts(self, block: Block) -> list[int]:
        """The experts of a block's MLP; −1 stands for a dense MLP, or for the shared expert of a mixture."""
        mixture = self._mixture(block)
        if mixture is None:
            return [NO_EXPERT]
        has_shared = mixture.shared is not None or block.shared is not None
        return [*([NO_EXPERT] if has_shared else []), *range(mixture.n_experts)]

    def _mixture(self, block: Block) -> ExpertWeights | None:
        """The mixture in a block; None for a dense MLP."""
        if "MoE" not in type(block.mlp).__name__ or self._dense(block.mlp, "W_in", block.layer) is not None:
            return None
        return ExpertWeights.of(cast(nn.Module, block.mlp), f"the experts of block {block.layer} of {self.name}")

    def _dense(self, mlp: nn.Module | None, name: MLPWeight, layer: int) -> Tensor | None:
        weight = attribute(mlp, name, f"{name} of block {layer}", self.name)
        return None if isinstance(weight, nn.Module) else weight

    def mlp(
        self, block: Block, name: MLPWeight, expert: int = NO_EXPERT
    ) -> Float[Tensor, "d_model d_mlp"] | Float[Tensor, "d_mlp d_model"] | None:
        """W_in, W_gate `[d_model, d_mlp]` or W_out `[d_mlp, d_model]` as stored; None for the W_gate of an ungated MLP."""
        label = f"{name} of block {block.layer}"
        if block.mlp is None:
            raise errors.unsupported(f"{label} of {self.name}", "the block has no MLP")
        mixture = self._mixture(block)
        if mixture is not None and not (expert == NO_EXPERT and block.shared is not None):
            weight = mixture.matrix(name, expert)
        elif self.architecture in FUSED_IN and name != "W_out":
            fused = self._dense(block.mlp, "W_in", block.layer)
            weight = None if fused is None else fused.chunk(2, dim=1)[0 if name == "W_gate" else 1]
        else:
            weight = self._dense(block.mlp if mixture is None else block.shared, name, block.layer)
        if weight is None:
            if name == "W_gate":
                return None
            raise errors.no_attribute(label, self.name, type(block.mlp).__name__)
        weight = readable(weight, label, self.name)
        if weight.ndim != 2 or weight.shape[1 if name == "W_out" else 0] != self.d_model:
            raise errors.unexpected_shape(label, self.name, tuple(weight.shape), "one matrix")
        return weight
