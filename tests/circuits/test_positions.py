"""Positions: rotary distances against the attention scores of a forward pass, learned ones against slow loops."""

import doctest
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from reference import brute_top_pairs
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, difference
from embspace_lens.circuits import position_heads, position_qk
from embspace_lens.weights.effective import Weights
from embspace_lens.weights.modules import unwrap
from embspace_lens.weights.rotary import HALVES, NEIGHBOURS

TOKENS = torch.tensor([[5, 9, 11, 40, 7, 3, 88, 60, 5]])
NOT_ROTARY = ["gpt2", "bloom", "opt", "falcon_rw", "bert"]
UNKNOWN = ["llama4_text", "nanochat", "hunyuan_dense"]


def config_of(name):
    row = zoo._TABLE.get(name)
    return row[1] if row else ""


ROTARY = [name for name in zoo.ZOO if config_of(name) in HALVES | NEIGHBOURS and name not in NOT_ROTARY]
ROTARY = [
    name for name in ROTARY if name not in zoo.UNAVAILABLE and name not in ("falcon_40b", "stablelm_parallel")
]  # whose norms take heads otherwise
ROTARY += ["native_rms_gqa", *(["ht_gqa_gated_rms", "ht_adjacent"] if zoo.HT_ZOO else [])]


@pytest.fixture(scope="module")
def model_of(tiny):
    def get(name) -> Any:
        if name == "ht_adjacent":
            settings = dict(
                act_fn="silu", gated_mlp=True, normalization_type="RMS", positional_embedding_type="rotary",
                rotary_dim=4, rotary_adjacent_pairs=True,
            )  # fmt: skip
            return zoo._hooked(name, settings)
        if name == "native_rms":
            return zoo._native(name, dict(act_fn="silu", normalization_type="RMS"))
        return tiny(name) if name in zoo.ZOO else (zoo.NATIVE | zoo.HT_ZOO)[name]()

    return get


def scale_of(model, d_head):
    """What the forward pass multiplies products of queries and keys by."""
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    if getattr(config, "attention_multiplier", None) is not None:
        return config.attention_multiplier
    return (getattr(config, "query_pre_attn_scalar", None) or d_head) ** -0.5


@pytest.mark.parametrize("name", ROTARY)
def test_the_rotation_is_the_forward_passes(model_of, name):
    """Queries and keys as they pass, turned by R(Δ), give the attention the model pays at every pair of places."""
    if name.startswith("cohere") and zoo.HT_ZOO:
        pytest.skip("TransformerLens 3 runs Cohere wrongly: its logits are not Hugging Face's")
    model = model_of(name)
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
                whole = gain.numel() != x.shape[-1]  # over all heads together
                with torch.no_grad():
                    made = attn._modules[norm](x.flatten(-2) if whole else x).reshape(x.shape)[0].double()
                q, k = (made, k) if norm == "q_norm" else (q, made)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        expected = torch.full((q.shape[1], n, n), -torch.inf, dtype=torch.float64)
        for i in range(n):
            for j in range(i + 1):
                turned = q[i] @ weights.rotation(layer, i - j)
                expected[:, i, j] = scale_of(model, q.shape[-1]) * (turned * k[j]).sum(dim=-1)
        cap = getattr(model.cfg, "attn_scores_soft_cap", -1)
        expected = cap * (expected / cap).tanh() if cap and cap > 0 else expected
        expected = expected.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -torch.inf)
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][0].double()
        if (scores >= 0).all():  # what passes there is the pattern already
            scores, expected = scores, expected.softmax(dim=-1)
        seen = torch.isfinite(scores) & (scores > -1e8)
        assert seen.sum() > 4 * n
        torch.testing.assert_close(expected[seen], scores[seen], atol=2e-4, rtol=2e-4)
        moved = weights.rotation(layer, 3) - weights.rotation(layer, 0)
        assert moved.abs().max() > 1e-3 or name in ("cohere2", "exaone4"), "distance makes a difference"


