"""TransformerLens's own models: native bridges, and HookedTransformers in TransformerLens 3."""

import pytest
import torch
import zoo
from oracle import Effective
from oracle_cases import TOKENS, centred, changes, check_all, error, normalised
from torch import Tensor, nn

from embspace_lens.weights.effective import Weights


def native_oracle(model: nn.Module) -> Effective:
    """The effective weights of a boot_native bridge, from its original modules."""
    original, cfg = model.original_model, model.cfg
    state = {k.replace("_original_component.", ""): v.detach().double() for k, v in original.state_dict().items()}
    layer_norm = cfg.normalization_type == "LN"

    def read(weight: Tensor, norm: str) -> Tensor:
        gain = state.get(f"{norm}.weight")
        weight = weight if gain is None else gain[:, None] * weight
        return centred(weight, -2) if layer_norm else weight

    def heads(matrix: Tensor) -> Tensor:
        return matrix.unflatten(0, (-1, cfg.d_head)).mT

    effective = Effective(
        state["tok_embed.weight"], read(state["head.weight"].T, "ln_out"), state.get("pos.weight"), layer_norm
    )
    for layer in range(cfg.n_layers):
        prefix = f"layers.{layer}."
        q, k, v = (read(heads(state[f"{prefix}attn.{x}.weight"]), f"{prefix}ln1") for x in "qkv")
        k, v = (w.repeat_interleave(cfg.n_heads // len(w), 0) for w in (k, v))
        w_o = state[f"{prefix}attn.o.weight"].T.unflatten(0, (cfg.n_heads, -1))
        effective.attention[layer] = {"W_Q": q, "W_K": k, "W_V": v, "W_O": w_o}
        if not cfg.attn_only:
            weights = {
                f"W_{part}": state[f"{prefix}mlp.{part}.weight"].T
                for part in ("in", "gate", "out")
                if f"{prefix}mlp.{part}.weight" in state
            }
            effective.mlp[layer] = {-1: {w: x if w == "W_out" else read(x, f"{prefix}ln2") for w, x in weights.items()}}
    return effective


@pytest.mark.parametrize("name", zoo.NATIVE)
@pytest.mark.parametrize("state", ["raw", "compat"])
def test_native_bridges_equal_the_oracle(name, state):
    model = zoo.NATIVE[name]()
    expected = native_oracle(model)
    model = zoo.compat(model) if state == "compat" else model
    check_all(Weights(model), expected, processed=state == "compat")


def hooked_oracle(model: nn.Module) -> Effective:
    """The effective weights of a raw HookedTransformer."""
    state, cfg = {k: v.detach().double() for k, v in model.state_dict().items()}, model.cfg
    layer_norm = cfg.normalization_type == "LN"

    def read(weight: Tensor, norm: str) -> Tensor:
        weight = weight * state[f"{norm}.w"][:, None] if f"{norm}.w" in state else weight
        return centred(weight, -2) if layer_norm else weight

    effective = Effective(
        state["embed.W_E"], read(state["unembed.W_U"], "ln_final"), state.get("pos_embed.W_pos"), layer_norm
    )
    for layer in range(cfg.n_layers):
        prefix = f"blocks.{layer}."
        grouped = f"{prefix}attn._W_K" in state
        q, k, v = (state[f"{prefix}attn.{'_' if grouped and x != 'Q' else ''}W_{x}"] for x in "QKV")
        k, v = (w.repeat_interleave(cfg.n_heads // len(w), 0) for w in (k, v))
        q, k, v = (read(w, f"{prefix}ln1") for w in (q, k, v))
        effective.attention[layer] = {"W_Q": q, "W_K": k, "W_V": v, "W_O": state[f"{prefix}attn.W_O"]}
        if cfg.attn_only:
            continue
        effective.mlp[layer] = {}
        for expert in [-1] if cfg.num_experts is None else range(cfg.num_experts):
            if expert == -1:
                weights = {
                    w: state[f"{prefix}mlp.{w}"] for w in ("W_in", "W_gate", "W_out") if f"{prefix}mlp.{w}" in state
                }
            else:
                weights = {w: state[f"{prefix}mlp.experts.{expert}.{w}.weight"].T for w in ("W_in", "W_gate", "W_out")}
            effective.mlp[layer][expert] = {
                w: x if w == "W_out" else read(x, f"{prefix}ln2") for w, x in weights.items()
            }
    return effective


@pytest.mark.skipif(not zoo.HT_ZOO, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", zoo.HT_ZOO or ["none"])
@pytest.mark.parametrize("state", ["raw", "processed"])
def test_hooked_transformers_equal_the_oracle(name, state):
    model = zoo.HT_ZOO[name]()
    expected = hooked_oracle(model)
    if state == "processed":
        model.process_weights_()
    check_all(Weights(model), expected, processed=state == "processed")


@pytest.mark.skipif(not zoo.HT_ZOO, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", [n for n in zoo.HT_ZOO if n != "ht_moe"] or ["none"])
def test_hooked_transformers_compute_with_the_effective_weights(name):
    model = zoo.HT_ZOO[name]()
    weights, kind = Weights(model), model.cfg.normalization_type
    with torch.no_grad():
        cache = {k: v.double() for k, v in model.run_with_cache(TOKENS)[1].items()}

    def normalized_changes(x: Tensor, ln: str) -> Tensor:
        return changes(x if kind is None else normalised(x, model.blocks[0]._modules[ln], kind == "LN"))

    for layer in range(2):
        prefix = f"blocks.{layer}."
        x = normalized_changes(cache[f"{prefix}hook_resid_pre"], "ln1")[:, None]
        for letter in "qkv":
            out = changes(cache[f"{prefix}attn.hook_{letter}"]).transpose(1, 2)
            out = out.repeat_interleave(4 // out.shape[1], 1)
            assert error(x @ getattr(weights, f"W_{letter.upper()}")(layer).double(), out) <= 1e-4
        z = changes(cache[f"{prefix}attn.hook_z"]).transpose(1, 2)
        assert error((z @ weights.W_O(layer).double()).sum(1), changes(cache[f"{prefix}hook_attn_out"])) <= 1e-4
        if model.cfg.attn_only:
            continue
        middle = cache[f"{prefix}hook_resid_pre" if model.cfg.parallel_attn_mlp else f"{prefix}hook_resid_mid"]
        x = normalized_changes(middle, "ln2")
        if model.cfg.gated_mlp:
            assert error(x @ weights.W_gate(layer).double(), changes(cache[f"{prefix}mlp.hook_pre"])) <= 1e-4
            assert error(x @ weights.W_in(layer).double(), changes(cache[f"{prefix}mlp.hook_pre_linear"])) <= 1e-4
        else:
            assert error(x @ weights.W_in(layer).double(), changes(cache[f"{prefix}mlp.hook_pre"])) <= 1e-4
        post = changes(cache[f"{prefix}mlp.hook_post"])
        assert error(post @ weights.W_out(layer).double(), changes(cache[f"{prefix}hook_mlp_out"])) <= 1e-4
