"""Every weight of every architecture against a second reading of the raw model, and against its forward pass.

Raw bridges are compared number by number. In compatibility mode TransformerLens rewrites the weights without changing
the function. What it must leave alone is compared number by number too: everything that reads the stream, once folded
and centred. What it may change is compared up to that change: for models with LayerNorm, W_E, W_pos, W_O and W_out may
lose their component along the all-ones direction, which no LayerNorm lets through; W_U may lose its mean over the
vocabulary, which a softmax does not see, and take in Cohere's positive logit scale.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import zoo
from oracle import NO_ATTENTION, PLANS, Effective, oracle, plan_of
from torch import Tensor, nn

from embspace_lens.errors import EmbspaceError
from embspace_lens.weights.effective import Weights

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
TOKENS = torch.arange(5, 5 + 2 * 9).view(2, 9)  # no special tokens: 0 and 1 pad in some of the models
PARTLY = ("granitemoehybrid",)  # its MLPs have names of their own: they may be refused
NAMES = [name for name in PLANS if name not in PARTLY]
DOUBLED = ("qwen3_next", "qwen3_5", "qwen3_5_moe")  # the query projection also gives a gate for z
# z is not pattern @ values: attention sinks, normalised values, a gate on z, a norm on z
UNUSUAL = ("gpt_oss", "gemma4_text", *DOUBLED, "afmoe", "bitnet")


def skipping(names: list[str], *reasons: dict[str, str]) -> list:
    """These architectures as parameters, those that the installed versions cannot serve skipped, with the reason."""
    why = {name: reason for known in (*reasons, zoo.UNAVAILABLE) for name, reason in known.items()}
    return [pytest.param(n, marks=pytest.mark.skip(reason=why[n])) if n in why else n for n in names]


# -- models, booted once


@dataclass
class Case:
    """A booted model and what should be found in it."""

    model: nn.Module
    folded: Effective
    stored: Effective


def fresh(name: str, state: str = "raw", dtype: torch.dtype = torch.float32) -> Case:
    """A model of the zoo that belongs to one test alone."""
    hf_model = zoo.ZOO[name]().to(dtype)
    folded, stored = oracle(name, hf_model), oracle(name, hf_model, fold=False)
    model = zoo.boot(hf_model)
    return Case(zoo.compat(model) if state == "compat" else model, folded, stored)


@cache
def shared(name: str) -> Case:
    """A raw model that nobody changes."""
    return fresh(name)


@cache
def activations(name: str) -> dict[str, Tensor]:
    """Everything that a raw bridge computes for TOKENS, in float64."""
    with torch.no_grad():
        seen = shared(name).model.run_with_cache(TOKENS)[1]
    return {
        hook: seen[hook].double()
        for hook in seen.keys()
        if isinstance(seen[hook], Tensor) and seen[hook].is_floating_point()
    }


# -- comparison


def error(found: Tensor, expected: Tensor) -> float:
    """The relative distance of two tensors of one shape."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def centred(weight: Tensor, dim: int = -1) -> Tensor:
    return weight - weight.mean(dim, keepdim=True)


def unit(weight: Tensor) -> Tensor:
    return weight / weight.norm()


