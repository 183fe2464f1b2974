"""Notes on weights: the scales, caps and norms of a model that no weight contains."""

from .architectures import SCALED_BY_WIDTH
from .host import Host


def collect_notes(host: Host) -> dict[str, str]:
    """The operations between a weight and its effect, by weight; empty for none. The keys are W_E, W_U, W_Q and W_K."""
    notes = {"W_E": _embedding_notes(host), "W_U": _unembedding_notes(host)}
    notes["W_Q"] = notes["W_K"] = _query_key_notes(host)
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
    if any({"q_norm", "k_norm"} & set(block.attn._modules) for block in host.blocks if block.attn is not None):
        notes.append("queries and keys are normalised before their product")
    return notes


def _cap(host: Host, field: str, quantity: str) -> list[str]:
    cap = getattr(host.cfg, field, -1)
    return [f"{quantity} soft-capped at {cap:g}"] if cap is not None and cap > 0 else []
