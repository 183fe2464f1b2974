"""Statistics of neurons and heads: compared with slow loops, and on weights with planted roles."""

from typing import Any

import numpy as np
import pytest
import torch
import zoo
from reference import brute_moments, brute_positive_share
from scipy import stats
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import head_statistics, neuron_statistics
from embspace_lens.circuits.statistics import positive_share, vocab_moments
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.space.embeddings import Embedding
from embspace_lens.tables.columns import GLOSSARY

NEURON = ["in_norm", "gate_norm", "out_norm", "in_out_similarity", "gate_out_similarity", "in_gate_similarity"]
NEURON += ["vocab_mean", "vocab_variance", "vocab_skew", "vocab_kurtosis", "role"]
HEAD = ["ov_norm", "qk_norm", "ov_effective_rank", "qk_effective_rank", "ov_copying", "qk_matching"]
MODELS = ["gpt2", "llama", "gemma2", "falcon_7b", "olmo2"]


def in_glossary_order(columns):
    return [name for name in GLOSSARY if name in columns]


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", [*MODELS, "qwen2_moe"])
@pytest.mark.parametrize("options", [{}, dict(space="embed", vocabulary=range(5, 60)), dict(score="cosine")])
def test_neuron_statistics_equal_slow_loops(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    table: Any = neuron_statistics(lens)
    grain = ["layer", *(["expert"] if lens.weights.has_experts else []), "neuron"]
    check_tidy(table, grain, in_glossary_order([*grain, *NEURON]))
    write = EmbeddingLens(tiny(name), **{**options, "score": "centered"}).space.write[:].double()
    for row in table.groupby(grain[:-1]).head(4).itertuples():
        mlp = (row.layer, row.expert) if lens.weights.has_experts else (row.layer,)
        x = {w: lens.weights.directions(w, *mlp)[row.neuron].double() for w in ("W_in", "W_out")}
        if lens.weights.is_gated(row.layer):
            x["W_gate"] = lens.weights.directions("W_gate", *mlp)[row.neuron].double()
            assert row.gate_norm == pytest.approx(float(x["W_gate"].norm()), rel=1e-5)
            assert row.gate_out_similarity == pytest.approx(cosine(x["W_gate"], x["W_out"]), abs=1e-6)
            assert row.in_gate_similarity == pytest.approx(cosine(x["W_gate"], x["W_in"]), abs=1e-6)
        else:
            assert np.isnan([row.gate_norm, row.gate_out_similarity, row.in_gate_similarity]).all()
        assert row.in_norm == pytest.approx(float(x["W_in"].norm()), rel=1e-5)
        assert row.out_norm == pytest.approx(float(x["W_out"].norm()), rel=1e-5)
        assert row.in_out_similarity == pytest.approx(cosine(x["W_in"], x["W_out"]), abs=1e-6)
        mean, variance, skew, kurtosis = brute_moments([cosine(x["W_out"], token) for token in write])
        assert row.vocab_mean == pytest.approx(mean, abs=1e-6)
        assert row.vocab_variance == pytest.approx(variance, rel=1e-4)
        assert row.vocab_skew == pytest.approx(skew, abs=1e-4)
        assert row.vocab_kurtosis == pytest.approx(kurtosis, rel=1e-4)


def test_moments_equal_scipys():
    matrix = torch.randn(1234, 16) * torch.rand(1234, 1) ** 3
    embedding, vectors = Embedding(matrix, score="centered"), torch.randn(10, 16)
    with chunk_bytes(4 * 16 * 100):  # several chunks of tokens, and of vectors
        moments = vocab_moments(vectors, embedding)
    scores = (vectors.double() @ (matrix - matrix.mean(dim=0)).double().T).numpy()
    np.testing.assert_allclose(moments["vocab_mean"], scores.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(moments["vocab_variance"], scores.var(axis=1), rtol=1e-5)
    np.testing.assert_allclose(moments["vocab_skew"], stats.skew(scores, axis=1), atol=1e-5)
    np.testing.assert_allclose(moments["vocab_kurtosis"], stats.kurtosis(scores, axis=1, fisher=False), rtol=1e-5)
    assert np.isnan(vocab_moments(torch.zeros(1, 16), embedding)["vocab_kurtosis"]).all()


@pytest.fixture(scope="module")
def planted():
    """A Llama with planted neurons: token 5 has its own direction in W_U, and the last dimension of W_U is zero."""
    hf: Any = zoo.ZOO["llama"]()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in hf.modules():
            if "Norm" in type(module).__name__:
                module.weight.fill_(1)
        tokens = torch.zeros(zoo.D_VOCAB, 32)
        tokens[:, :24] = torch.randn(zoo.D_VOCAB, 24, generator=generator)
        tokens[5] = 0
        tokens[5, 24] = 5
        hf.lm_head.weight.copy_(tokens)
        hf.model.embed_tokens.weight.copy_(torch.randn(zoo.D_VOCAB, 32, generator=generator))
        for layer in hf.model.layers:
            down = layer.mlp.down_proj.weight.T
            down[:, 24:] = 0
            down[0], down[1], down[2] = 0, 0, 0
            down[0, 24], down[1, 24], down[2, 31] = 2.0, -2.0, 40.0
            down[3] = down[2] / 4000  # the same direction, with a small norm
    return EmbeddingLens(zoo.boot(hf))


def test_planted_neurons_have_their_roles(planted):
    table: Any = neuron_statistics(planted)
    roles = table.set_index(["layer", "neuron"])["role"].unstack("layer")
    for layer in (0, 1):
        assert roles[layer].iloc[:4].tolist() == ["prediction", "suppression", "entropy", ""]
        assert (roles[layer].iloc[4:] == "").mean() > 0.9, "random neurons have no role"


def test_roles_are_independent_of_the_selected_layers(planted):
    full_table = neuron_statistics(planted)
    selected_table = neuron_statistics(planted, layer=1)
    assert full_table.query("layer == 1").reset_index(drop=True).equals(selected_table)
    assert len(neuron_statistics(planted, layer=[])) == 0


def test_entropy_neurons_are_in_the_last_two_layers():
    """All four blocks have the same MLP, but only the last two can have entropy neurons."""
    hf: Any = zoo._build("llama", "LlamaConfig", "LlamaForCausalLM", zoo.LLAMA | dict(num_hidden_layers=4))
    with torch.no_grad():
        hf.model.norm.weight.fill_(1)
        hf.lm_head.weight[:, 31] = 0
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight[:, 2] = 40 * torch.eye(32)[31]
    table = neuron_statistics(EmbeddingLens(zoo.boot(hf)))
    assert table.query("role == 'entropy'")["layer"].unique().tolist() == [2, 3]


# -- heads


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(score="centered", vocabulary=range(5, 60)),
        dict(score="cosine"),
        dict(inverse="pinv"),
        dict(space="unembed"),
    ],
)
def test_head_statistics_equal_slow_loops(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    table: Any = head_statistics(lens)
    check_tidy(table, ["layer", "head"], in_glossary_order(["layer", "head", *HEAD]))
    assert len(table) == 8
    read, write = lens.space.read[:].double(), lens.space.write[:].double()
    if options.get("inverse") == "pinv":
        read = torch.linalg.pinv(read).T
    for row in table.itertuples():
        q, k, v, o = (getattr(lens.weights, f"W_{x}")(row.layer)[row.head] for x in "QKVO")
        for circuit, left, right, score in (("ov", v, o, row.ov_copying), ("qk", q, k.T, row.qk_matching)):
            product = left.double() @ right.double()
            values = torch.linalg.svdvals(product)[: left.shape[1]].tolist()
            share = [value / sum(values) for value in values]
            rank = np.exp(-sum(p * np.log(p) for p in share if p > 0))
            assert getattr(row, f"{circuit}_norm") == pytest.approx(float(product.norm()), rel=1e-5)
            assert getattr(row, f"{circuit}_effective_rank") == pytest.approx(rank, rel=1e-5)
            other = write if circuit == "ov" else read
            assert score == pytest.approx(brute_positive_share(read, left, right, other), abs=1e-4)


def test_planted_heads_have_their_copying_and_matching_scores():
    hf: Any = zoo.ZOO["llama_bias"]()
    with torch.no_grad():
        for module in hf.modules():
            if "Norm" in type(module).__name__:
                module.weight.fill_(1)
        attention = hf.model.layers[0].self_attn
        # Head 0 copies and attends to the same token, head 1 does the opposite, head 2 has rank 1.
        rows = [slice(8 * head, 8 * head + 8) for head in range(3)]
        for head, sign in ((0, 1), (1, -1)):
            attention.o_proj.weight[:, rows[head]] = sign * attention.v_proj.weight[rows[head]].T
            attention.k_proj.weight[rows[head]] = sign * attention.q_proj.weight[rows[head]]
        attention.v_proj.weight[rows[2]] = attention.v_proj.weight[16]
    table: Any = head_statistics(EmbeddingLens(zoo.boot(hf)), layer=0)
    assert table["ov_copying"].iloc[:2].tolist() == pytest.approx([1, -1], abs=1e-5)
    assert table["qk_matching"].iloc[:2].tolist() == pytest.approx([1, -1], abs=1e-5)
    assert table["ov_effective_rank"][2] == pytest.approx(1, abs=1e-3) and table["ov_effective_rank"][0] > 3
    assert table[["ov_copying", "qk_matching"]].iloc[3].abs().max() < 0.9, "a random head has no clear sign"


def test_positive_shares_of_random_matrices_are_around_zero():
    random = torch.randn(400, 16, 16)
    share = positive_share(random)
    assert share.abs().mean() < 0.4 and abs(float(share.mean())) < 0.05
    assert positive_share(-random).tolist() == pytest.approx((-share).tolist(), abs=1e-5)
    assert positive_share(random @ random.transpose(1, 2)).tolist() == pytest.approx([1.0] * 400, abs=1e-4)


def test_selected_heads_equal_rows_of_the_whole_table(lens):
    full_table = head_statistics(lens)
    selected_table = head_statistics(lens, layer=1, head=[3, 0])
    assert selected_table["head"].tolist() == [0, 3]
    expected = full_table.query("layer == 1 and head in [0, 3]").reset_index(drop=True)
    np.testing.assert_allclose(selected_table.to_numpy(), expected.to_numpy(), rtol=1e-5)
    assert len(head_statistics(lens, layer=[])) == 0 == len(head_statistics(lens, head=[]))
    with pytest.raises(EmbspaceError, match="layer=9 is out of range"):
        head_statistics(lens, layer=9)
    with pytest.raises(EmbspaceError, match="out of range"):
        neuron_statistics(lens, layer=2)


def test_models_without_mlps_or_attention_raise(tiny):
    attention_only, no_attention = EmbeddingLens(zoo.NATIVE["native_attn_only"]()), EmbeddingLens(tiny("mamba"))
    with pytest.raises(EmbspaceError, match="no MLP"):
        neuron_statistics(attention_only)
    assert len(head_statistics(attention_only)) == 8
    with pytest.raises(EmbspaceError, match="no attention"):
        head_statistics(no_attention)