def readings(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """All that can be read, by name; what is refused is left out."""
    for name in ("W_E", "W_U", "W_pos"):
        try:
            yield name, getattr(weights, name)
        except EmbspaceError:
            pass
    for layer in weights.layers_with("attn"):
        for name in ATTENTION:
            try:
                yield f"{layer} {name}", getattr(weights, name)(layer)
            except EmbspaceError:
                pass
    for layer in weights.layers_with("mlp"):
        for expert in weights.experts(layer):
            for name in ("W_in", "W_gate", "W_out"):
                try:
                    yield f"{layer} {expert} {name}", getattr(weights, name)(layer, expert)
                except EmbspaceError:
                    pass


def expectations(effective: Effective) -> Iterator[tuple[str, Tensor]]:
    """The same of the oracle."""
    yield "W_E", effective.W_E
    yield "W_U", effective.W_U
    if effective.W_pos is not None:
        yield "W_pos", effective.W_pos
    for layer, heads in effective.attention.items():
        for name, weight in heads.items():
            yield f"{layer} {name}", weight
    for layer, experts in effective.mlp.items():
        for expert, weights in experts.items():
            for name, weight in weights.items():
                yield f"{layer} {expert} {name}", weight


def check_all(weights: Weights, effective: Effective, *, processed: bool = False, tolerance: float = 1e-5) -> None:
    """Every weight of the model is the oracle's, no weight too few and none too many."""
    found, expected = dict(readings(weights)), dict(expectations(effective))
    assert not (missing := sorted(expected.keys() - found.keys())), missing
    assert not (invented := sorted(found.keys() - expected.keys())), invented
    errors = {}
    for name, weight in found.items():
        assert not weight.requires_grad, name
        wanted = expected[name]
        if processed and name == "W_U":
            weight, wanted = unit(centred(weight)), unit(centred(wanted))
        elif processed and effective.layer_norm and name.endswith(("W_E", "W_pos", "W_O", "W_out")):
            weight, wanted = centred(weight), centred(wanted)
        errors[name] = error(weight, wanted)
    wrong = {name: value for name, value in errors.items() if not value <= tolerance}
    assert not wrong, wrong


# -- against the oracle


@pytest.mark.parametrize("name", skipping(NAMES))
def test_every_weight_is_the_oracles(name):
    check_all(Weights(shared(name).model), shared(name).folded)


@pytest.mark.parametrize("name", skipping(NAMES, zoo.NO_COMPAT))
def test_every_weight_survives_compatibility_mode(name):
    case = fresh(name, "compat")
    check_all(Weights(case.model), case.folded, processed=True)


@pytest.mark.parametrize("name", skipping(NAMES))
def test_as_stored(name):
    case = shared(name)
    check_all(Weights(case.model, fold_ln=False), case.stored)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "falcon_7b", "olmo2", "qwen3_next"])
def test_circuits_are_products_of_their_weights(name):
    case = shared(name)
    weights = Weights(case.model)
    for layer, heads in case.folded.attention.items():
        assert error(weights.W_OV(layer).AB, heads["W_V"] @ heads["W_O"]) <= 1e-5
        assert error(weights.W_QK(layer).AB, heads["W_Q"] @ heads["W_K"].mT) <= 1e-5


@pytest.mark.parametrize("name", skipping(NAMES))
def test_sizes_and_layers(name):
    case = shared(name)
    weights = Weights(case.model)
    d_vocab, d_model = case.folded.W_E.shape
    assert (weights.d_vocab, weights.d_model) == (d_vocab, d_model)
    assert weights.name and isinstance(weights.name, str)
    assert weights.n_layers == (4 if name == "jamba" else 2)
    with_attention = [0, 1] if name in NO_ATTENTION else sorted(case.folded.attention)
    assert weights.layers_with("attn") == with_attention
    assert weights.layers_with("mlp") == sorted(case.folded.mlp)
    if case.folded.attention:
        assert weights.n_heads == next(iter(case.folded.attention.values()))["W_Q"].shape[0]


def test_hybrids_keep_true_block_numbers():
    assert Weights(shared("jamba").model).layers_with("attn") == [1, 3]
    assert Weights(shared("jamba").model).layers_with("mlp") == [0, 1, 2, 3]
    assert Weights(shared("qwen3_next").model).layers_with("attn") == [1]
    assert Weights(shared("mamba").model).layers_with("attn") == []
    assert Weights(shared("mamba").model).layers_with("mlp") == []


