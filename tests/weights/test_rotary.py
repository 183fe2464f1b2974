"""Rotary positions: rotations compared with the attention scores of a forward pass, and errors."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from position_models import WITH_IMAGES, model_of
from reference import brute_top_pairs
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError, difference
from embspace_lens.weights.effective import Weights
from embspace_lens.weights.modules import unwrap
from embspace_lens.weights.rotary import INTERLEAVED, ROTATE_HALF

TOKENS = torch.tensor([[5, 9, 11, 40, 7, 3, 88, 60, 5]])
NOT_ROTARY = ["gpt2", "bloom", "opt", "falcon_rw", "bert"]
UNKNOWN = ["afmoe", "gemma4_text"]
ROTATED_FIRST = ("llama4_text", "nanochat", "hunyuan_dense")  # norms follow the rotation: see test_query_key_norms.py
SUPPORTED = ROTATE_HALF | INTERLEAVED
SPLIT_INCORRECTLY = (
    "falcon_40b",
    "stablelm_parallel",
)  # the host splits the heads of these incorrectly: see also test_falcon.py


def class_of(name):
    row = zoo._TABLE.get(name)
    return row[1] if row else ""


ROTARY = [
    name
    for name in zoo.ZOO
    if class_of(name) in SUPPORTED and name not in (*NOT_ROTARY, *SPLIT_INCORRECTLY, *ROTATED_FIRST, *zoo.UNAVAILABLE)
]
ROTARY += ["native_rms_gqa", *(["ht_gqa_gated_rms", "ht_adjacent"] if zoo.HT_ZOO else [])]


def scale_of(model, d_head):
    """The factor of the products of queries and keys in the forward pass."""
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    config = getattr(config, "text_config", config)
    if getattr(config, "attention_multiplier", None) is not None:
        return config.attention_multiplier
    return (getattr(config, "query_pre_attn_scalar", None) or d_head) ** -0.5


@pytest.mark.parametrize("name", ROTARY)
def test_rotations_give_the_attention_scores_of_the_forward_pass(tiny, name):
    """Scores of the cached queries and keys, rotated by R(Δ), equal the model's at every pair of positions."""
    if name.startswith("cohere") and zoo.HT_ZOO:
        pytest.skip("TransformerLens 3 runs Cohere incorrectly: its logits differ from Hugging Face's")
    check_rotations(model_of(tiny, name), name)


def check_rotations(model: Any, name: str = "") -> None:
    weights = Weights(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    n = TOKENS.shape[1]
    for layer in range(zoo.N_LAYERS):
        q, k = (cache[f"blocks.{layer}.attn.hook_{x}"][0].double() for x in "qk")
        attn: Any = model.blocks[layer].attn
        for norm in ("q_norm", "k_norm"):
            if norm in attn._modules and attn._modules[norm] is not None:
                x = (q if norm == "q_norm" else k).float()[None]
                gain: Any = unwrap(attn._modules[norm]).weight
                over_all_heads = gain.numel() != x.shape[-1]
                with torch.no_grad():
                    y = attn._modules[norm](x.flatten(-2) if over_all_heads else x).reshape(x.shape)[0].double()
                q, k = (y, k) if norm == "q_norm" else (q, y)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        expected = torch.full((q.shape[1], n, n), -torch.inf, dtype=torch.float64)
        for i in range(n):
            for j in range(i + 1):
                rotated = q[i] @ weights.rotation(layer, i - j)
                expected[:, i, j] = scale_of(model, q.shape[-1]) * (rotated * k[j]).sum(dim=-1)
        cap = getattr(model.cfg, "attn_scores_soft_cap", -1)
        expected = cap * (expected / cap).tanh() if cap and cap > 0 else expected
        expected = expected.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -torch.inf)
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][0].double()
        if (scores >= 0).all():  # in some architectures this hook point holds the pattern
            expected = expected.softmax(dim=-1)
        is_visible = torch.isfinite(scores) & (scores > -1e8)
        assert is_visible.sum() > 4 * n
        torch.testing.assert_close(expected[is_visible], scores[is_visible], atol=2e-4, rtol=2e-4)
        change = weights.rotation(layer, 3) - weights.rotation(layer, 0)
        assert change.abs().max() > 1e-3 or name in ("cohere2", "exaone4"), "rotations depend on distance"


