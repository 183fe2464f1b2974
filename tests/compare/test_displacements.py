"""Displacement towards words of one class: compared with slow loops, on planted differences, and errors."""

import math
from typing import Any

import pytest
import torch
import zoo
from tables import check_tidy
from tuned_models import tuned

from embspace_lens import EmbeddingLens, EmbspaceError, demo, displacement
from embspace_lens.compare.displacements import _word_signs

POSITIVE, NEGATIVE = [f" W{i}" for i in range(10, 30)], [f"w{i}" for i in range(50, 75)]
COLUMNS = ["layer", "weight", "sample", "share", "low", "high", "n"]


def planted(n_planted):
    """A copy of a base whose first neurons of block 1 write towards POSITIVE and away from NEGATIVE; and the base."""
    before = zoo.boot(zoo.ZOO["gpt2"]())
    after: Any = zoo.ZOO["gpt2"]()
    after.load_state_dict(zoo.ZOO["gpt2"]().state_dict())
    E = after.transformer.wte.weight.detach()
    direction = E[10:30].mean(0) - E[50:75].mean(0)
    with torch.no_grad():
        c_proj = after.transformer.h[1].mlp.c_proj.weight  # [d_mlp, d_model]
        noise = 0.1 * torch.randn(zoo.D_MLP, zoo.D_MODEL)
        c_proj += noise
        c_proj[:n_planted] += direction - noise[:n_planted]
    return EmbeddingLens(zoo.boot(after), space="embed"), EmbeddingLens(before, space="embed")


def slow_share(lens, vectors, k):
    """The mean share, one direction and one end at a time."""
    shares = []
    words = [text.strip().lower() for text in lens.vocabulary.array]
    positive, negative = ({w.strip().lower() for w in word_list} for word_list in (POSITIVE, NEGATIVE))
    for vector in vectors:
        scores = (lens.weights.W_E @ vector).tolist()
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        for top_indices in (order[:k], order[-k:]):
            n_positive = sum(words[i] in positive for i in top_indices)
            n_negative = sum(words[i] in negative for i in top_indices)
            shares.append(max(n_positive, n_negative) / k)
    return sum(shares) / len(shares)


def test_share_equals_slow_loops():
    after, before = planted(24)
    df = displacement(after, before, POSITIVE, NEGATIVE, layer=1, weight="W_out", k=5, n_random=200)
    check_tidy(df, COLUMNS[:3], COLUMNS)
    assert df.attrs["embspace_kind"] == "displacement"
    rows = df.set_index("sample")
    change = after.weights.W_out(1) - before.weights.W_out(1)
    assert rows.loc["difference", "share"] == pytest.approx(slow_share(before, change, 5), abs=1e-6)
    assert rows.loc["base", "share"] == pytest.approx(slow_share(before, before.weights.W_out(1), 5), abs=1e-6)
    noise = torch.randn(200, zoo.D_MODEL, generator=torch.Generator().manual_seed(0))
    assert rows.loc["random", "share"] == pytest.approx(slow_share(before, noise, 5), abs=1e-6)
    assert rows["n"].to_dict() == {"difference": zoo.D_MLP, "base": zoo.D_MLP, "random": 200}
    assert all(row["low"] <= row["share"] <= row["high"] for row in df.to_dict("records"))


def test_planted_words_are_above_the_control_and_noise_is_not():
    shares = [
        displacement(*planted(n), POSITIVE, NEGATIVE, layer=1, weight="W_out", k=5).set_index("sample")
        for n in (zoo.D_MLP, 0)
    ]
    assert shares[0].loc["difference", "low"] > shares[0].loc["random", "high"] + 0.2
    assert shares[1].loc["difference", "low"] < shares[1].loc["random", "high"]


def test_result_depends_only_on_the_seed():
    after, before = planted(8)
    first, second, other_seed = (
        displacement(after, before, POSITIVE, NEGATIVE, layer=1, weight="W_out", k=5, seed=s) for s in (0, 0, 1)
    )
    assert first.equals(second) and not first.equals(other_seed)


def test_share_of_unchanged_weights_is_nan():
    after, before = planted(8)
    df = displacement(after, before, POSITIVE, NEGATIVE, layer=0, weight="W_out", k=5).set_index("sample")
    assert df.loc["difference", "n"] == 0 and math.isnan(df.loc["difference", "share"])
    assert df.loc["base", "n"] == zoo.D_MLP


def test_word_in_both_lists_counts_for_neither():
    after, before = planted(24)
    shared_words = [f"w{i}" for i in range(80, 90)]
    options = {"layer": 1, "weight": "W_out", "k": 5}
    plain = displacement(after, before, POSITIVE, NEGATIVE, **options)
    assert displacement(after, before, [*POSITIVE, *shared_words], [*NEGATIVE, *shared_words], **options).equals(plain)
    assert not displacement(after, before, [*POSITIVE, *shared_words], NEGATIVE, **options).equals(plain)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([], NEGATIVE), "0 of the positive words are tokens that this lens reads. Give 10 or more"),
        ((POSITIVE, ["w50", "elsewhere"]), "1 of the negative words are tokens"),
        (("w1 w2", NEGATIVE), "one of them is a string"),
        ((POSITIVE, POSITIVE), "0 of the positive words"),
    ],
)
def test_lists_with_too_few_words_raise_an_error(lists, message):
    after, before = planted(1)
    with pytest.raises(EmbspaceError, match=message):
        displacement(after, before, *lists)


def test_all_weights_and_experts_are_measured_by_default():
    after, before = (EmbeddingLens(model) for model in tuned("mixtral"))
    df = displacement(after, before, POSITIVE, NEGATIVE, k=3, n_random=10)
    assert set(df["weight"]) == {"W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O"} and set(df["layer"]) == {0, 1}
    n_experts = len(before.weights.experts(0))
    n = df.query("weight == 'W_out' and sample == 'difference'")["n"]
    assert sorted(set(n)) == [n_experts * len(before.weights.directions("W_out", 0, 0))]


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_words_and_tokens_are_compared_without_case_and_spaces():
    lens = EmbeddingLens.from_pretrained("reviews-small-0")
    positive_words, negative_words = (["GOOD", *(f" {w} " for w in words)] for words in (["great"] * 3, ["awful"] * 3))
    other_words = [text.strip() for text in lens.vocabulary.array if text.strip().isalpha()][500:600]
    sign = _word_signs(lens, [*positive_words, *other_words[:50]], [*negative_words[1:], *other_words[50:]])
    index = lens.vocabulary.index
    signs = [sign[index(text)] for text in (" good", " Good", " Great", " great", " awful")]
    assert signs == [1, 1, 1, 1, -1]