def test_experts_have_their_numbers():
    assert Weights(shared("llama").model).experts(0) == [-1]
    assert sorted(Weights(shared("mixtral").model).experts(1)) == [0, 1, 2]
    assert Weights(shared("qwen2_moe").model).experts(0) == [-1]  # the dense layer of a mixture
    assert sorted(Weights(shared("qwen2_moe").model).experts(1)) == [-1, 0, 1, 2]  # a shared expert
    assert sorted(Weights(shared("deepseek_v2").model).experts(1)) == [-1, 0, 1, 2]
    assert Weights(shared("jamba").model).experts(2) == [-1]


# -- against the forward pass


def changes(x: Tensor) -> Tensor:
    """[batch, pos, …] minus its first position: biases drop out."""
    return (x - x[:, :1])[:, 1:]


def normalised(x: Tensor, module: nn.Module, layer_norm: bool) -> Tensor:
    """What a norm makes of `x` before it multiplies by its gain."""
    while "_original_component" in module._modules:
        module = module._modules["_original_component"]
    eps = next(
        (getattr(module, name) for name in ("eps", "variance_epsilon", "norm_eps") if hasattr(module, name)), 1e-5
    )
    x = centred(x) if layer_norm else x
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def input_of(name: str, layer: int, of: str) -> Tensor:
    """What attention or the MLP of a block reads, normalised without gain where a norm stands in front of it."""
    plan, cache, modules = plan_of(name, layer), activations(name), shared(name).model.blocks[layer]._modules
    stream = cache[f"blocks.{layer}.hook_in"]
    norm_name = plan.norms[0 if of == "attn" else 1]
    if norm_name is None or (name == "modernbert_decoder" and layer == 0 and of == "attn"):
        if of == "attn":
            return stream
        return next(cache[hook] for i in ("", "in.") if (hook := f"blocks.{layer}.mlp.{i}hook_in") in cache)
    if of == "attn":
        return normalised(stream, modules["ln1"], plan.layer_norm)
    if "ln2" in modules:
        return normalised(cache[f"blocks.{layer}.ln2.hook_in"], modules["ln2"], plan.layer_norm)
    return normalised(stream, modules["ln1"], plan.layer_norm)


