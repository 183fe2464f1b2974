"""Learned positions: scores and attention compared with slow loops, the forward pass, and planted heads."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from position_models import model_of
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import position_heads, position_qk
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.attention_scores import attention_scale

LEARNED = [
    "gpt2",
    "gpt_neo",
    "opt",
    "gpt_bigcode",
    "native_ln",
    "native_rms",
    *(["ht_gpt2", "ht_no_norm"] if zoo.HT_ZOO else []),
]
ATTENTION = ["previous_token", "first_token", "same_position", "uniform"]
TERMS = ["token_token", "token_position", "position_token", "position_position"]


@pytest.mark.parametrize("name", LEARNED)
def test_position_scores_equal_slow_loops(tiny, name):
    lens = EmbeddingLens(model_of(tiny, name))
    table: Any = position_qk(lens, positions=range(3, 9))
    check_tidy(table, ["layer", "head", "dest_pos", "src_pos"], ["layer", "head", "dest_pos", "src_pos", "score"])
    assert len(table) == 2 * 4 * 6 * 7 / 2
    if name == "gpt_neo":
        windowed: Any = position_qk(lens, head=0, positions=[0, 7, 8, 20])
        assert (windowed["layer"] == 0).sum() == 10
        assert windowed.query("layer == 1")[["dest_pos", "src_pos"]].values.tolist() == [
            [0, 0], [7, 0], [7, 7], [8, 7], [8, 8], [20, 20],
        ]  # fmt: skip
    p = lens.weights.W_pos.double()
    for row in table.itertuples():
        assert row.src_pos <= row.dest_pos
        q, k = (getattr(lens.weights, f"W_{x}")(row.layer)[row.head].double() for x in "QK")
        assert row.score == pytest.approx(float(p[row.dest_pos] @ q @ (p[row.src_pos] @ k)), abs=1e-4)


def slow_heads(lens, layer, head, scale, frequencies=None, window=None):
    """Attention of mean tokens, and the mean squares of the four terms, one pair at a time."""
    W, n = lens.weights, lens.weights.W_pos.shape[0]
    E, p = W.W_E.double(), W.W_pos.double()
    E = E[lens.space.token_ids]
    share = (torch.ones(zoo.D_VOCAB) if frequencies is None else frequencies)[lens.space.token_ids].double()
    share = share / share.sum()
    q, k = W.W_Q(layer)[head].double(), W.W_K(layer)[head].double()
    norm, model = W.norm("W_Q", layer), lens.model
    x = [sum(f * e for f, e in zip(share, E)) + row for row in p]
    if norm.name:
        x = [v / ((v - v.mean() if norm.centres else v).square().mean() + model.cfg.eps).sqrt() for v in x]
    A, b = np.zeros((n, n)), {}
    for side in "QK":
        stored = getattr(model.blocks[layer].attn, f"b_{side}", None)
        b[side] = torch.zeros(8) if stored is None else stored.detach().double().reshape(-1, 8)
        b[side] = b[side] if b[side].ndim == 1 else b[side][head // (4 // len(b[side]))]
        if norm.bias is not None:
            raw = W.stored(f"W_{side}", layer)
            b[side] = b[side] + norm.bias.double() @ raw[head // (4 // len(raw))].double()
    for i in range(n):
        first = max(0, i - window + 1) if window else 0
        scores = [(x[i] @ q + b["Q"]) @ (x[j] @ k + b["K"]) * scale for j in range(first, i + 1)]
        A[i, first : i + 1] = torch.stack(scores).softmax(dim=0)
    queries = range(2, n)
    means = [np.mean([A[i, j] for i, j in zip(queries, js)]) for js in (range(1, n), [0] * n, queries)]
    means.append(np.mean([1 / (A[i] > 0).sum() for i in queries]))
    squares, uniform_weights = [], torch.full((n,), 1 / n).double()
    for dest, f in ((E, share), (p, uniform_weights)):
        for src, g in ((E, share), (p, uniform_weights)):
            centred = src - g @ src
            squared_scores = ((dest @ q) @ (centred @ k).T).square()
            squares.append(sum(float(f[i] * g[j] * squared_scores[i, j]) for i in range(len(f)) for j in range(len(g))))
    return means, [square / sum(squares) for square in squares]


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("options", [{}, dict(vocabulary=range(5, 25), score="cosine")])
@pytest.mark.parametrize("frequencies", [None, torch.arange(zoo.D_VOCAB) % 7])
def test_position_heads_equal_slow_loops(tiny, name, options, frequencies):
    lens = EmbeddingLens(model_of(tiny, name), **options)
    with chunk_bytes(4 * zoo.D_MODEL * 11):  # several chunks of tokens
        table: Any = position_heads(lens, frequencies=frequencies)
    check_tidy(table, ["layer", "head"], ["layer", "head", *ATTENTION, *TERMS])
    scale = 1.0 if name == "gpt_neo" else 8**-0.5
    for row in table.query("head == layer + 1").itertuples():
        window = 8 if name == "gpt_neo" and row.layer == 1 else None
        means, terms = slow_heads(lens, row.layer, row.head, scale, frequencies, window)
        assert [getattr(row, column) for column in ATTENTION] == pytest.approx(means, abs=1e-5)
        assert [getattr(row, column) for column in TERMS] == pytest.approx(terms, abs=1e-5)


def attention(model, x=None, layer=0):
    """Queries, keys and attention pattern of a block, on a text or on given residual vectors."""
    values: dict[str, Any] = {}

    def store(value, hook, name):
        values[name] = value[0].detach()

    n = zoo.N_CTX if x is None else len(x)
    hooks: list[Any] = [] if x is None else [(f"blocks.{layer}.hook_resid_pre", lambda value, hook: x[None])]
    hooks += [(f"blocks.{layer}.attn.hook_{name}", partial(store, name=name)) for name in ("q", "k", "pattern")]
    with torch.no_grad():
        model.run_with_hooks(torch.arange(2, n + 2)[None], fwd_hooks=hooks)
    if "pattern" not in values:
        pytest.skip("this TransformerLens has no pattern hook for this architecture")
    return values["q"], values["k"], values["pattern"]


@pytest.mark.parametrize("name", LEARNED)
def test_attention_scale_equals_that_of_the_forward_pass(tiny, name):
    model = model_of(tiny, name)
    q, k, pattern = attention(model)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * attention_scale(EmbeddingLens(model).weights, 0, q.shape[-1])
    scores = scores.masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(pattern[:, :5], scores[:, :5].softmax(dim=-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fold_ln", [True, False])
@pytest.mark.parametrize("layer", [0, 1])  # GPT-Neo's second block attends to the last 8 tokens
@pytest.mark.parametrize("name", LEARNED)
def test_attention_by_position_equals_that_of_the_forward_pass(tiny, name, layer, fold_ln):
    """The attention of the forward pass on mean tokens, with biases, equals the table."""
    model = model_of(tiny, name)
    lens = EmbeddingLens(model, fold_ln=fold_ln)
    _, _, pattern = attention(model, lens.weights.W_E.mean(dim=0) + lens.weights.W_pos, layer)
    table: Any = position_heads(lens, layer=layer)
    for head in range(4):
        A = pattern[head]
        expected = [A.diagonal(-1)[1:].mean(), A[2:, 0].mean(), A.diagonal()[2:].mean()]
        assert table.loc[head, ATTENTION[:3]].tolist() == pytest.approx([float(x) for x in expected], abs=1e-4)


@pytest.fixture(scope="module")
def planted():
    """A model without norms and biases: heads 0 to 2 attend to the previous, first and own position, head 3 to tokens."""
    model: Any = zoo.NATIVE["native_no_norm"]()
    n = zoo.N_CTX
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
        weights = EmbeddingLens(model).weights
        E, p = weights.stored("W_E"), weights.stored("W_pos")
        # Positions are angles in the first 8 dimensions, and constant in the ninth; tokens use the other dimensions.
        angle = torch.arange(n)[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0]) * 2 * torch.pi / (n + 1)
        p.zero_()
        p[:, 0:8:2], p[:, 1:8:2], p[:, 8] = angle.cos(), angle.sin(), 1
        E.zero_()
        E[:, 9:] = torch.randn(zoo.D_VOCAB, zoo.D_MODEL - 9, generator=generator)
        q, k = (weights.stored(f"W_{x}", 0) for x in "QK")
        q.zero_()
        k.zero_()
        rotation = torch.zeros(8, 8)
        for i, f in enumerate([1.0, 2.0, 3.0, 4.0]):
            a = torch.tensor(f * 2 * torch.pi / (n + 1))
            rotation[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]])
        for head in (0, 1, 2):
            k[head, :8] = torch.eye(8) * 6
        q[0, :8], q[2, :8] = rotation * 6, torch.eye(8) * 6
        q[1, 8] = 10 * p[0, :8]
        q[3, 9:17], k[3, 9:17] = torch.eye(8), torch.eye(8)
    return EmbeddingLens(model)


def test_planted_heads_have_their_attention(planted):
    statistics: Any = position_heads(planted, layer=0)
    assert statistics["previous_token"].idxmax() == 0 and statistics["previous_token"][0] > 0.9
    assert statistics["first_token"].idxmax() == 1 and statistics["first_token"][1] > 0.9
    assert statistics["same_position"].idxmax() == 2 and statistics["same_position"][2] > 0.9
    assert statistics[ATTENTION[:3]].loc[3].tolist() == pytest.approx([statistics["uniform"][3]] * 3, rel=0.01), (
        "head 3 attends uniformly"
    )
    assert statistics["position_position"][:3].tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert statistics["token_token"][3] == pytest.approx(1, abs=1e-4)
    table: Any = position_qk(planted, layer=0, head=0)
    scores = table.query("dest_pos == 9").set_index("src_pos")["score"]
    assert scores.idxmax() == 8


def test_bidirectional_models_have_all_pairs(tiny):
    if "bert" in zoo.UNAVAILABLE:
        pytest.skip("this TransformerLens has no BERT")
    table = position_qk(EmbeddingLens(tiny("bert")), layer=0, head=1, positions=[2, 5])
    assert table[["dest_pos", "src_pos"]].values.tolist() == [[2, 2], [2, 5], [5, 2], [5, 5]]


def test_empty_selections_keep_the_columns(lens):
    for empty in (position_qk(lens, layer=[]), position_qk(lens, positions=[]), position_heads(lens, head=[])):
        assert len(empty) == 0 and len(empty.columns) >= 5


def test_invalid_options_raise(tiny, lens):
    with pytest.raises(EmbspaceError, match="positions=24 is out of range"):
        position_qk(lens, positions=24)
    with pytest.raises(EmbspaceError, match=r"shape \(3,\) .*Give one number of 0 or more for each of 97 tokens"):
        position_heads(lens, frequencies=[1, 2, 3])
    with pytest.raises(EmbspaceError, match="0 for every token"):
        position_heads(lens, frequencies=[0] * 97)
    for read in (position_qk, position_heads):
        with pytest.raises(EmbspaceError, match=r"not learned embeddings. lens.qk\(distance=…\) reads rotary ones"):
            read(EmbeddingLens(tiny("llama")))