def test_scores_of_tokens_are_the_forward_passes(model_of):
    """Block 0 of a Llama sees token embeddings alone: its scores, norms undone, are the lens's, at every distance."""
    model = model_of("llama")
    lens = EmbeddingLens(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    E = model.W_E.detach().double()
    length = (E[TOKENS[0]].square().mean(dim=1) + model.cfg.eps).sqrt()
    for distance in (0, 1, 4):
        table: Any = lens.qk(layer=0, distance=distance, k=zoo.D_VOCAB**2)
        found = table.set_index(["head", "dest_token_index", "src_token_index"])["score"]
        for i in range(distance, TOKENS.shape[1]):
            j = i - distance
            for head in range(4):
                score = cache["blocks.0.attn.hook_attn_scores"][0, head, i, j] * 8**0.5 * length[i] * length[j]
                assert found[head, int(TOKENS[0, i]), int(TOKENS[0, j])] == pytest.approx(
                    score.item(), abs=2e-3, rel=1e-4
                )


@pytest.mark.parametrize("name", ["llama", "cohere", "glm"])
@pytest.mark.parametrize("distance", [0, 2, 23])
def test_pairs_at_a_distance_equal_slow_loops(tiny, name, distance):
    lens = EmbeddingLens(tiny(name), vocabulary=range(30), space="embed")
    found: Any = lens.qk(layer=1, head=2, distance=distance, k=12)
    W = lens.weights
    turned = W.W_Q(1)[2].double() @ W.rotation(1, distance)
    score, i, j = brute_top_pairs(lens.space.read[:], turned, W.W_K(1)[2], lens.space.read[:], 12)
    assert found["dest_token_index"].tolist() == i.tolist() and found["src_token_index"].tolist() == j.tolist()
    np.testing.assert_allclose(found["score"], score, rtol=1e-4)
    plain = lens.qk(layer=1, head=2, k=12)
    assert plain.equals(lens.qk(layer=1, head=2, k=12, distance=0)) == (distance >= 0)
    assert distance == 0 or not plain.equals(found)
    assert found.columns.tolist() == plain.columns.tolist()


def test_blocks_without_positions_are_not_turned():
    hf = zoo._build("cohere2", "Cohere2Config", "Cohere2ForCausalLM", zoo.LLAMA | zoo.SLIDING)
    weights = Weights(zoo.boot(hf))
    assert not torch.equal(weights.rotation(0, 3), torch.eye(8, dtype=torch.float64))
    assert torch.equal(weights.rotation(1, 3), torch.eye(8, dtype=torch.float64))
    kept = zoo.LLAMA | dict(no_rope_layers=[0, 1])
    weights = Weights(zoo.boot(zoo._build("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", kept)))
    assert torch.equal(weights.rotation(0, 3), torch.eye(8, dtype=torch.float64))
    assert not torch.equal(weights.rotation(1, 3), torch.eye(8, dtype=torch.float64))


def test_a_difference_at_a_distance():
    base, tuned = (zoo.ZOO["llama"]() for _ in range(2))
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight.mul_(2)  # pyright: ignore
    after, before = EmbeddingLens(zoo.boot(tuned)), EmbeddingLens(zoo.boot(base))
    found: Any = difference(after, before).qk(layer=0, distance=3)
    expected: Any = before.qk(layer=0, distance=3)
    assert found["src_token_index"].tolist() == expected["src_token_index"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)


@pytest.mark.parametrize("name", NOT_ROTARY + (["ht_gpt2"] if zoo.HT_ZOO else []))
def test_a_distance_needs_rotary_positions(model_of, name):
    with pytest.raises(EmbspaceError, match="A distance in .* is not read: it has no rotary positions"):
        EmbeddingLens(model_of(name)).qk(layer=0, distance=1)


@pytest.mark.parametrize("name", [name for name in UNKNOWN if name not in zoo.UNAVAILABLE])
def test_what_is_not_known_is_refused(model_of, name):
    with pytest.raises(EmbspaceError, match="turns its queries and keys is not known here"):
        EmbeddingLens(model_of(name)).qk(layer=0, distance=1)


@pytest.mark.parametrize("distance", [-1, 24, 1.5, True, "2"])
def test_distances_that_are_none(tiny, distance):
    with pytest.raises(EmbspaceError, match="is not a number of tokens between 0 and 23"):
        EmbeddingLens(tiny("llama")).qk(layer=0, distance=distance)


def test_frequencies_that_follow_the_length_are_refused():
    scaling = dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0))
    lens = EmbeddingLens(zoo.boot(zoo._build("llama", "LlamaConfig", "LlamaForCausalLM", zoo.LLAMA | scaling)))
    with pytest.raises(EmbspaceError, match=r"its rotation \(dynamic\) depends on how long the text is"):
        lens.qk(layer=0, distance=1)