def heads_of(x: Tensor, n_heads: int) -> Tensor:
    """[batch, pos, heads · width] or [batch, pos, heads, width] → [batch, heads, pos, width]."""
    return x.flatten(2).unflatten(2, (n_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", skipping([n for n in NAMES if n not in ("mamba", *NO_ATTENTION)], zoo.NO_FORWARD))
def test_attention_computes_with_these_weights(name):
    cache, weights, stored = activations(name), Weights(shared(name).model), Weights(shared(name).model, fold_ln=False)
    n_heads = weights.n_heads
    for layer in weights.layers_with("attn"):
        x = changes(input_of(name, layer, "attn"))[:, None]  # a place for heads
        at = f"blocks.{layer}.attn."
        for letter in "qkv":
            weight = getattr(weights, f"W_{letter.upper()}")(layer).double()
            d_head = weight.shape[-1]
            seen = cache[f"{at}{letter}.hook_out"].flatten(2)
            seen = seen.unflatten(2, (-1, 2 * d_head))[..., :d_head] if name in DOUBLED and letter == "q" else seen
            seen = changes(seen.flatten(2).unflatten(2, (-1, d_head))).transpose(1, 2)
            seen = seen.repeat_interleave(n_heads // seen.shape[1], dim=1)
            assert error(x @ weight, seen) <= 1e-4, (layer, letter)
        z = heads_of(changes(cache[f"{at}o.hook_in"]), n_heads)
        written = (z @ stored.W_O(layer).double()).sum(1)
        assert error(written, changes(cache[f"{at}o.hook_out"])) <= 1e-4, layer
        # 3.9 has no such hook on some architectures.
        if name not in UNUSUAL and (zoo.HookedTransformer is None or f"{at}hook_pattern" in cache):
            values = input_of(name, layer, "attn")[:, None] @ weights.W_V(layer).double()
            moved, seen = cache[f"{at}hook_pattern"] @ values, heads_of(cache[f"{at}o.hook_in"], n_heads)
            assert error(changes(moved.transpose(1, 2)), changes(seen.transpose(1, 2))) <= 1e-4, layer


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "gemma2", "phi3", "mixtral", "ernie4_5", "falcon_7b"])
def test_scores_at_distance_zero_are_the_qk_circuit(name):
    """Rotary positions cancel where a token attends to itself; no biases, no norms on queries and keys in these."""
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in weights.layers_with("attn"):
        x = input_of(name, layer, "attn")
        if name == "falcon_7b":  # a bias in the norm: add what it adds
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
def test_mlp_computes_with_these_weights(name):
    cache, weights, stored = activations(name), Weights(shared(name).model), Weights(shared(name).model, fold_ln=False)
    seen_any = False
    for layer in weights.layers_with("mlp"):
        at = next(
            (f"blocks.{layer}.mlp.{p}" for p in ("", "dense_") if f"blocks.{layer}.mlp.{p}in.hook_out" in cache), None
        )
        if at is None:
            assert sorted(weights.experts(layer))[:2] != [], layer  # a mixture: its experts have a test of their own
            continue
        seen_any = True
        expert = (weights.experts(layer))[0]
        x, w_in = changes(input_of(name, layer, "mlp")), weights.W_in(layer, expert).double()
        if name == "modernbert_decoder":
            both = torch.cat([weights.W_gate(layer).double(), w_in], dim=-1)
            assert error(x @ both, changes(cache[f"{at}in.hook_out"])) <= 1e-4, layer
        else:
            assert error(x @ w_in, changes(cache[f"{at}in.hook_out"])) <= 1e-4, layer
            if f"{at}gate.hook_out" in cache:
                assert (
                    error(x @ weights.W_gate(layer, expert).double(), changes(cache[f"{at}gate.hook_out"])) <= 1e-4
                ), layer
        written = changes(cache[f"{at}out.hook_in"]) @ stored.W_out(layer, expert).double()
        assert error(written, changes(cache[f"{at}out.hook_out"])) <= 1e-4, layer
    assert seen_any or weights.experts(weights.n_layers - 1)


@pytest.mark.parametrize("name", skipping([n for n in NAMES if PLANS[n].post != (None, None)]))
def test_post_norms_multiply_what_is_written(name):
    """Behind a norm, what reaches the stream is parallel to z @ W_O (these have no output biases)."""
    cache, weights = activations(name), Weights(shared(name).model)
    for layer in range(weights.n_layers):
        if plan_of(name, layer).post == (None, None):
            continue
        at, modules = f"blocks.{layer}.", shared(name).model.blocks[layer]._modules
        # TransformerLens 3 calls OLMo's output norms ln1 and ln2, and in its hybrid ln2 and ln2_post
        ln1_post, ln2_post = [m for m in ("ln1_post", "ln1", "ln2", "ln2_post") if m in modules][-2:]
        if "ln1_post" in modules:
            ln1_post, ln2_post = "ln1_post", "ln2_post"
        z = heads_of(cache[f"{at}attn.o.hook_in"], weights.n_heads)
        written = {ln1_post: (z @ weights.W_O(layer).double()).sum(1)}
        if f"{at}mlp.out.hook_in" in cache:  # a dense MLP
            written[ln2_post] = cache[f"{at}mlp.out.hook_in"] @ weights.W_out(layer).double()
        for norm, ours in written.items():
            cosine = torch.cosine_similarity(ours, cache[f"{at}{norm}.hook_out"], dim=-1)
            assert cosine.min() >= 1 - 1e-8, (layer, norm)


@pytest.mark.parametrize("name", skipping(NAMES, zoo.NO_FORWARD))
def test_embedding_and_unembedding(name):
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
def test_experts_compute_with_these_weights(name):
    """Send everything to one expert of the Hugging Face module, and compare with the formula."""
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
            seen = experts(x, torch.full((5, 1), expert), torch.ones(5, 1))
            if name == "gpt_oss":
                bias = experts.gate_up_proj_bias[expert]
                gate, up = x @ w_gate + bias[0::2], x @ w_in + bias[1::2]
                made = (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
                made = made @ w_out + experts.down_proj_bias[expert]
            else:
                made = (experts.act_fn(x @ w_gate) * (x @ w_in)) @ w_out
        assert error(made, seen) <= 1e-5, expert


# -- reading leaves no trace


def fingerprint(model: nn.Module) -> tuple:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {n: (t.detach().clone(), t.data_ptr(), t.requires_grad) for n, t in tensors.items()},
        [module.training for module in model.modules()],
        list(dict(model.named_modules())),
        copy.deepcopy(
            {k: v for k, v in vars(model.cfg).items() if isinstance(v, (int, float, str, bool, list, dict, type(None)))}
        ),
    )


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "olmo2", "phi3", "mixtral", "gpt_oss", "jamba", "modernbert_decoder", "mamba"]
)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_never_changed(name, training):
    model = fresh(name).model.train(training)
    before = fingerprint(model)
    weights = Weights(model)
    for _, weight in readings(weights):
        del weight
    repr(weights)
    after = fingerprint(model)
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for parameter, (value, pointer, grad) in before[0].items():
        assert torch.equal(value, after[0][parameter][0]), parameter
        assert (pointer, grad) == after[0][parameter][1:], parameter


