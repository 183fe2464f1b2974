"""Recall of hidden states: compared with slow loops, on a model with a known recall, and errors."""

import numpy as np
import pytest
import torch
import zoo
from reference import brute_recall
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, evidence
from embspace_lens.evidence.layer_directions import directions_of
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.parameter_names import side_of

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "w9 w3 w11 w12 w2 w14 w15", "w16"]
COLUMNS = ["target", "layer", "weight", "sample", "recall", "low", "high", "n"]


def scores_of(lens, weight, layer):
    return lens.project(torch.cat(list(directions_of(lens.weights, weight, layer))), side_of(weight))


def run_alone(lens, text):
    """The activations of one text without padding and without special tokens."""
    model = lens.model
    n_text_tokens = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(text))
    return {
        name: value[0, -n_text_tokens:]
        for name, value in cache.items()
        if value.ndim >= 3 and len(value[0]) >= n_text_tokens
    }


@pytest.mark.parametrize(("name", "options"), [("gpt2", {}), ("llama", {"score": "cosine", "space": "unembed"})])
def test_recall_equals_slow_loops(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    frame = evidence.hidden_state_recall(lens, TEXTS, k=6, n_active=3, batch_tokens=12)
    check_tidy(frame, COLUMNS[:4], COLUMNS)
    assert (frame["n"] == 15).all() and frame.attrs["embspace_kind"] == "recall"
    recall = frame.set_index(COLUMNS[:4])["recall"]
    caches = [run_alone(lens, text) for text in TEXTS]
    weights = ["W_in", "W_out", "W_V", "W_O"] + (["W_gate"] if name == "llama" else [])
    assert set(frame["weight"]) == set(weights)
    for weight in weights:
        hook = "mlp.hook_post" if weight in ("W_in", "W_gate", "W_out") else "attn.hook_z"
        for layer in (0, 1):
            for target, state_layer in (("layer", layer), ("final", 1)):
                state = torch.cat([cache[f"blocks.{state_layer}.hook_resid_post"] for cache in caches])
                active = torch.cat([cache[f"blocks.{layer}.{hook}"].flatten(1) for cache in caches])
                slow = brute_recall(lens.project(state), active, scores_of(lens, weight, layer), 6, 3)
                assert recall[target, layer, weight, "aligned"] == pytest.approx(np.mean(slow), rel=1e-5)
    aligned = frame[frame["sample"] == "aligned"]
    assert (aligned["low"] <= aligned["recall"]).all() and (aligned["recall"] <= aligned["high"]).all()


def test_states_behind_the_final_norm_are_scored_with_its_bias(tiny):
    lens = EmbeddingLens(tiny("gpt2"), fold_ln=False, space="unembed")
    options = {"weight": "W_out", "k": 6, "n_active": 3}
    frame = evidence.hidden_state_recall(lens, TEXTS, final_norm=True, **options)
    norm = lens.weights.norm("W_U")
    caches = [run_alone(lens, text) for text in TEXTS]
    for layer in (0, 1):
        state = torch.cat([cache[f"blocks.{layer}.hook_resid_post"] for cache in caches])
        state = torch.nn.functional.layer_norm(state, (lens.weights.d_model,), norm.gain, norm.bias)
        active = torch.cat([cache[f"blocks.{layer}.mlp.hook_post"].flatten(1) for cache in caches])
        slow = brute_recall(lens.project(state), active, scores_of(lens, "W_out", layer), 6, 3)
        row = frame[(frame["target"] == "layer") & (frame["layer"] == layer) & (frame["sample"] == "aligned")]
        assert row["recall"].item() == pytest.approx(np.mean(slow), rel=1e-5)


def test_final_norm_is_refused_by_a_lens_that_folds_it(lens):
    message = "final_norm=True needs raw weights: the lens of gpt2 folds norms. Give EmbeddingLens(…, fold_ln=False)."
    with pytest.raises(EmbspaceError) as refusal:
        evidence.hidden_state_recall(lens, TEXTS, k=5, final_norm=True)
    assert str(refusal.value).replace(lens.name, "gpt2") == message


def one_neuron_per_token():
    """A model of one block whose neuron i is active at token i only, and writes a large vector that differs between neurons."""
    hf = zoo._build("gpt2", "GPT2Config", "GPT2LMHeadModel", zoo.GPT | dict(n_inner=zoo.D_MLP, n_layer=1))
    block = hf.transformer.h[0]
    with torch.no_grad():
        hf.transformer.wpe.weight.zero_()
        for parameter in (block.attn.c_proj.weight, block.attn.c_proj.bias, block.mlp.c_proj.bias, block.ln_2.bias):
            parameter.zero_()
        block.ln_2.weight.fill_(1)
        normalised = torch.nn.functional.layer_norm(hf.transformer.wte.weight[: zoo.D_MLP], (zoo.D_MODEL,))
        block.mlp.c_fc.weight.copy_(normalised.T)
        block.mlp.c_fc.bias.fill_(-26)
        block.mlp.c_proj.weight.copy_(100 * torch.randn(zoo.D_MLP, zoo.D_MODEL))
    return zoo.boot(hf)


def test_output_of_a_block_is_recalled_from_its_active_neuron():
    lens = EmbeddingLens(one_neuron_per_token())
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(2, 40, 3)]
    frame = evidence.hidden_state_recall(lens, texts, weight="W_out", k=10, n_active=1)
    assert (frame[frame["sample"] == "aligned"]["recall"] > 0.9).all()
    assert (frame[frame["sample"] == "permuted"]["recall"] < 0.25).all(), "10 of 97 tokens by chance"
    assert (frame[frame["sample"] == "permuted"]["high"] < 0.3).all()


