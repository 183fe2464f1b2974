"""Notes on weights: the scales, caps and norms of a model that no weight contains."""

import math
from typing import Any

from .architectures import SCALED_BY_WIDTH
from .host import AttentionWeight, Host
from .latent_attention import has_indexer, is_latent
from .rotary import rotates


def collect_notes(host: Host) -> dict[str, str]:
    """The operations between a weight and its effect, by weight; empty for none. The keys are W_E, W_U, W_Q, W_K and W_V."""
    notes = {"W_E": _embedding_notes(host), "W_U": _unembedding_notes(host), "W_V": _clipping_notes(host)}
    shared = _query_key_notes(host) + notes["W_V"]
    notes["W_Q"], notes["W_K"] = (_latent_notes(host, weight) + shared for weight in ("W_Q", "W_K"))
    notes["W_V"] = _latent_notes(host, "W_V") + notes["W_V"]
    if host.splits_falcon_incorrectly:
        for weight in ("W_Q", "W_K", "W_V"):
            notes[weight].append(
                "TransformerLens splits this weight incorrectly, so that its activations and logits are wrong"
            )
    return {weight: "; ".join(lines) for weight, lines in notes.items()}


def _embedding_notes(host: Host) -> list[str]:
    notes = []
    scales_xglm = host.architecture == "XGLMForCausalLM" and host.from_config("scale_embedding", False)
    if host.is_bridge and (host.architecture.startswith(SCALED_BY_WIDTH) or scales_xglm):
        notes.append(f"x {host.d_model**0.5:.4g} (square root of d_model) where the residual stream begins")
    multiplier = host.from_config("embedding_multiplier")
    if multiplier not in (None, 1, 1.0):
        notes.append(f"x {multiplier:.4g} where the residual stream begins")
    if "embed_ln" in host.model._modules:
        notes.append("a norm follows the embedding")
    return notes


def _unembedding_notes(host: Host) -> list[str]:
    notes = []
    if host.head_before_unembed:
        notes.append(f"{host.head_before_unembed} (a dense layer, an activation and a norm) precedes it")
    # Compatibility mode folds Cohere's scale into W_U and leaves it in the configuration.
    is_processed = getattr(host.model, "_weights_processed", False)
    if host.from_config("logit_scale") not in (None, 1, 1.0) and not is_processed:
        notes.append(f"logits x {host.from_config('logit_scale'):.4g}")
    if host.from_config("logits_scaling") not in (None, 1, 1.0):
        notes.append(f"logits / {host.from_config('logits_scaling'):.4g}")
    notes += _cap(host, "output_logits_soft_cap", "logits")
    if host.is_encoder_decoder and host.from_config("tie_word_embeddings", False) and "T5" in host.architecture:
        notes.append("logits / square root of d_model")
    if host.is_encoder_decoder:
        notes.append("encoder and decoder blocks are not read")
    return notes


def _query_key_notes(host: Host) -> list[str]:
    notes = _cap(host, "attn_scores_soft_cap", "scores")
    if any(module is not None for block in host.blocks for module in host.query_key_norms(block)):
        notes.append(
            "queries and keys are normalised before their product; lens.qk includes it, "
            "singular directions and statistics of W_QK do not"
        )
    return notes + _scale_notes(host) + _position_notes(host)


def _latent_notes(host: Host, weight: AttentionWeight) -> list[str]:
    """What multi-head latent attention computes between the two factors of a weight, and beside its queries and keys."""
    block = next((block for block in host.blocks if is_latent(block.attn)), None)
    if block is None:
        return []
    norm = host.inner_norm(block, weight)
    notes = (
        [f"product of two factors; {norm.name} between them also divides by a scale of each token"] if norm.name else []
    )
    if weight == "W_V":
        return notes
    notes.append("a part with rotary positions is added to the scores; it is not read")
    return notes + (["an indexer selects the keys of each query"] if has_indexer(block.attn) else [])


def _scale_notes(host: Host) -> list[str]:
    """The factor of the scores before the softmax, if it is not 1/√d_head."""
    first = next((block for block in host.blocks if block.attn is not None), None)
    if first is None:
        return []
    # In multi-head latent attention, the part that is read has qk_nope_head_dim dimensions.
    d_head: Any = host.from_config("qk_nope_head_dim") if is_latent(first.attn) else getattr(host.cfg, "d_head", 0)
    if not d_head:
        return []
    scale = host.score_scale(first.layer, d_head)
    notes = [] if math.isclose(scale, d_head**-0.5) else [f"scores x {scale:.4g} before the softmax, not 1/√d_head"]
    if host.from_config("scale_attn_by_inverse_layer_idx", False):
        notes.append("scores of block l are divided by l + 1")
    return notes


def _position_notes(host: Host) -> list[str]:
    """Blocks without rotary positions in a model that has them, and factors of queries that depend on the position."""
    without = [block.layer for block in host.blocks if block.attn is not None and not rotates(host, block)]
    notes = [f"blocks without rotary positions: {', '.join(map(str, without))}"] if without else []
    factor = "queries are multiplied by a factor that grows with their position"
    if without and host.from_config("attn_temperature_tuning"):
        notes.append(f"in these blocks {factor}")
    parameters = host.from_config("rope_parameters")
    if isinstance(parameters, dict) and parameters.get("llama_4_scaling_beta"):
        notes.append(factor)
    return notes


def _clipping_notes(host: Host) -> list[str]:
    limit = host.from_config("clip_qkv") or getattr(host.from_config("attn_config"), "clip_qkv", None)
    return [f"queries, keys and values are clipped to ±{limit:g}, which no reading includes"] if limit else []


def _cap(host: Host, field: str, quantity: str) -> list[str]:
    cap = getattr(host.cfg, field, -1)
    return [f"{quantity} soft-capped at {cap:g}"] if cap is not None and cap > 0 else []