@pytest.mark.parametrize("name", skipping(NAMES))
def test_no_forward_pass_is_run(name):
    case = fresh(name)

    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass")

    for module in case.model.modules():
        module.forward = refuse
    check_all(Weights(case.model), case.folded)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "phi3", "qwen2_moe", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32(name, dtype):
    case = fresh(name, dtype=dtype)
    weights = Weights(case.model)
    check_all(weights, case.folded, tolerance=1e-5)
    for what, weight in readings(weights):
        assert what in ("W_E", "W_pos") or weight.dtype == torch.float32, what


# -- what is refused


def says(error: pytest.ExceptionInfo, *words: str) -> None:
    """One sentence or more, which hold these words."""
    text = str(error.value)
    assert text[-1] in ".?!" and len(text.split()) >= 4, text
    for word in words:
        assert word.lower() in text.lower(), f"{word!r} is not in: {text}"


def test_not_a_model():
    with pytest.raises(EmbspaceError) as error:
        Weights(nn.Linear(2, 2))
    says(error, "Linear")
    with pytest.raises(EmbspaceError) as error:
        Weights(zoo.ZOO["gpt2"]())
    says(error, "GPT2LMHeadModel")


def test_latent_attention_is_refused():
    weights = Weights(shared("deepseek_v2").model)
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_OV", "W_QK"):
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(0)
        says(error, "latent")


def test_falcons_grouped_heads_are_refused():
    weights = Weights(shared("falcon_40b").model)
    for name in ("W_Q", "W_K", "W_V", "W_OV", "W_QK"):
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(1)
        says(error, "new_decoder_architecture")


def test_encoder_decoder_is_refused():
    model = zoo.boot(zoo.ZOO["t5"]())
    try:
        weights = Weights(model)
    except EmbspaceError:
        return
    assert weights.layers_with("attn") == weights.layers_with("mlp") == []
    for name in (*ATTENTION, "W_in", "W_out"):
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(0)
        says(error, "encoder")


def test_state_space_models_serve_what_they_have():
    weights = Weights(shared("mamba").model)
    assert error(weights.W_E, shared("mamba").folded.W_E) <= 1e-6
    assert error(weights.W_U, shared("mamba").folded.W_U) <= 1e-5
    for name in ("W_Q", "W_O", "W_in", "W_out"):
        with pytest.raises(EmbspaceError) as raised:
            getattr(weights, name)(0)
        says(raised, "block", "0", "attention" if name in ATTENTION else "MLP")


def test_a_hybrids_other_layers_are_named():
    weights = Weights(shared("jamba").model)
    with pytest.raises(EmbspaceError) as error:
        weights.W_Q(2)
    says(error, "2", "attention", "1, 3")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("qwen3_next").model).W_OV(0)
    says(error, "0", "attention", "1")


