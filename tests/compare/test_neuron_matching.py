"""Matching of neurons: compared with correlations in slow loops, on copies of a model, and errors."""

import numpy as np
import pytest
import torch
from model_pairs import boot, build, lens_of
from reference import brute_correlation
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, match_neurons
from embspace_lens.compare.common_tokens import shared_tokens
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.parameter_names import side_of

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison over so few tokens is weak")

GRAIN = ["weight", "layer_a", "layer_b", "neuron_a", "match"]


def scores(lens, weight, layer, ids):
    """The scores of all neurons of a layer over the shared tokens."""
    return lens.project(lens.weights.directions(weight, layer), side_of(weight))[:, ids].double().numpy()


def test_partners_have_the_largest_correlation(two_lenses):
    a, b = two_lenses
    ids_a, ids_b = shared_tokens(a, b)
    for weight in ("W_in", "W_out"):
        x, y = scores(a, weight, 0, ids_a), scores(b, weight, 1, ids_b)
        table = np.array([[brute_correlation(row, other) for other in y] for row in x])
        matches = match_neurons(a, b, 0, 1, weight=weight)
        nearest, one_to_one = (matches[matches["match"] == kind] for kind in ("nearest", "one_to_one"))
        assert nearest["neuron_b"].tolist() == table.argmax(axis=1).tolist()
        assert sorted(one_to_one["neuron_b"]) == list(range(48))
        np.testing.assert_allclose(matches["correlation"], table[matches["neuron_a"], matches["neuron_b"]], atol=2e-6)
        partner = one_to_one["neuron_b"].tolist()
        for i in range(48):
            for j in range(i):
                assigned, swapped = (table[i, partner[m]] + table[j, partner[n]] for m, n in ((i, j), (j, i)))
                assert assigned > swapped - 1e-5, "no exchange of two partners improves the assignment"


def test_result_is_independent_of_chunk_size(two_lenses):
    unchunked = match_neurons(*two_lenses, 0, 1)
    with chunk_bytes(4 * 48 * 10):
        chunked = match_neurons(*two_lenses, 0, 1)
    assert unchunked["neuron_b"].equals(chunked["neuron_b"])


def test_neurons_of_a_model_are_matched_with_themselves(two_lenses):
    matches = match_neurons(two_lenses[0], two_lenses[0], 1, 1)
    assert (matches["neuron_a"] == matches["neuron_b"]).all() and matches["correlation"].min() > 0.99999


def test_neurons_of_unrelated_models_correlate_weakly():
    a, b = (lens_of("llama", seed, num_hidden_layers=6) for seed in (0, 1))
    assert match_neurons(a, b, 0, 0)["correlation"].max() < 0.8


def test_zero_vectors_are_left_out(two_lenses):
    def set_to_zero(model):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.model.layers[1].mlp.down_proj.weight[:, 5] = 0

    a, b = EmbeddingLens(boot(build("llama", edit=set_to_zero))), two_lenses[1]
    assert 5 not in match_neurons(a, b, 1, 0)["neuron_a"].tolist()
    assert 5 not in match_neurons(b, a, 0, 1)["neuron_b"].tolist()
    check_tidy(match_neurons(a, b, 0, 0), GRAIN, [*GRAIN, "neuron_b", "correlation"])
    assert len(match_neurons(a, b, 0, 0)) == len(match_neurons(b, a, 0, 0)) == 0


def test_vectors_with_equal_scores_for_all_tokens_are_left_out():
    """LayerNorm removes the all-ones direction, so it has the same score for every token, except for rounding."""

    def set_to_constant(model):
        with torch.no_grad():
            model.transformer.h[0].mlp.c_proj.weight[3] = 2.0

    lens = EmbeddingLens(boot(build("gpt2", edit=set_to_constant)))
    matches = match_neurons(lens, lens, 0, 0)
    assert sorted(set(range(48)) - set(matches["neuron_a"])) == [3]


@pytest.mark.parametrize("pair", [("llama", "gpt2"), ("mixtral", "qwen2_moe"), ("llama", "mixtral"), ("jamba", "gpt2")])
def test_tables_are_tidy(pair):
    a, b = map(lens_of, pair)
    expert_a, expert_b = ([f"expert_{end}"] * lens.weights.has_experts for end, lens in (("a", a), ("b", b)))
    grain = ["weight", "layer_a", "layer_b", *expert_a, "neuron_a", "match"]
    columns = [*grain, *expert_b, "neuron_b", "correlation"]
    check_tidy(match_neurons(a, b, 1, 0), grain, columns)
    check_tidy(match_neurons(a, b, 0, 1, space="residual", one_to_one=False), grain, columns)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ((0, 2), {}, r"layer_b=2 is out of range: zoo has 2 layers \(0 to 1\)"),
        ((None, 0), {}, "layer_a=None does not select exactly one layer. Give one."),
        ((0, [0, 1]), {}, r"layer_b=\[0, 1\] does not select exactly one layer"),
        ((0, 0), {"weight": "W_V"}, "weight='W_V' is not one of 'W_in', 'W_gate', 'W_out'"),
        ((0, 0), {"weight": ["W_in", "W_out"]}, "does not select exactly one weight of an MLP"),
        ((0, 0), {"weight": None}, "weight=None does not select exactly one weight of an MLP"),
        ((0, 0), {"space": "raw"}, "space='raw' is not one of"),
    ],
)
def test_errors_state_what_is_allowed(two_lenses, layers, options, message, unchecked_types):
    with pytest.raises(EmbspaceError, match=message):
        match_neurons(*two_lenses, *layers, **options)


def test_missing_gate_and_too_many_neurons_raise_an_error(two_lenses, monkeypatch):
    with pytest.raises(EmbspaceError, match="zoo's MLP in block 1 is not gated"):
        match_neurons(two_lenses[0], lens_of("gpt2"), 0, 1, weight="W_gate")
    monkeypatch.setattr("embspace_lens.compare.neuron_matching.MAX_PAIRS", 100)
    with pytest.raises(EmbspaceError, match=r"48 × 48 neurons are more than the 100 pairs .* Give one_to_one=False"):
        match_neurons(*two_lenses, 0, 1)
    assert len(match_neurons(*two_lenses, 0, 1, one_to_one=False)) == 48
