"""The raw parameters of any TransformerLens model, block by block. With `raw` and `experts`, all that knows the host's attributes.

A block is asked for its own tensors, never the model for its stacked copies (`model.W_Q` copies every layer, and on
hybrid models its first index is not the block number). Facts that no attribute of the host tells are listed here by
architecture, with the modelling code's names.
"""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from .. import errors
from .architectures import (
    FUSED_IN,
    HEADS_BEFORE_UNEMBED,
    MISREAD,
    OFFSET_NORMS,
    OUTPUT_NORM,
    POST_NORM,
    SCALED_BY_WIDTH,
    Block,
    Norm,
)
from .experts import NO_EXPERT, ExpertWeights
from .modules import attribute, readable, unwrap


class Host:
    """A TransformerBridge or a HookedTransformer, seen as tensors.

    Raises:
        EmbspaceError: If `model` is neither.
    """

    def __init__(self, model: Any) -> None:
        if not (isinstance(model, nn.Module) and hasattr(model, "cfg") and hasattr(model, "unembed")):
            raise errors.EmbspaceError(
                f"{type(model).__name__} is not a TransformerLens model. Wrap it: "
                "TransformerBridge.boot_transformers(name), or EmbeddingLens.from_pretrained(name)."
            )
        self.model = model
        self.is_bridge = "adapter" in model.__dict__
        cfg: Any = model.cfg
        self.cfg = cfg
        self.architecture = str((cfg.architecture if self.is_bridge else None) or type(model).__name__)
        self.hf_config = getattr(model.original_model, "config", None) if self.is_bridge else None
        name = str(getattr(cfg, "model_name", None) or self.architecture)
        self.name = Path(name).name if Path(name).is_absolute() else name
        self.n_heads = int(cfg.n_heads)
        self.d_model = int(cfg.d_model)
        self.blocks = [self._block(i, block) for i, block in enumerate(cast(Any, model._modules.get("blocks")) or [])]

    def from_config(self, name: str, default: Any = None) -> Any:
        """A field of the Hugging Face configuration, or of the host's own."""
        value = getattr(self.hf_config, name, None)
        return getattr(self.cfg, name, default) if value is None else value

    @property
    def is_encoder_decoder(self) -> bool:
        return "decoder_blocks" in self.model._modules

    @property
    def is_post_norm(self) -> bool:
        opt = self.architecture == "OPTForCausalLM" and not self.from_config("do_layer_norm_before", True)
        return self.architecture in POST_NORM or opt

    def _norm(self, modules: Any, name: str) -> Norm:
        module = modules.get(name)
        if module is None:
            return Norm()
        original = unwrap(module)
        if isinstance(original, nn.Identity) or (self.is_bridge and original is module):
            return Norm()  # the block has no norm here, or the bridge's slot is empty
        kind = type(original).__name__
        gain = getattr(original, "weight", None)
        gain = getattr(original, "w", None) if gain is None else gain
        rms = "RMS" in kind or bool(self.is_bridge and getattr(module, "uses_rms_norm", False))
        if gain is not None:
            gain = readable(gain, f"the gain of {name}", self.name).float()
            offset = getattr(module, "uses_weight_offset", None) if self.is_bridge else False
            gain = 1 + gain if (kind in OFFSET_NORMS if offset is None else offset) else gain
        bias = getattr(original, "bias", None)
        bias = getattr(original, "b", None) if bias is None else bias
        bias = bias.detach().float() if isinstance(bias, Tensor) else None
        return Norm(name, gain, not rms, bias)

    def _block(self, layer: int, block: nn.Module) -> Block:
        modules = dict(block._modules)
        if self.architecture in OUTPUT_NORM and "ln1_post" not in modules:
            modules["ln1_post"], modules["ln2_post"] = modules.pop("ln1", None), modules.pop("ln2", None)
        if self.architecture == "OlmoHybridForCausalLM" and "ln2" in modules and "ln1" not in modules:
            modules["ln1_post"] = modules.pop("ln2")  # TransformerLens 3.9
        if self.is_post_norm:
            modules = {name: module for name, module in modules.items() if not name.startswith("ln")}
        # Granite's hybrids call a mixture "moe" and set an MLP beside it.
        mlp = next((modules[name] for name in ("mlp", "moe", "shared_mlp") if modules.get(name) is not None), None)
        # Parallel blocks without a norm of their own for the MLP feed it what attention reads.
        mlp_norm = "ln2" if "ln2" in modules or "ln2_post" in modules else "ln1"
        return Block(
            layer,
            modules.get("attn"),
            mlp,
            modules.get("shared_mlp") if mlp is not modules.get("shared_mlp") else None,
            self._norm(modules, "ln1"),
            self._norm(modules, "ln1_post"),
            self._norm(modules, mlp_norm),
            self._norm(modules, "ln2_post"),
        )

    @property
    def final_norm(self) -> Norm:
        """The norm in front of W_U, where nothing else lies between them."""
        if self.head_before_unembed or self.is_post_norm:
            return Norm()
        return self._norm(self.model._modules, "decoder_ln_final" if self.is_encoder_decoder else "ln_final")

    @property
    def head_before_unembed(self) -> str | None:
        return next((name for name in HEADS_BEFORE_UNEMBED if name in self.model._modules), None)

    def outer(self, name: str) -> Tensor:
        """W_E `[d_vocab, d_model]`, W_U `[d_model, d_vocab]` or W_pos `[n_ctx, d_model]`, as stored."""
        weight = self._positions() if name == "W_pos" else attribute(self.model, name, name, self.name)
        if weight is None:
            why = ": its positions are not learned embeddings" if name == "W_pos" else ""
            raise errors.EmbspaceError(f"{self.name} has no {name}{why}.")
        weight = readable(weight, name, self.name)
        width = weight.shape[0 if name == "W_U" else 1]
        if width != self.d_model:
            raise errors.unsupported(
                f"{name} of {self.name}",
                f"its width is {width} and the residual stream's is {self.d_model}, with a projection between them",
            )
        return weight

    @property
    def has_positions(self) -> bool:
        """Whether positions are learned embeddings."""
        try:
            return self.outer("W_pos") is not None
        except errors.EmbspaceError:
            return False

    def _positions(self) -> Tensor | None:
        """The table of learned positions, from position 0 on; `model.W_pos` is missing in 3.9 and sliced for some in 4.3."""
        module = self.model._modules.get("pos_embed")
        if module is None:
            return None
        table: Any = unwrap(module)
        weight: Any = getattr(table, "W_pos", None) if table is module else getattr(table, "weight", None)
        if self.architecture == "OPTForCausalLM":
            return weight[table.offset :]
        return weight[table.padding_idx + 1 :] if self.architecture == "RobertaForMaskedLM" else weight

    def attention(self, block: Block, name: str) -> Tensor:
        """W_Q, W_K, W_V `[n_heads, d_model, d_head]` or W_O `[n_heads, d_head, d_model]` as stored; W_K and W_V may have fewer heads."""
        where = f"{name} of block {block.layer}"
        if block.attn is None:
            raise errors.unsupported(f"{where} of {self.name}", "the block has no attention")
        if type(block.attn).__name__.startswith("MLA"):
            raise errors.unsupported(
                f"{where} of {self.name}", "multi-head latent attention compresses its keys and values"
            )
        if self.architecture == "FalconForCausalLM" and self.from_config("new_decoder_architecture", False):
            raise errors.unsupported(f"{where} of {self.name}", MISREAD)
        weight = attribute(block.attn, name, where, self.name)
        if weight is None:
            weight = self._per_layer_heads(block, name)
        if weight is None:
            raise errors.unsupported(f"{where} of {self.name}", f"{type(block.attn).__name__} does not serve it")
        weight = readable(weight, where, self.name)
        fits = weight.ndim == 3 and weight.shape[2 if name == "W_O" else 1] == self.d_model
        grouped = name in ("W_K", "W_V")  # query heads may share them
        if not fits or (self.n_heads % len(weight) if grouped else len(weight) != self.n_heads):
            raise errors.unsupported(
                f"{where} of {self.name}", f"it comes as {tuple(weight.shape)}, not split into heads"
            )
        return weight

    def _per_layer_heads(self, block: Block, name: str) -> Tensor | None:
        """Heads of a block whose geometry differs from the configuration's, from its own linear layers (Gemma 4)."""
        modules = getattr(block.attn, "_modules", {})
        linear = {key: getattr(unwrap(modules[key]), "weight", None) for key in "qkvo" if modules.get(key) is not None}
        q, o, weight = (linear.get(key) for key in ("q", "o", name[-1].lower()))
        if not (isinstance(q, Tensor) and isinstance(o, Tensor) and isinstance(weight, Tensor)) or weight.ndim != 2:
            return None
        d_head = o.shape[1] // self.n_heads
        doubled = q.shape[0] == 2 * o.shape[1]  # Qwen3-Next: head by head, its query and then the gate of its output
        if q.shape[0] != o.shape[1] and not doubled:
            return None
        if name == "W_Q" and doubled:
            return weight.unflatten(0, (self.n_heads, 2, d_head))[:, 0].transpose(-1, -2)
        if name == "W_O":
            return weight.T.unflatten(0, (-1, d_head))
        return weight.unflatten(0, (-1, d_head)).transpose(-1, -2) if weight.shape[0] % d_head == 0 else None

    def attention_bias(self, block: Block, name: str) -> Tensor | None:
        """What is added to queries (b_Q) or keys (b_K) `[n_heads, d_head]`, the norm's share included; keys may have fewer heads."""
        stored = attribute(block.attn, name, f"{name} of block {block.layer}", self.name)
        bias = stored.detach().float() if isinstance(stored, Tensor) else None
        weight = self.attention(block, name.replace("b_", "W_"))
        bias = bias.reshape(-1, weight.shape[-1]) if bias is not None else None
        if block.before_attn.bias is None:
            return bias
        passed = (block.before_attn.bias.to(weight) @ weight).float()
        return passed if bias is None else passed + bias.repeat_interleave(len(passed) // len(bias), dim=0).to(passed)

    def attention_scale(self, layer: int, d_head: int) -> float:
        """What products of queries and keys are multiplied by, before the softmax."""
        if not self.is_bridge:
            attn: Any = self.blocks[layer].attn
            return 1 / float(attn.attn_scale)
        if self.architecture == "GPTNeoForCausalLM" or not self.from_config("scale_attn_weights", True):
            return 1.0
        scale = (
            self.from_config("attention_multiplier") or (self.from_config("query_pre_attn_scalar") or d_head) ** -0.5
        )
        return float(scale) / (layer + 1 if self.from_config("scale_attn_by_inverse_layer_idx", False) else 1)

    def attention_window(self, layer: int) -> int | None:
        """How many positions back a block with learned positions sees, its own counted; None for all (GPT-Neo's local blocks)."""
        kinds = self.from_config("attention_layers") if self.is_bridge else self.from_config("attn_types")
        return int(self.from_config("window_size")) if kinds and kinds[layer] == "local" else None

    @property
    def n_ctx(self) -> int | None:
        """The length of the context window; None if the configuration states none."""
        return int(getattr(self.cfg, "n_ctx", 0) or 0) or None

    @property
    def eps(self) -> float:
        """The norms' epsilon."""
        return float(self.cfg.eps)

    @property
    def n_key_value_heads(self) -> int:
        """How many key-value heads the query heads share."""
        return int(getattr(self.cfg, "n_key_value_heads", None) or self.n_heads)

    @property
    def residual_multiplier(self) -> float:
        """What a block's outputs are multiplied by where they are added to the stream (Granite)."""
        return float(self.from_config("residual_multiplier") or 1)

    def experts(self, block: Block) -> list[int]:
        """The experts of a block's MLP; −1 alone for a dense MLP, and −1 among them for a shared expert."""
        sparse = self._sparse(block)
        if sparse is None:
            return [NO_EXPERT]
        always = sparse.shared is not None or block.shared is not None
        return [*([NO_EXPERT] if always else []), *range(sparse.n_experts)]

    @property
    def has_experts(self) -> bool:
        return any("MoE" in type(block.mlp).__name__ for block in self.blocks)

    def _sparse(self, block: Block) -> ExpertWeights | None:
        """The mixture in a block, or None for a dense MLP."""
        if "MoE" not in type(block.mlp).__name__ or self._dense(block.mlp, "W_in", block.layer) is not None:
            return None
        return ExpertWeights.of(cast(nn.Module, block.mlp), f"the experts of block {block.layer} of {self.name}")

    def _dense(self, mlp: nn.Module | None, name: str, layer: int) -> Tensor | None:
        weight = attribute(mlp, name, f"{name} of block {layer}", self.name)
        return None if isinstance(weight, nn.Module) else weight

    def mlp(self, block: Block, name: str, expert: int = NO_EXPERT) -> Tensor | None:
        """W_in, W_gate `[d_model, d_mlp]` or W_out `[d_mlp, d_model]` as stored; None for the W_gate of a plain MLP."""
        where = f"{name} of block {block.layer}"
        if block.mlp is None:
            raise errors.unsupported(f"{where} of {self.name}", "the block has no MLP")
        sparse = self._sparse(block)
        if sparse is not None and not (expert == NO_EXPERT and block.shared is not None):
            weight = sparse.matrix(name, expert)
        elif self.architecture in FUSED_IN and name != "W_out":
            fused = self._dense(block.mlp, "W_in", block.layer)
            weight = None if fused is None else fused.chunk(2, dim=1)[0 if name == "W_gate" else 1]
        else:
            weight = self._dense(block.mlp if sparse is None else block.shared, name, block.layer)
        if weight is None:
            if name == "W_gate":
                return None
            raise errors.unsupported(f"{where} of {self.name}", f"{type(block.mlp).__name__} does not serve it")
        weight = readable(weight, where, self.name)
        if weight.ndim != 2 or weight.shape[1 if name == "W_out" else 0] != self.d_model:
            raise errors.unsupported(f"{where} of {self.name}", f"it comes as {tuple(weight.shape)}, not as one matrix")
        return weight

    def notes(self) -> dict[str, str]:
        """What lies between a weight and what the model does with it, by weight."""
        notes: dict[str, list[str]] = {"W_E": [], "W_U": [], "W_QK": []}
        width = self.d_model**0.5
        if self.is_bridge and (
            self.architecture.startswith(SCALED_BY_WIDTH)
            or (self.architecture == "XGLMForCausalLM" and self.from_config("scale_embedding", False))
        ):
            notes["W_E"].append(f"x {width:.4g} (square root of d_model) where the stream begins")
        multiplier = self.from_config("embedding_multiplier")
        if multiplier not in (None, 1, 1.0):
            notes["W_E"].append(f"x {multiplier:.4g} where the stream begins")
        if "embed_ln" in self.model._modules:
            notes["W_E"].append("a norm follows the embedding")
        if self.head_before_unembed:
            notes["W_U"].append(
                f"{self.head_before_unembed} (a dense layer, an activation and a norm) stands before it"
            )
        folded = getattr(
            self.model, "_weights_processed", False
        )  # Cohere's scale is then in W_U, and still in the configuration
        if self.from_config("logit_scale") not in (None, 1, 1.0) and not folded:
            notes["W_U"].append(f"logits x {self.from_config('logit_scale'):.4g}")
        if self.from_config("logits_scaling") not in (None, 1, 1.0):
            notes["W_U"].append(f"logits / {self.from_config('logits_scaling'):.4g}")
        for field, weight, what in (
            ("output_logits_soft_cap", "W_U", "logits"),
            ("attn_scores_soft_cap", "W_QK", "scores"),
        ):
            cap = getattr(self.cfg, field, -1)
            if cap is not None and cap > 0:
                notes[weight].append(f"{what} soft-capped at {cap:g}")
        if any({"q_norm", "k_norm"} & set(block.attn._modules) for block in self.blocks if block.attn is not None):
            notes["W_QK"].append("queries and keys are normalised before they meet")
        if self.is_encoder_decoder and self.from_config("tie_word_embeddings", False) and "T5" in self.architecture:
            notes["W_U"].append("logits / square root of d_model")
        if self.is_encoder_decoder:
            notes["W_U"].append("encoder and decoder blocks are not read")
        notes["W_Q"] = notes["W_K"] = notes.pop("W_QK")
        return {weight: "; ".join(lines) for weight, lines in notes.items()}