@pytest.mark.parametrize("layer", [2, -1, 14, 0.5, "1", None, True])
def test_layers_out_of_range(layer):
    weights = Weights(shared("gpt2").model)
    for read in (weights.W_Q, weights.W_O, weights.W_OV, weights.W_in, weights.W_out, weights.experts):
        with pytest.raises(EmbspaceError) as error:
            read(layer)
        says(error, f"layer={layer!r}", "0 to 1")


def test_no_gate_no_positions_no_such_expert():
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("gpt2").model).W_gate(0)
    says(error, "not gated")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("llama").model).W_pos  # noqa: B018
    says(error, "W_pos")
    mixture = Weights(shared("qwen2_moe").model)
    for expert in (3, -2, "0", None):
        with pytest.raises(EmbspaceError) as error:
            mixture.W_in(1, expert)
        says(error, f"expert={expert!r}")
    with pytest.raises(EmbspaceError) as error:
        Weights(shared("llama").model).W_in(0, 2)
    says(error, "expert=2")


def test_what_is_refused_is_not_denied():
    """Granite's hybrid keeps its MLPs under other names: they are served rightly or refused, not said to be absent."""
    case = fresh("granitemoehybrid")
    weights, expected = Weights(case.model), dict(expectations(case.folded))
    assert weights.layers_with("attn") == [1]
    for name, weight in readings(weights):
        assert error(weight, expected.pop(name)) <= 1e-5, name
    assert all("W_in" in name or "W_gate" in name or "W_out" in name for name in expected)
    if expected:
        with pytest.raises(EmbspaceError) as refusal:
            weights.W_in(1, 0)
        assert "no MLP" not in str(refusal.value)


def test_experts_for_attention_are_refused():
    weights = Weights(zoo.boot(zoo.ZOO["jetmoe"]()))
    assert weights.W_E.shape == (97, 32)
    for name in ATTENTION:
        with pytest.raises(EmbspaceError) as error:
            getattr(weights, name)(0)
        says(error, name, "JetMoe")


def test_a_projection_around_the_stream_is_refused_or_composed():
    """OPT-350m embeds in 16 dimensions and projects up to 32: its W_E is not d_model wide."""
    hf_model = zoo.ZOO["opt_350m"]()
    state = {key: value.double() for key, value in hf_model.state_dict().items()}
    weights = Weights(zoo.boot(hf_model))
    into, out = (state[f"model.decoder.project_{side}.weight"] for side in ("in", "out"))
    composed = {
        "W_E": state["model.decoder.embed_tokens.weight"] @ into.T,
        "W_U": out.T @ state["lm_head.weight"].T,
    }
    for name, expected in composed.items():
        try:
            found = getattr(weights, name)
        except EmbspaceError as refusal:
            assert "16" in str(refusal) and "32" in str(refusal)
        else:
            assert error(found, expected) <= 1e-5
    assert weights.W_Q(0).shape == (4, 32, 8)  # the blocks are read all the same


SPOILT = {
    "W_E": ("model.embed_tokens", lambda w: w.W_E),
    "W_U": ("lm_head", lambda w: w.W_U),
    "W_Q": ("model.layers.1.self_attn.q_proj", lambda w: w.W_Q(1)),
    "W_O": ("model.layers.1.self_attn.o_proj", lambda w: w.W_O(1)),
    "W_in": ("model.layers.1.mlp.up_proj", lambda w: w.W_in(1)),
    "W_out": ("model.layers.1.mlp.down_proj", lambda w: w.W_out(1)),
}


def spoil(hf_model: nn.Module, path: str, how: str) -> None:
    """Put a weight where it cannot be read."""
    module = hf_model.get_submodule(path)
    value = module.weight.detach()
    spoilt = {
        "meta": lambda: value.to("meta"),
        "int8": lambda: (value * 100).to(torch.int8),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "nan": lambda: value.index_fill(0, torch.tensor([3]), float("nan")),
        "inf": lambda: value.index_fill(0, torch.tensor([3]), float("inf")),
    }[how]()
    module.weight = nn.Parameter(spoilt, requires_grad=False)