def test_pair_scores_equal_attention_scores_of_block_0(tiny):
    """Block 0 of a Llama reads token embeddings, so its attention scores times the norms equal the lens's scores."""
    model = tiny("llama")
    lens = EmbeddingLens(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    E = model.W_E.detach().double()
    length = (E[TOKENS[0]].square().mean(dim=1) + model.cfg.eps).sqrt()
    for distance in (0, 1, 4):
        table: Any = lens.qk(layer=0, distance=distance, k=zoo.D_VOCAB**2)
        scores = table.set_index(["head", "dest_token_index", "src_token_index"])["score"]
        for i in range(distance, TOKENS.shape[1]):
            j = i - distance
            for head in range(4):
                score = cache["blocks.0.attn.hook_attn_scores"][0, head, i, j] * 8**0.5 * length[i] * length[j]
                assert scores[head, int(TOKENS[0, i]), int(TOKENS[0, j])] == pytest.approx(
                    score.item(), abs=2e-3, rel=1e-4
                )


@pytest.mark.parametrize("name", ["llama", "cohere", "glm"])
@pytest.mark.parametrize("distance", [0, 2, 23])
def test_pairs_at_a_distance_equal_slow_loops(tiny, name, distance):
    lens = EmbeddingLens(tiny(name), vocabulary=range(30), space="embed")
    table: Any = lens.qk(layer=1, head=2, distance=distance, k=12)
    W = lens.weights
    rotated = W.W_Q(1)[2].double() @ W.rotation(1, distance)
    score, i, j = brute_top_pairs(lens.space.read[:], rotated, W.W_K(1)[2], lens.space.read[:], 12)
    assert table["dest_token_index"].tolist() == i.tolist() and table["src_token_index"].tolist() == j.tolist()
    np.testing.assert_allclose(table["score"], score, rtol=1e-4)
    plain = lens.qk(layer=1, head=2, k=12)
    assert plain.equals(lens.qk(layer=1, head=2, k=12, distance=0)) == (distance >= 0)
    assert distance == 0 or not plain.equals(table)
    assert table.columns.tolist() == plain.columns.tolist()


def test_blocks_without_rotary_positions_have_the_identity():
    hf = zoo._build("cohere2", "Cohere2Config", "Cohere2ForCausalLM", zoo.LLAMA | zoo.SLIDING)
    weights = Weights(zoo.boot(hf))
    assert not torch.equal(weights.rotation(0, 3), torch.eye(8, dtype=torch.float64))
    assert torch.equal(weights.rotation(1, 3), torch.eye(8, dtype=torch.float64))
    settings = zoo.LLAMA | dict(no_rope_layers=[0, 1])
    weights = Weights(zoo.boot(zoo._build("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", settings)))
    assert torch.equal(weights.rotation(0, 3), torch.eye(8, dtype=torch.float64))
    assert not torch.equal(weights.rotation(1, 3), torch.eye(8, dtype=torch.float64))


def test_a_difference_of_models_can_be_read_at_a_distance():
    base, tuned = (zoo.ZOO["llama"]() for _ in range(2))
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight.mul_(2)  # pyright: ignore
    after, before = EmbeddingLens(zoo.boot(tuned)), EmbeddingLens(zoo.boot(base))
    table: Any = difference(after, before).qk(layer=0, distance=3)
    expected: Any = before.qk(layer=0, distance=3)
    assert table["src_token_index"].tolist() == expected["src_token_index"].tolist()
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-4)


@pytest.mark.parametrize("name", NOT_ROTARY + (["ht_gpt2"] if zoo.HT_ZOO else []))
def test_a_distance_without_rotary_positions_raises(tiny, name):
    with pytest.raises(EmbspaceError, match="A distance in .* is not supported: it has no rotary positions"):
        EmbeddingLens(model_of(tiny, name)).qk(layer=0, distance=1)


@pytest.mark.parametrize("name", [name for name in UNKNOWN if name not in zoo.UNAVAILABLE])
def test_unknown_rotations_raise(tiny, name):
    with pytest.raises(EmbspaceError, match="it is unknown which dimensions of a head .* rotates together"):
        EmbeddingLens(model_of(tiny, name)).qk(layer=0, distance=1)


@pytest.mark.parametrize("distance", [-1, 24, 1.5, True, "2"])
def test_invalid_distances_raise(tiny, distance):
    with unchecked_types(), pytest.raises(EmbspaceError, match=f"distance={distance!r} is not an integer from 0 to 23"):
        EmbeddingLens(tiny("llama")).qk(layer=0, distance=distance)


def test_length_dependent_rotations_raise():
    scaling = dict(
        original_max_position_embeddings=8,
        rope_parameters=dict(
            rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, rope_theta=10000.0,
            original_max_position_embeddings=8,
        ),
    )  # fmt: skip
    lens = EmbeddingLens(zoo.boot(zoo._build("phi3", "Phi3Config", "Phi3ForCausalLM", zoo.LLAMA | scaling)))
    with pytest.raises(EmbspaceError, match=r"its rotation \(longrope\) depends on the length of the text"):
        lens.qk(layer=0, distance=1)


def test_dynamic_rotations_are_those_of_texts_within_the_context_window():
    scaling = dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0))
    model: Any = zoo.boot(zoo._build("llama", "LlamaConfig", "LlamaForCausalLM", zoo.LLAMA | scaling))
    check_rotations(model)
    rotation = Weights(model).rotation(0, 5)
    with torch.no_grad():
        model(torch.arange(3, 3 + 2 * zoo.N_CTX)[None])  # longer than the context window: the frequencies change
    assert torch.equal(Weights(model).rotation(0, 5), rotation)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("llava", "qwen2_5_vl") else pytest.mark.full) for name in WITH_IMAGES],
)
def test_language_models_with_images_rotate_as_the_language_model_alone(name):
    if name.startswith("qwen") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("TransformerLens boots this model only if torchvision is installed")
    check_rotations(zoo.boot(WITH_IMAGES[name]()))