def test_result_is_independent_of_batch_size_and_chunk_size(lens):
    default_batches = evidence.hidden_state_recall(lens, TEXTS, k=6, seeds=2)
    for tokens in (4, 16):
        other = evidence.hidden_state_recall(lens, TEXTS, k=6, seeds=2, batch_tokens=tokens)
        aligned = (
            default_batches["sample"] == "aligned"
        )  # the permutations differ, because the tokens have another order
        columns = ["recall", "low", "high"]
        assert np.allclose(default_batches[aligned][columns], other[aligned][columns], atol=0.01)
    with chunk_bytes(97 * 3):
        assert evidence.hidden_state_recall(lens, TEXTS, k=6, seeds=2).equals(default_batches)


def test_one_text_has_no_bootstrap_interval(lens):
    frame = evidence.hidden_state_recall(lens, TEXTS[:1], weight="W_O", layer=0, target="layer", k=5, n_active=1)
    assert frame["target"].tolist() == ["layer"] * 2 and frame["weight"].tolist() == ["W_O"] * 2
    assert frame["low"].isna().tolist() == [True, False]


def test_output_of_the_last_block_is_the_final_state(lens):
    frame = evidence.hidden_state_recall(lens, TEXTS, layer=1, k=5)
    by_target = [
        frame[frame["target"] == target].drop(columns="target").reset_index(drop=True) for target in ("layer", "final")
    ]
    assert by_target[0].equals(by_target[1])


def test_experts_are_left_out_unless_they_are_named(moe_lens):
    frame = evidence.hidden_state_recall(moe_lens, TEXTS, k=5, seeds=2)
    assert set(frame["weight"]) == {"W_V", "W_O"}
    with pytest.raises(
        EmbspaceError, match="W_out of block 0 of zoo cannot be measured: the activations of a mixture's experts"
    ):
        evidence.hidden_state_recall(moe_lens, TEXTS, weight="W_out", k=5)


def test_model_is_unchanged(tiny):
    model = tiny("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evidence.hidden_state_recall(EmbeddingLens(model), TEXTS, k=5, seeds=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "texts holds no tokens"),
        ([""], {}, "texts holds no tokens"),
        ("w2 w3", {}, "texts is one string"),
        (TEXTS, {"k": 98}, "k=98 is not an integer from 1 to 97"),
        (TEXTS, {"target": "last"}, "target='last' is not one of 'final', 'layer'"),
        (TEXTS, {"weight": "W_Q"}, "weight='W_Q' is not one of"),
        (TEXTS, {"weight": "W_gate"}, "is not gated: it has no W_gate"),
        (
            TEXTS,
            {"n_active": 33},
            "n_active=33 is not an integer from 1 to 32, the number of sub-heads of W_V in block 0",
        ),
        (TEXTS, {"n_active": 0}, "n_active=0 is not an integer from 1 to"),
        (TEXTS, {"seeds": 0}, "seeds=0 is not an integer of 2 or more"),
        (TEXTS, {"layer": 2}, "layer=2 is out of range"),
    ],
)
def test_errors_state_what_is_allowed(lens, texts, options, message, unchecked_types):
    with pytest.raises(EmbspaceError, match=message):
        evidence.hidden_state_recall(lens, texts, **{"k": 5} | options)


def test_missing_mlp_and_missing_tokenizer_raise_an_error():
    lens = EmbeddingLens(zoo.NATIVE["native_attn_only"]())
    with pytest.raises(EmbspaceError, match="has no MLP|have no MLP"):
        evidence.hidden_state_recall(lens, TEXTS, weight="W_in", k=5)
    with pytest.raises(EmbspaceError, match="has no tokenizer"):
        evidence.hidden_state_recall(lens, TEXTS, k=5)