@pytest.mark.parametrize("how", ["meta", "int8", "float8"])
@pytest.mark.parametrize("which", SPOILT)
def test_unreadable_weights_say_so(which, how):
    path, read = SPOILT[which]
    hf_model = zoo.ZOO["llama"]()
    model = zoo.boot(hf_model)
    spoil_bridge(model, path, how)
    weights = Weights(model)
    with pytest.raises(EmbspaceError) as error:
        read(weights)
    says(error, which)
    for other, (_, read_other) in SPOILT.items():
        if other != which:
            assert torch.isfinite(read_other(weights)).all()


def spoil_bridge(model: nn.Module, path: str, how: str) -> None:
    """`spoil` after boot: some of these weights a bridge would not even be built around."""
    original = model.original_model
    for part in path.split("."):
        original = original._modules[part]
        while "_original_component" in original._modules:
            original = original._modules["_original_component"]
    holder = nn.Module()
    holder.add_module("it", original)
    spoil(holder, "it", how)


@pytest.mark.parametrize("how", ["meta", "int8"])
def test_an_unreadable_gain_says_so(how):
    model = zoo.boot(zoo.ZOO["llama"]())
    spoil_bridge(model, "model.layers.1.input_layernorm", how)
    with pytest.raises(EmbspaceError) as error:
        Weights(model).W_Q(1)
    says(error, "ln1")


@pytest.mark.parametrize("how", ["nan", "inf"])
@pytest.mark.parametrize("which", [name for name in SPOILT if name != "W_E"])
def test_weights_that_are_not_numbers_say_so(which, how):
    path, read = SPOILT[which]
    model = zoo.boot(zoo.ZOO["llama"]())
    spoil_bridge(model, path, how)
    with pytest.raises(EmbspaceError) as error:
        read(Weights(model))
    says(error, which)


# -- TransformerLens's own models


