"""Overlap of related pairs: compared with slow loops, on models with a known overlap, and errors."""

import numpy as np
import pytest
import torch
import zoo
from reference import brute_jaccard
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, evidence
from embspace_lens.evidence.layer_directions import directions_of
from embspace_lens.evidence.token_lists import cyclic_permutation
from embspace_lens.weights.parameter_names import side_of

PAIRS_OF = {
    "gpt2": ["W_Q-W_K", "W_V-W_O", "W_in-W_out"],
    "llama": ["W_Q-W_K", "W_V-W_O", "W_gate-W_out", "W_in-W_out"],
    "mixtral": ["W_Q-W_K", "W_V-W_O", "W_gate-W_out", "W_in-W_out"],
}
COLUMNS = ["layer", "pair", "sample", "jaccard", "low", "high", "n"]


def scores_of(lens, weight, layer):
    return lens.project(torch.cat(list(directions_of(lens.weights, weight, layer))), side_of(weight))


@pytest.mark.parametrize("name", PAIRS_OF)
def test_overlap_equals_slow_loops(tiny, name):
    lens = EmbeddingLens(tiny(name), score="centered", vocabulary=range(5, 90))
    frame = evidence.related_pairs(lens, k=9)
    check_tidy(frame, COLUMNS[:3], COLUMNS)
    assert frame.attrs["embspace_kind"] == "related_pairs"
    assert frame["pair"].unique().tolist() == PAIRS_OF[name]
    for (layer, pair), rows in frame.groupby(["layer", "pair"]):
        a, b = (scores_of(lens, weight, layer)[:, 5:90] for weight in pair.split("-"))
        assert rows["n"].tolist() == [len(a)] * 2
        slow = [np.mean(brute_jaccard(a, b, 9))]
        slow.append(np.mean([np.mean(brute_jaccard(a, b[cyclic_permutation(len(b), seed)], 9)) for seed in range(2)]))
        selected = evidence.related_pairs(lens, k=9, layer=layer, pairs=pair, seeds=2)
        assert selected["jaccard"].tolist() == pytest.approx(slow, rel=1e-5)
        assert rows["jaccard"].iloc[0] == pytest.approx(slow[0], rel=1e-5)
    assert (frame["low"] <= frame["jaccard"]).all() and (frame["jaccard"] <= frame["high"]).all()
    assert len(rows) and frame["n"].max() == {"gpt2": 48, "llama": 48, "mixtral": 144}[name]


def test_equal_pairs_overlap_completely_and_random_pairs_at_chance_level():
    hf = zoo.ZOO["gpt2"]()
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.copy_(-block.mlp.c_fc.weight.T)  # tokens are ranked by absolute score
    lens = EmbeddingLens(zoo.boot(hf), fold_ln=False, space="embed", score="centered")
    frame = evidence.related_pairs(lens, k=20)
    paired, shuffled = (frame[(frame["pair"] == "W_in-W_out") & (frame["sample"] == s)] for s in ("paired", "shuffled"))
    assert (paired[["jaccard", "low", "high"]] == 1).all(axis=None)
    shared = 20 * 20 / 97
    assert np.abs(shuffled["jaccard"] / (shared / (40 - shared)) - 1).max() < 0.25
    other_pairs = frame[frame["pair"] != "W_in-W_out"]
    paired_overlap, control_overlap = (
        other_pairs[other_pairs["sample"] == s]["jaccard"].to_numpy() for s in ("paired", "shuffled")
    )
    assert np.abs(paired_overlap / control_overlap - 1).max() < 0.4, "random weights are not related"


def test_missing_pairs_are_left_out_unless_they_are_named(tiny):
    bridge = zoo.NATIVE["native_attn_only"]()
    lens = EmbeddingLens(bridge, tokenizer=zoo.tokenizer())
    assert evidence.related_pairs(lens, k=5)["pair"].unique().tolist() == ["W_Q-W_K", "W_V-W_O"]
    with pytest.raises(EmbspaceError, match="has no MLP|have no MLP"):
        evidence.related_pairs(lens, k=5, pairs="W_in-W_out")
    with pytest.raises(
        EmbspaceError, match="No selected block of zoo has W_Q-W_K or W_V-W_O or W_gate-W_out or W_in-W_out"
    ):
        evidence.related_pairs(EmbeddingLens(tiny("mamba")), k=5)


def test_layers_and_pairs_are_selected(lens):
    frame = evidence.related_pairs(lens, k=5, layer=[1], pairs=["W_V-W_O", "W_in-W_out"])
    assert frame["layer"].unique().tolist() == [1] and len(frame) == 4
    assert evidence.related_pairs(lens, k=5, layer=slice(0, 1)).equals(evidence.related_pairs(lens, k=5, layer=0))
    all_tokens = evidence.related_pairs(lens, k=97, layer=0)
    assert (all_tokens["jaccard"] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 98}, "k=98 is not an integer from 1 to 97, the number of tokens that this lens reads."),
        ({"pairs": "W_in-Wout", "k": 5}, "pairs='W_in-Wout' is not one of .* Did you mean 'W_in-W_out'?"),
        ({"pairs": "W_gate-W_out", "k": 5}, "is not gated: it has no W_gate"),
        ({"layer": 7, "k": 5}, "layer=7 is out of range"),
        ({"seeds": 1, "k": 5}, "seeds=1 is not an integer of 2 or more."),
    ],
)
def test_errors_state_what_is_allowed(lens, options, message, unchecked_types):
    with pytest.raises(EmbspaceError, match=message):
        evidence.related_pairs(lens, **options)
