"""The forward pass computes with the effective weights."""

import copy

import pytest
import torch
import zoo
from oracle import LATENT, PLANS, plan_of
from oracle_cases import TOKENS, activations, changes, error, normalised, shared, skipping, unit
from torch import Tensor, nn

from embspace_lens.weights.effective import Weights

NAMES = [name for name in PLANS if name != "granitemoehybrid"]  # reading its MLPs may raise an error
DOUBLED = ("qwen3_next", "qwen3_5", "qwen3_5_moe")  # the query projection also computes a gate for z
# z is not pattern @ values: attention sinks, normalized values, a gate of z, a norm of z
UNUSUAL = ("gpt_oss", "gemma4_text", *DOUBLED, "afmoe", "bitnet")


def input_of(name: str, layer: int, sublayer: str) -> Tensor:
    """The input of attention or of the MLP of a block, normalised without gain if a norm precedes it."""
    plan, cache, modules = plan_of(name, layer), activations(name), shared(name).model.blocks[layer]._modules
    stream = cache[f"blocks.{layer}.hook_in"]
    norm_name = plan.norms[0 if sublayer == "attn" else 1]
    if norm_name is None or (name == "modernbert_decoder" and layer == 0 and sublayer == "attn"):
        if sublayer == "attn":
            return stream
        return next(cache[hook] for i in ("", "in.") if (hook := f"blocks.{layer}.mlp.{i}hook_in") in cache)
    if sublayer == "attn":
        return normalised(stream, modules["ln1"], plan.layer_norm)
    if "ln2" in modules:
        return normalised(cache[f"blocks.{layer}.ln2.hook_in"], modules["ln2"], plan.layer_norm)
    return normalised(stream, modules["ln1"], plan.layer_norm)


def heads_of(x: Tensor, n_heads: int) -> Tensor:
    """[batch, pos, heads · width] or [batch, pos, heads, width] → [batch, heads, pos, width]."""
    return x.flatten(2).unflatten(2, (n_heads, -1)).transpose(1, 2)


# Tests of their own: the hook points of latent attention have other shapes, and Falcon's forward pass is that of other weights.
OWN_TESTS = (*LATENT, "falcon_40b")


@pytest.mark.parametrize("name", skipping([n for n in NAMES if n not in ("mamba", *OWN_TESTS)], zoo.NO_FORWARD))
def test_attention_computes_with_the_effective_weights(name):
    cache, weights, stored = activations(name), Weights(shared(name).model), Weights(shared(name).model, fold_ln=False)
    n_heads = weights.n_heads
    for layer in weights.layers_with("attn"):
        x = changes(input_of(name, layer, "attn"))[:, None]  # a dimension for heads
        prefix = f"blocks.{layer}.attn."
        for letter in "qkv":
            weight = getattr(weights, f"W_{letter.upper()}")(layer).double()
            d_head = weight.shape[-1]
            cached = cache[f"{prefix}{letter}.hook_out"].flatten(2)
            cached = (
                cached.unflatten(2, (-1, 2 * d_head))[..., :d_head] if name in DOUBLED and letter == "q" else cached
            )
            cached = changes(cached.flatten(2).unflatten(2, (-1, d_head))).transpose(1, 2)
            cached = cached.repeat_interleave(n_heads // cached.shape[1], dim=1)
            assert error(x @ weight, cached) <= 1e-4, (layer, letter)
        z = heads_of(changes(cache[f"{prefix}o.hook_in"]), n_heads)
        written = (z @ stored.W_O(layer).double()).sum(1)
        assert error(written, changes(cache[f"{prefix}o.hook_out"])) <= 1e-4, layer
        # 3.9 has no such hook on some architectures.
        if name not in UNUSUAL and (zoo.HookedTransformer is None or f"{prefix}hook_pattern" in cache):
            values = input_of(name, layer, "attn")[:, None] @ weights.W_V(layer).double()
            weighted_values, cached = (
                cache[f"{prefix}hook_pattern"] @ values,
                heads_of(cache[f"{prefix}o.hook_in"], n_heads),
            )
            assert error(changes(weighted_values.transpose(1, 2)), changes(cached.transpose(1, 2))) <= 1e-4, layer


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "gemma2", "phi3", "mixtral", "ernie4_5", "falcon_7b"])
def test_attention_scores_at_distance_zero_equal_the_qk_circuit(name):
    """Rotary positions cancel where a token attends to itself; these models have no biases and no norms on queries and keys."""
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in weights.layers_with("attn"):
        x = input_of(name, layer, "attn")
        if name == "falcon_7b":  # the norm has a bias: include its contribution
            bias = next(p for n, p in shared(name).model.blocks[layer].ln1.named_parameters() if n.endswith("bias"))
            gain = next(p for n, p in shared(name).model.blocks[layer].ln1.named_parameters() if n.endswith("weight"))
            stored = Weights(shared(name).model, fold_ln=False)
            q, k = (((x * gain + bias)[:, None] @ w(layer).double()) for w in (stored.W_Q, stored.W_K))
        else:
            q, k = ((x[:, None] @ w(layer).double()) for w in (weights.W_Q, weights.W_K))
        product = (q * k).sum(-1)
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"].diagonal(dim1=-2, dim2=-1)
        if name == "gemma2":  # soft-capped
            scores = 50 * torch.atanh(scores / 50)
        assert error(unit(product), unit(scores)) <= 1e-4, layer