def own_oracle(model: nn.Module) -> Effective:
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

    found = Effective(
        state["tok_embed.weight"], read(state["head.weight"].T, "ln_out"), state.get("pos.weight"), layer_norm
    )
    for layer in range(cfg.n_layers):
        at = f"layers.{layer}."
        q, k, v = (read(heads(state[f"{at}attn.{x}.weight"]), f"{at}ln1") for x in "qkv")
        k, v = (w.repeat_interleave(cfg.n_heads // len(w), 0) for w in (k, v))
        w_o = state[f"{at}attn.o.weight"].T.unflatten(0, (cfg.n_heads, -1))
        found.attention[layer] = {"W_Q": q, "W_K": k, "W_V": v, "W_O": w_o}
        if not cfg.attn_only:
            weights = {
                f"W_{part}": state[f"{at}mlp.{part}.weight"].T
                for part in ("in", "gate", "out")
                if f"{at}mlp.{part}.weight" in state
            }
            found.mlp[layer] = {None: {w: x if w == "W_out" else read(x, f"{at}ln2") for w, x in weights.items()}}
    return found


@pytest.mark.parametrize("name", zoo.NATIVE)
@pytest.mark.parametrize("state", ["raw", "compat"])
def test_native_bridges(name, state):
    model = zoo.NATIVE[name]()
    expected = own_oracle(model)
    model = zoo.compat(model) if state == "compat" else model
    check_all(Weights(model), expected, processed=state == "compat")


def hooked_oracle(model: nn.Module) -> Effective:
    """The effective weights of a raw HookedTransformer."""
    state, cfg = {k: v.detach().double() for k, v in model.state_dict().items()}, model.cfg
    layer_norm = cfg.normalization_type == "LN"

    def read(weight: Tensor, norm: str) -> Tensor:
        weight = weight * state[f"{norm}.w"][:, None] if f"{norm}.w" in state else weight
        return centred(weight, -2) if layer_norm else weight

    found = Effective(
        state["embed.W_E"], read(state["unembed.W_U"], "ln_final"), state.get("pos_embed.W_pos"), layer_norm
    )
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}."
        grouped = f"{at}attn._W_K" in state
        q, k, v = (state[f"{at}attn.{'_' if grouped and x != 'Q' else ''}W_{x}"] for x in "QKV")
        k, v = (w.repeat_interleave(cfg.n_heads // len(w), 0) for w in (k, v))
        q, k, v = (read(w, f"{at}ln1") for w in (q, k, v))
        found.attention[layer] = {"W_Q": q, "W_K": k, "W_V": v, "W_O": state[f"{at}attn.W_O"]}
        if cfg.attn_only:
            continue
        found.mlp[layer] = {}
        for expert in [None] if cfg.num_experts is None else range(cfg.num_experts):
            if expert is None:
                weights = {w: state[f"{at}mlp.{w}"] for w in ("W_in", "W_gate", "W_out") if f"{at}mlp.{w}" in state}
            else:
                weights = {w: state[f"{at}mlp.experts.{expert}.{w}.weight"].T for w in ("W_in", "W_gate", "W_out")}
            found.mlp[layer][expert] = {w: x if w == "W_out" else read(x, f"{at}ln2") for w, x in weights.items()}
    return found


@pytest.mark.skipif(not zoo.HT_ZOO, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", zoo.HT_ZOO or ["none"])
@pytest.mark.parametrize("state", ["raw", "processed"])
def test_hooked_transformers(name, state):
    model = zoo.HT_ZOO[name]()
    expected = hooked_oracle(model)
    if state == "processed":
        model.process_weights_()
    check_all(Weights(model), expected, processed=state == "processed")


@pytest.mark.skipif(not zoo.HT_ZOO, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("name", [n for n in zoo.HT_ZOO if n != "ht_moe"] or ["none"])
def test_hooked_transformers_compute_with_these_weights(name):
    model = zoo.HT_ZOO[name]()
    weights, kind = Weights(model), model.cfg.normalization_type
    with torch.no_grad():
        cache = {k: v.double() for k, v in model.run_with_cache(TOKENS)[1].items()}

    def seen(x: Tensor, ln: str) -> Tensor:
        return changes(x if kind is None else normalised(x, model.blocks[0]._modules[ln], kind == "LN"))

    for layer in range(2):
        at = f"blocks.{layer}."
        x = seen(cache[f"{at}hook_resid_pre"], "ln1")[:, None]
        for letter in "qkv":
            out = changes(cache[f"{at}attn.hook_{letter}"]).transpose(1, 2)
            out = out.repeat_interleave(4 // out.shape[1], 1)
            assert error(x @ getattr(weights, f"W_{letter.upper()}")(layer).double(), out) <= 1e-4
        z = changes(cache[f"{at}attn.hook_z"]).transpose(1, 2)
        assert error((z @ weights.W_O(layer).double()).sum(1), changes(cache[f"{at}hook_attn_out"])) <= 1e-4
        if model.cfg.attn_only:
            continue
        middle = cache[f"{at}hook_resid_pre" if model.cfg.parallel_attn_mlp else f"{at}hook_resid_mid"]
        x = seen(middle, "ln2")
        if model.cfg.gated_mlp:
            assert error(x @ weights.W_gate(layer).double(), changes(cache[f"{at}mlp.hook_pre"])) <= 1e-4
            assert error(x @ weights.W_in(layer).double(), changes(cache[f"{at}mlp.hook_pre_linear"])) <= 1e-4
        else:
            assert error(x @ weights.W_in(layer).double(), changes(cache[f"{at}mlp.hook_pre"])) <= 1e-4
        post = changes(cache[f"{at}mlp.hook_post"])
        assert error(post @ weights.W_out(layer).double(), changes(cache[f"{at}hook_mlp_out"])) <= 1e-4