# -- learned positions

LEARNED = [
    "gpt2",
    "gpt_neo",
    "opt",
    "gpt_bigcode",
    "native_ln",
    "native_rms",
    *(["ht_gpt2", "ht_no_norm"] if zoo.HT_ZOO else []),
]
SHARES = ["previous_token", "first_token", "same_position", "uniform"]
TERMS = ["token_token", "token_position", "position_token", "position_position"]


@pytest.mark.parametrize("name", LEARNED)
def test_position_scores_equal_slow_loops(model_of, name):
    lens = EmbeddingLens(model_of(name))
    found: Any = position_qk(lens, positions=range(3, 9))
    check_tidy(found, ["layer", "head", "dest_pos", "src_pos"], ["layer", "head", "dest_pos", "src_pos", "score"])
    assert len(found) == 2 * 4 * 6 * 7 / 2
    if name == "gpt_neo":
        far: Any = position_qk(lens, head=0, positions=[0, 7, 8, 20])
        assert (far["layer"] == 0).sum() == 10
        assert far.query("layer == 1")[["dest_pos", "src_pos"]].values.tolist() == [
            [0, 0], [7, 0], [7, 7], [8, 7], [8, 8], [20, 20],
        ]  # fmt: skip
    p = lens.weights.W_pos.double()
    for row in found.itertuples():
        assert row.src_pos <= row.dest_pos
        q, k = (getattr(lens.weights, f"W_{x}")(row.layer)[row.head].double() for x in "QK")
        assert row.score == pytest.approx(float(p[row.dest_pos] @ q @ (p[row.src_pos] @ k)), abs=1e-4)