@pytest.mark.parametrize("name", skipping([n for n in NAMES if n != "mamba"], zoo.NO_FORWARD))
def test_mlp_computes_with_the_effective_weights(name):
    cache, weights, stored = activations(name), Weights(shared(name).model), Weights(shared(name).model, fold_ln=False)
    compared_any = False
    for layer in weights.layers_with("mlp"):
        prefix = next(
            (f"blocks.{layer}.mlp.{p}" for p in ("", "dense_") if f"blocks.{layer}.mlp.{p}in.hook_out" in cache), None
        )
        if prefix is None:
            assert sorted(weights.experts(layer))[:2] != [], layer  # the experts of a mixture have a separate test
            continue
        compared_any = True
        expert = (weights.experts(layer))[0]
        x, w_in = changes(input_of(name, layer, "mlp")), weights.W_in(layer, expert).double()
        if name == "modernbert_decoder":
            gate_and_in = torch.cat([weights.W_gate(layer).double(), w_in], dim=-1)
            assert error(x @ gate_and_in, changes(cache[f"{prefix}in.hook_out"])) <= 1e-4, layer
        else:
            assert error(x @ w_in, changes(cache[f"{prefix}in.hook_out"])) <= 1e-4, layer
            if f"{prefix}gate.hook_out" in cache:
                assert (
                    error(x @ weights.W_gate(layer, expert).double(), changes(cache[f"{prefix}gate.hook_out"])) <= 1e-4
                ), layer
        written = changes(cache[f"{prefix}out.hook_in"]) @ stored.W_out(layer, expert).double()
        assert error(written, changes(cache[f"{prefix}out.hook_out"])) <= 1e-4, layer
    assert compared_any or weights.experts(weights.n_layers - 1)


@pytest.mark.parametrize("name", skipping([n for n in NAMES if PLANS[n].post != (None, None)]))
def test_output_norms_multiply_writing_weights(name):
    """The output of an output norm is parallel to z @ W_O (these models have no output biases)."""
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in range(weights.n_layers):
        if plan_of(name, layer).post == (None, None):
            continue
        prefix, modules = f"blocks.{layer}.", shared(name).model.blocks[layer]._modules
        # TransformerLens 3 calls OLMo's output norms ln1 and ln2, and in its hybrid ln2 and ln2_post
        ln1_post, ln2_post = [m for m in ("ln1_post", "ln1", "ln2", "ln2_post") if m in modules][-2:]
        if "ln1_post" in modules:
            ln1_post, ln2_post = "ln1_post", "ln2_post"
        z = heads_of(cache[f"{prefix}attn.o.hook_in"], weights.n_heads)
        written = {ln1_post: (z @ weights.W_O(layer).double()).sum(1)}
        if f"{prefix}mlp.out.hook_in" in cache:  # a dense MLP
            written[ln2_post] = cache[f"{prefix}mlp.out.hook_in"] @ weights.W_out(layer).double()
        for norm, written_output in written.items():
            cosine = torch.cosine_similarity(written_output, cache[f"{prefix}{norm}.hook_out"], dim=-1)
            assert cosine.min() >= 1 - 1e-8, (layer, norm)


@pytest.mark.parametrize("name", skipping(NAMES, zoo.NO_FORWARD))
def test_embedding_and_unembedding_compute_with_the_effective_weights(name):
    case, cache = shared(name), activations(name)
    weights, modules = Weights(case.model), case.model._modules
    assert torch.cosine_similarity(weights.W_E[TOKENS].double(), cache["embed.hook_out"], dim=-1).min() >= 1 - 1e-8
    if "ln_final" in modules and PLANS[name].final is not None:
        x = normalised(cache["ln_final.hook_in"], modules["ln_final"], PLANS[name].layer_norm)
    else:
        x = cache["unembed.hook_in"]
    assert error(changes(x) @ weights.W_U.double(), changes(cache["unembed.hook_out"])) <= 1e-4
    if PLANS[name].position is not None:
        assert (
            error(
                weights.W_pos[None, : TOKENS.shape[1]].expand(2, -1, -1), cache["pos_embed.hook_out"].expand(2, -1, -1)
            )
            <= 1e-6
        )


@pytest.mark.parametrize(
    "name",
    ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "jamba", "qwen3_next", "deepseek_v2"],
)
def test_experts_compute_with_the_effective_weights(name):
    """Route all tokens to one expert of the Hugging Face module, and compare with the formula."""
    hf_model = zoo.ZOO[name]()
    experts = [
        m for m in hf_model.modules() if hasattr(m, "gate_up_proj") and isinstance(m.gate_up_proj, nn.Parameter)
    ][-1]
    stored = Weights(zoo.boot(copy.deepcopy(hf_model)), fold_ln=False)
    x = torch.randn(5, stored.d_model, generator=torch.Generator().manual_seed(0))
    for expert in range(3):
        layer = stored.n_layers - 1
        w_gate, w_in, w_out = (getattr(stored, w)(layer, expert) for w in ("W_gate", "W_in", "W_out"))
        with torch.no_grad():
            actual = experts(x, torch.full((5, 1), expert), torch.ones(5, 1))
            if name == "gpt_oss":
                bias = experts.gate_up_proj_bias[expert]
                gate, up = x @ w_gate + bias[0::2], x @ w_in + bias[1::2]
                expected = (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
                expected = expected @ w_out + experts.down_proj_bias[expert]
            else:
                expected = (experts.act_fn(x @ w_gate) * (x @ w_in)) @ w_out
        assert error(expected, actual) <= 1e-5, expert
