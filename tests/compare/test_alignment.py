"""Alignment of layers: compared with the paper's formula in slow loops, on models with a known alignment, and errors."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from laws import permute_neurons, random_rotation, rotate_residual_stream
from model_pairs import D_VOCAB, boot, build, lens_of, plain_norms
from reference import brute_alignment
from tables import check_tidy

from embspace_lens import Alignment, EmbeddingLens, EmbspaceError, align, match_neurons
from embspace_lens.compare.common_tokens import shared_tokens
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights import latent_attention
from embspace_lens.weights.parameter_names import side_of

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")

WEIGHTS = ["W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O"]
COLUMNS = ["weight", "layer_a", "layer_b", "correlation"]


def scores(lens, weight, layer, ids):
    """The scores of all vectors of a layer (of all its experts) over the shared tokens. align() itself does not compute them."""
    experts = lens.weights.experts(layer) if weight in ("W_in", "W_gate", "W_out") else [-1]
    parts = [lens.weights.directions(weight, layer, expert).flatten(0, -2) for expert in experts]
    return lens.project(torch.cat(parts), side_of(weight))[:, ids]


PAIRS = {
    "gpt2, tied": (("gpt2",), ("gpt2", 1)),
    "gated, grouped heads, untied": (("llama",), ("llama", 1)),
    "mixture of experts": (("qwen2_moe",), ("mixtral",)),
    "wider and deeper": (("gpt2",), ("llama", 0, None, dict(hidden_size=40, num_hidden_layers=3, head_dim=8))),
    "wider first": (("llama", 0, None, dict(hidden_size=40, head_dim=8)), ("gemma",)),
    "pinv of some tokens": (
        ("llama", 0, dict(inverse="pinv", vocabulary=range(5, 125))),
        ("llama", 1, dict(vocabulary=range(3, 120))),
    ),
    "cosine, one E": (("gpt2", 0, dict(score="cosine", space="unembed")), ("gpt2", 1, dict(space="embed"))),
    "as stored": (("gpt2", 0, dict(fold_ln=False, score="centered")), ("olmo2", 0, dict(fold_ln=False))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_correlation_equals_the_papers_formula(pair):
    a, b = (lens_of(*spec[:3], **(spec[3] if len(spec) > 3 else {})) for spec in PAIRS[pair])
    alignment = align(a, b)
    ids_a, ids_b = shared_tokens(a, b)
    assert alignment.n_tokens == len(ids_a) == (115 if pair.startswith("pinv") else D_VOCAB)
    gated = a.weights.is_gated(0) and b.weights.is_gated(0)
    assert alignment.correlation["weight"].unique().tolist() == [w for w in WEIGHTS if gated or w != "W_gate"]
    for row in alignment.correlation.itertuples():
        slow = brute_alignment(scores(a, row.weight, row.layer_a, ids_a), scores(b, row.weight, row.layer_b, ids_b))
        assert row.correlation == pytest.approx(slow, abs=2e-6), row


def test_correlation_in_residual_space_equals_the_papers_baseline(two_lenses):
    alignment = align(*two_lenses, space="residual")
    assert alignment.n_tokens is None
    for row in alignment.correlation.itertuples():
        x, y = (
            lens.weights.directions(row.weight, layer).flatten(0, -2)
            for lens, layer in zip(two_lenses, (row.layer_a, row.layer_b))
        )
        assert row.correlation == pytest.approx(brute_alignment(x, y), abs=2e-6), row


def test_result_is_independent_of_chunk_size(two_lenses):
    a, b = two_lenses
    unchunked = align(a, b)
    with chunk_bytes(4 * 48 * 20):
        chunked = align(a, b)
    np.testing.assert_allclose(unchunked.correlation["correlation"], chunked.correlation["correlation"], atol=1e-6)
    assert unchunked.matches.drop(columns="correlation").equals(chunked.matches.drop(columns="correlation"))


# -- models whose alignment is known


def rotated_pair(order, **config):
    """A llama, and the same model with permuted neurons and a rotated residual stream."""
    rotated = build("llama", edit=plain_norms, **config)
    permute_neurons(rotated, order)
    rotate_residual_stream(rotated, random_rotation(rotated.config.hidden_size))
    return EmbeddingLens(boot(build("llama", edit=plain_norms, **config))), EmbeddingLens(boot(rotated))


def test_rotated_and_permuted_copy_is_matched_in_embedding_space_only():
    order = torch.randperm(48).numpy()
    a, b = rotated_pair(torch.from_numpy(order), num_hidden_layers=6)
    alignment = align(a, b)
    matches = alignment.matches
    assert (matches["layer_a"] == matches["layer_b"]).all() and len(matches) == 7 * 6
    assert (alignment.on_diagonal()["n_matched"] == 6).all()
    residual = align(a, b, space="residual").on_diagonal()
    assert residual["n_matched"].sum() <= 7 + 4 * 7**0.5, "fixed points of 7 random permutations, and 4 deviations"
    for weight in ("W_in", "W_gate", "W_out"):
        for match, rows in match_neurons(a, b, 2, 2, weight=weight).groupby("match", observed=True):
            assert order[rows["neuron_b"]].tolist() == rows["neuron_a"].tolist(), match
            assert rows["correlation"].min() > 0.999
        baseline = match_neurons(a, b, 2, 2, weight=weight, space="residual")
        assert baseline["correlation"].max() < 0.95
        assert (order[baseline["neuron_b"]] == baseline["neuron_a"]).mean() < 0.2


def test_permuted_layers_are_matched():
    order = [3, 0, 4, 1, 2]
    permuted = build("gpt2", n_layer=5)
    permuted.transformer.h = torch.nn.ModuleList([permuted.transformer.h[i] for i in order])
    alignment = align(lens_of("gpt2", n_layer=5), EmbeddingLens(boot(permuted)))
    for weight, rows in alignment.matches.groupby("weight", observed=True):
        assert [order[layer] for layer in rows["layer_b"]] == rows["layer_a"].tolist() == list(range(5)), weight
    assert (alignment.on_diagonal()[["n_nearest", "n_matched"]] == 0).all(axis=None)


def test_subset_of_layers_is_matched_with_deeper_model():
    fewer = build("gpt2", n_layer=6)
    fewer.transformer.h = torch.nn.ModuleList([fewer.transformer.h[i] for i in (1, 2, 5)])
    fewer.config.n_layer = 3
    alignment = align(EmbeddingLens(boot(fewer)), lens_of("gpt2", n_layer=6))
    assert alignment.matches.groupby("weight", observed=True)["layer_b"].agg(list).tolist() == [[1, 2, 5]] * 6
    assert alignment.on_diagonal()[["n_layers", "chance"]].drop_duplicates().values.tolist() == [[3, 0.5]]
    swapped = align(lens_of("gpt2", n_layer=6), EmbeddingLens(boot(fewer)))
    assert swapped.matches.groupby("weight", observed=True)["layer_a"].agg(list).tolist() == [[1, 2, 5]] * 6


def test_model_is_aligned_with_itself_and_correlation_is_symmetric(two_lenses):
    a, b = two_lenses
    assert (align(a, a).on_diagonal()["n_matched"] == 2).all()
    forward, backward = align(a, b).correlation, align(b, a).correlation
    backward = backward.rename(columns={"layer_a": "layer_b", "layer_b": "layer_a"}).sort_values(
        ["weight", "layer_a", "layer_b"], ignore_index=True
    )
    np.testing.assert_allclose(forward["correlation"], backward["correlation"], atol=1e-6)


def test_unrelated_models_are_matched_at_chance_level():
    a, b = (lens_of("llama", seed, num_hidden_layers=6) for seed in (0, 1))
    diagonal = align(a, b).on_diagonal()
    assert diagonal["chance"].tolist() == [1.0] * 7
    assert diagonal["n_matched"].sum() <= 7 + 4 * 7**0.5


def test_demo_models_of_two_seeds_are_aligned(demo_lens):
    other = EmbeddingLens.from_pretrained("reviews-small-1")
    alignment = align(demo_lens, other, weights=["W_V", "W_O"])
    assert alignment.n_tokens == demo_lens.space.n_tokens
    assert alignment.on_diagonal()["n_matched"].tolist() == [4, 4]


def test_nearest_layer_can_have_another_number_although_the_assignment_is_the_diagonal():
    """Layer 0 of b is similar to both layers of a; the sum of the diagonal, 1.05, is larger than 1.0."""
    correlation = pd.DataFrame(
        {"weight": "W_V", "layer_a": [0, 0, 1, 1], "layer_b": [0, 1, 0, 1], "correlation": [0.5, 0.4, 0.6, 0.55]}
    )
    matches = correlation.query("layer_a == layer_b")
    diagonal = Alignment("a", "b", "embedding", 100, correlation, matches).on_diagonal()
    assert diagonal[["n_nearest", "n_matched", "n_layers"]].values.tolist() == [[1, 2, 2]]


@pytest.mark.parametrize("pair", [("llama", "gpt2"), ("jamba", "gpt2"), ("gpt2", "jamba")])
def test_nearest_layers_are_those_of_a_slow_loop(pair):
    alignment = align(*map(lens_of, pair))
    counts = dict.fromkeys(alignment.on_diagonal()["weight"], 0)
    for (weight, layer_a), rows in alignment.correlation.groupby(["weight", "layer_a"], observed=True):
        best = max(rows.itertuples(), key=lambda row: row.correlation)
        counts[weight] += int(best.layer_b == layer_a)
    assert alignment.on_diagonal()["n_nearest"].tolist() == list(counts.values())


# -- what is left out


def test_zero_vectors_are_left_out_and_layers_of_zeros_are_unmatched():
    def set_to_zero(model):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.model.layers[1].mlp.down_proj.weight[:, 5] = 0

    a, b = EmbeddingLens(boot(build("llama", edit=set_to_zero))), lens_of("llama", 1)
    alignment = align(a, b, weights="W_out")
    ids_a, ids_b = shared_tokens(a, b)
    nonzero_rows = [i for i in range(48) if i != 5]
    slow = brute_alignment(scores(a, "W_out", 1, ids_a)[nonzero_rows], scores(b, "W_out", 1, ids_b))
    assert alignment.correlation["correlation"].tolist()[3] == pytest.approx(slow, abs=2e-6)
    assert alignment.correlation["correlation"].isna().tolist() == [True, True, False, False]
    assert alignment.matches["layer_a"].tolist() == [1]
    assert alignment.on_diagonal()[["n_layers", "chance"]].values.tolist() == [[1, 0.5]]
    nearest = alignment.correlation.query("layer_a == 1").set_index("layer_b")["correlation"].idxmax()
    assert alignment.on_diagonal()["n_nearest"].tolist() == [int(nearest == 1)], "layers of zeros are not counted"
    assert "W_out" in repr(alignment)
    for space in ("embedding", "residual"):
        self_alignment = align(a, a, weights="W_out", space=space)
        assert self_alignment.matches[["layer_a", "layer_b"]].values.tolist() == [[1, 1]]


def test_unreadable_attention_is_left_out_unless_it_is_named(monkeypatch):
    """The layout of this multi-head latent attention is unknown."""
    monkeypatch.setattr(latent_attention, "LATENT_ATTENTION", set())
    latent, plain = lens_of("deepseek_v2"), lens_of("llama")
    for a, b in ((latent, plain), (plain, latent)):
        assert align(a, b).correlation["weight"].unique().tolist() == ["W_in", "W_gate", "W_out"]
        with pytest.raises(EmbspaceError, match="W_V of block 0 of zoo"):
            align(a, b, weights=["W_out", "W_V"])


# -- tables


@pytest.mark.parametrize("pair", [("llama", "gpt2"), ("mixtral", "qwen2_moe"), ("llama", "mixtral"), ("jamba", "gpt2")])
def test_tables_are_tidy(pair):
    a, b = map(lens_of, pair)
    for options in ({}, {"weights": ["W_out", "W_V"], "space": "residual"}):
        alignment = align(a, b, **options)
        check_tidy(alignment.correlation, COLUMNS[:3], COLUMNS)
        check_tidy(alignment.matches, COLUMNS[:2], COLUMNS)
        counts = ["n_nearest", "n_matched", "n_layers", "chance", "correlation"]
        check_tidy(alignment.on_diagonal(), COLUMNS[:1], ["weight", *counts])


def test_hybrid_models_are_compared_in_blocks_that_have_the_weight():
    correlation = align(lens_of("jamba"), lens_of("gpt2")).correlation
    attention = correlation[correlation["weight"] == "W_V"]
    assert attention["layer_a"].unique().tolist() == [1, 3] and attention["layer_b"].unique().tolist() == [0, 1]


def test_repr_summarises_the_alignment(two_lenses):
    assert re.fullmatch(
        r"Alignment\(zoo × zoo: 2 × 2 layers, 130 shared tokens; "
        r"layers with the same number, nearest / matched: W_V \d / \d of 2, W_O \d / \d of 2\)",
        repr(align(*two_lenses, weights=["W_V", "W_O"])),
    )
    assert "residual space" in repr(align(*two_lenses, weights="W_V", space="residual"))


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "vocabulary"}, "space='vocabulary' is not one of 'embedding', 'residual'"),
        ({"weights": "Wout"}, "weight='Wout' is not one of .* Did you mean 'W_out'"),
        ({"weights": "W_gate"}, "zoo's MLP in block 0 is not gated: it has no W_gate"),
        ({"space": "residual", "d_model": 40}, "d_model=32 and zoo has d_model=40. Use space='embedding'"),
        ({"b": 3}, r"int is not an EmbeddingLens. Wrap the model: EmbeddingLens\(model\)."),
        ({"weights": []}, "no selected weight that can be read in both"),
    ],
)
def test_errors_state_what_is_allowed(two_lenses, options, message, unchecked_types):
    config = {"n_embd": options["d_model"]} if "d_model" in options else {}
    b = options.get("b") or lens_of("gpt2", **config)
    options = {name: value for name, value in options.items() if name in ("space", "weights")}
    with pytest.raises(EmbspaceError, match=message):
        align(two_lenses[0], b, **options)


def test_models_without_a_common_weight_raise_an_error():
    mamba = lens_of("mamba")
    message = "no selected weight that can be read in both. zoo's blocks 0, 1 have no attention"
    with pytest.raises(EmbspaceError, match=message):
        align(mamba, mamba)
    with pytest.raises(EmbspaceError, match="have no attention"):
        align(lens_of("gpt2"), mamba, weights="W_Q")


def test_weights_that_are_not_finite_raise_an_error(two_lenses):
    def set_to_nan(model):
        model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan

    damaged = EmbeddingLens(boot(build("llama", edit=set_to_nan)))
    for space in ("embedding", "residual"):
        with pytest.raises(EmbspaceError, match="NaN or infinite values in W_in of block 1"):
            align(damaged, two_lenses[1], space=space)


# -- plots


def test_plot_passes_the_alignment_to_the_accessor(two_lenses, monkeypatch):
    calls = []
    monkeypatch.setattr(type(pd.DataFrame().embspace), "plot", lambda self, **options: calls.append(options))
    alignment = align(*two_lenses, weights="W_V")
    alignment.plot(weights="W_V")
    assert calls == [{"alignment": alignment, "weights": "W_V"}]
    assert alignment.correlation.attrs["embspace_kind"] == "alignment"