def slow_heads(lens, layer, head, scale, often=None):
    """Attention of mean tokens, and the four terms' mean squares, one pair at a time."""
    W, n = lens.weights, lens.weights.W_pos.shape[0]
    E, p = W.W_E.double(), W.W_pos.double()
    ids = lens.space.ids
    E = E if ids is None else E[ids]
    share = torch.ones(len(E)).double() if often is None else (often if ids is None else often[ids]).double()
    share = share / share.sum()
    q, k = W.W_Q(layer)[head].double(), W.W_K(layer)[head].double()
    norm = W.host.blocks[layer].before_attn
    x = [sum(f * e for f, e in zip(share, E)) + row for row in p]
    if norm.name:
        x = [v / ((v - v.mean() if norm.centres else v).square().mean() + W.host.cfg.eps).sqrt() for v in x]
    A, b = np.zeros((n, n)), {}
    for side in "QK":
        stored = getattr(W.host.blocks[layer].attn, f"b_{side}", None)
        b[side] = torch.zeros(8) if stored is None else stored.detach().double().reshape(-1, 8)
        b[side] = b[side] if b[side].ndim == 1 else b[side][head // (4 // len(b[side]))]
        if norm.bias is not None:
            raw = W.host.attention(W.host.blocks[layer], f"W_{side}")
            b[side] = b[side] + norm.bias.double() @ raw[head // (4 // len(raw))].double()
    for i in range(n):
        first = max(0, i - 7) if W.host.architecture == "GPTNeoForCausalLM" and layer == 1 else 0
        scores = [(x[i] @ q + b["Q"]) @ (x[j] @ k + b["K"]) * scale for j in range(first, i + 1)]
        A[i, first : i + 1] = torch.stack(scores).softmax(dim=0)
    places = range(2, n)
    shares = [np.mean([A[i, j] for i, j in zip(places, js)]) for js in (range(1, n), [0] * n, places)]
    shares.append(np.mean([1 / (A[i] > 0).sum() for i in places]))
    squares, even = [], torch.full((n,), 1 / n).double()
    for dest, f in ((E, share), (p, even)):
        for src, g in ((E, share), (p, even)):
            centred = src - g @ src
            each = ((dest @ q) @ (centred @ k).T).square()
            squares.append(sum(float(f[i] * g[j] * each[i, j]) for i in range(len(f)) for j in range(len(g))))
    return shares, [square / sum(squares) for square in squares]


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("options", [{}, dict(vocabulary=range(5, 25), score="cosine")])
@pytest.mark.parametrize("often", [None, torch.arange(zoo.D_VOCAB) % 7])
def test_position_heads_equal_slow_loops(model_of, monkeypatch, name, options, often):
    monkeypatch.setattr("embspace_lens.space.embeddings.TILE", 11)
    lens = EmbeddingLens(model_of(name), **options)
    found: Any = position_heads(lens, frequencies=often)
    check_tidy(found, ["layer", "head"], ["layer", "head", *SHARES, *TERMS])
    scale = 1.0 if name == "gpt_neo" else 8**-0.5
    for row in found.query("head == layer + 1").itertuples():
        shares, terms = slow_heads(lens, row.layer, row.head, scale, often)
        assert [getattr(row, name) for name in SHARES] == pytest.approx(shares, abs=1e-5)
        assert [getattr(row, name) for name in TERMS] == pytest.approx(terms, abs=1e-5)


def attention(model, x=None, layer=0):
    """Queries, keys and the pattern of a block, on a text or on a stream put in."""
    seen: dict[str, Any] = {}

    def keep(value, hook, name):
        seen[name] = value[0].detach()

    n = zoo.N_CTX if x is None else len(x)
    hooks: list[Any] = [] if x is None else [(f"blocks.{layer}.hook_resid_pre", lambda value, hook: x[None])]
    hooks += [(f"blocks.{layer}.attn.hook_{name}", partial(keep, name=name)) for name in ("q", "k", "pattern")]
    with torch.no_grad():
        model.run_with_hooks(torch.arange(2, n + 2)[None], fwd_hooks=hooks)
    if "pattern" not in seen:
        pytest.skip("this TransformerLens shows no pattern of this architecture")
    return seen["q"], seen["k"], seen["pattern"]


@pytest.mark.parametrize("name", LEARNED)
def test_the_scale_of_scores_is_the_forward_passes(model_of, name):
    model = model_of(name)
    q, k, pattern = attention(model)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * EmbeddingLens(model).weights.host.attention_scale(0, q.shape[-1])
    scores = scores.masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(pattern[:, :5], scores[:, :5].softmax(dim=-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fold_ln", [True, False])
@pytest.mark.parametrize("layer", [0, 1])  # GPT-Neo's second block sees 8 tokens back and no further
@pytest.mark.parametrize("name", LEARNED)
def test_attention_by_place_is_the_forward_passes(model_of, name, layer, fold_ln):
    """Mean tokens put into the stream: the forward pass attends as the table says, biases and all."""
    model = model_of(name)
    lens = EmbeddingLens(model, fold_ln=fold_ln)
    _, _, pattern = attention(model, lens.weights.W_E.mean(dim=0) + lens.weights.W_pos, layer)
    found: Any = position_heads(lens, layer=layer)
    for head in range(4):
        A = pattern[head]
        expected = [A.diagonal(-1)[1:].mean(), A[2:, 0].mean(), A.diagonal()[2:].mean()]
        assert found.loc[head, SHARES[:3]].tolist() == pytest.approx([float(x) for x in expected], abs=1e-4)


@pytest.fixture(scope="module")
def planted():
    """Heads of a model without norms and biases: head 0 looks back by one, 1 at the start, 2 at itself, 3 at tokens alone."""
    model: Any = zoo.NATIVE["native_no_norm"]()
    n = zoo.N_CTX
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
        host = EmbeddingLens(model).weights.host
        E, p = host.outer("W_E"), host.outer("W_pos")
        # Places are points on a circle of 8 numbers, and one that all share; tokens fill the others.
        angle = torch.arange(n)[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0]) * 2 * torch.pi / (n + 1)
        p.zero_()
        p[:, 0:8:2], p[:, 1:8:2], p[:, 8] = angle.cos(), angle.sin(), 1
        E.zero_()
        E[:, 9:] = torch.randn(zoo.D_VOCAB, zoo.D_MODEL - 9, generator=generator)
        block = host.blocks[0]
        q, k = (host.attention(block, f"W_{x}") for x in "QK")
        q.zero_()
        k.zero_()
        turn = torch.zeros(8, 8)
        for i, f in enumerate([1.0, 2.0, 3.0, 4.0]):
            a = torch.tensor(f * 2 * torch.pi / (n + 1))
            turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]])
        for head in (0, 1, 2):
            k[head, :8] = torch.eye(8) * 6
        q[0, :8], q[2, :8] = turn * 6, torch.eye(8) * 6
        q[1, 8] = 10 * p[0, :8]
        q[3, 9:17], k[3, 9:17] = torch.eye(8), torch.eye(8)
    return EmbeddingLens(model)


def test_planted_heads_are_told(planted):
    found: Any = position_heads(planted, layer=0)
    assert found["previous_token"].idxmax() == 0 and found["previous_token"][0] > 0.9
    assert found["first_token"].idxmax() == 1 and found["first_token"][1] > 0.9
    assert found["same_position"].idxmax() == 2 and found["same_position"][2] > 0.9
    assert found[SHARES[:3]].loc[3].tolist() == pytest.approx([found["uniform"][3]] * 3, rel=0.01), "evenly"
    assert found["position_position"][:3].tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert found["token_token"][3] == pytest.approx(1, abs=1e-4)
    table: Any = position_qk(planted, layer=0, head=0)
    scores = table.query("dest_pos == 9").set_index("src_pos")["score"]
    assert scores.idxmax() == 8


def test_both_ways_and_nothing(tiny):
    if "bert" not in zoo.UNAVAILABLE:
        found = position_qk(EmbeddingLens(tiny("bert")), layer=0, head=1, positions=[2, 5])
        assert found[["dest_pos", "src_pos"]].values.tolist() == [[2, 2], [2, 5], [5, 2], [5, 5]]
    lens = EmbeddingLens(tiny("gpt2"))
    for empty in (position_qk(lens, layer=[]), position_qk(lens, positions=[]), position_heads(lens, head=[])):
        assert len(empty) == 0 and len(empty.columns) >= 5
    with pytest.raises(EmbspaceError, match="positions=24 is out of range"):
        position_qk(lens, positions=24)
    with pytest.raises(EmbspaceError, match=r"shape \(3,\); give one number of 0 or more for each of 97 tokens"):
        position_heads(lens, frequencies=[1, 2, 3])
    with pytest.raises(EmbspaceError, match="0 for every token"):
        position_heads(lens, frequencies=[0] * 97)
    for read in (position_qk, position_heads):
        with pytest.raises(EmbspaceError, match=r"not learned embeddings. lens.qk\(distance=…\) reads rotary ones"):
            read(EmbeddingLens(tiny("llama")))


def test_the_examples_in_docstrings_run(lens):
    names = {"lens": lens, "position_qk": position_qk, "position_heads": position_heads}
    for test in doctest.DocTestFinder().find(sys.modules["embspace_lens.circuits.positions"], globs=names):
        assert doctest.DocTestRunner().run(test).failed == 0, test.name
