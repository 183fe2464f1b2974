"""Codes of constructed sentences equal those of the plain sentences, and planted differences are found."""

from itertools import product

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

import embspace_lens.factors.probes as probes
from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, probe, probe_differences
from embspace_lens.factors.probes import _sign_flip_p_value
from embspace_lens.forward.states import hidden_states
from embspace_lens.tables.frames import tidy

PAIRS = [("w2 w3 «w4» w5", "w3 «w4» w2 w5"), ("w6 w7 w8 «w9»", "w7 «w9»"), ("w1 «w2»", "w8 «w2»")]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(8, zoo.D_MODEL), dim=1), l1=0.01)


def test_codes_equal_those_of_the_sentences_without_marks(model, factors):
    df = probe(factors, model, PAIRS, factor=[5, 2], layers=[0, 1])
    check_tidy(
        df,
        ["factor", "layer", "example", "variant"],
        ["factor", "layer", "token_index", "token_string", "example", "variant", "code"],
    )
    assert len(df) == 2 * 2 * 3 * 3
    for row in df[df["variant"] != "shuffled"].to_dict("records"):
        sentence = PAIRS[row["example"]][("kept", "broken").index(row["variant"])]
        words = sentence.split()
        pos = next(i for i, word in enumerate(words) if "«" in word)
        (hidden,) = hidden_states(model, [sentence.replace("«", "").replace("»", "")], [row["layer"]])
        code = factors.encode(hidden.states[row["layer"]])[pos, row["factor"]]
        assert row["code"] == pytest.approx(float(code), abs=2e-3)
        assert row["token_string"].strip() == words[pos].strip("«»")
    assert probe(factors, model, PAIRS, factor=2, layers=[1]).equals(
        df[(df["factor"] == 2) & (df["layer"] == 1)].reset_index(drop=True)
    )
    assert set(probe(factors, model, PAIRS, layers=0)["factor"]) == set(range(8))


def test_marks_may_touch_punctuation_and_have_spaces_inside(model, factors):
    plain = probe(factors, model, PAIRS[:1], factor=5, layers=[0])
    spaced = probe(factors, model, [("w2 w3« w4 »w5", PAIRS[0][1])], factor=5, layers=[0])
    assert spaced["token_string"].tolist() == plain["token_string"].tolist()


def test_shuffled_sentences_have_the_same_words_and_keep_the_marked_one_in_place(model, factors, monkeypatch):
    texts = []
    original = probes.states_at
    monkeypatch.setattr(probes, "states_at", lambda m, t, *rest: texts.extend(t) or original(m, t, *rest))
    probe(factors, model, PAIRS[:1], layers=[0], n_shuffles=20)
    assert texts[:2] == ["w2 w3 w4 w5", "w3 w4 w2 w5"] and len(texts) == 22
    assert all(sorted(t.split()) == ["w2", "w3", "w4", "w5"] and t.split()[2] == "w4" for t in texts[2:])
    assert len(set(texts[2:])) > 3


def planted(differences):
    """Codes with the given differences between kept and broken, and no difference between kept and shuffled."""
    rows = [
        {"factor": 1, "layer": 0, "example": i, "variant": variant, "code": code}
        for i, d in enumerate(differences)
        for variant, code in (("broken", 5 - d), ("kept", 5.0), ("shuffled", 5 + (-1) ** i))
    ]
    return tidy(["factor", "layer", "example", "variant", "code"], rows)


def test_planted_differences_are_measured_and_tested():
    df = probe_differences(planted([1, 2, 3, 2, 1, 2, 3, 2.0]))
    check_tidy(
        df, ["factor", "layer", "variant"], ["factor", "layer", "variant", "value", "p_value", "low", "high", "n"]
    )
    broken, shuffled = df.to_dict("records")
    assert broken["value"] == 2 and 1 <= broken["low"] < 2 < broken["high"] <= 3 and broken["n"] == 8
    assert broken["p_value"] == pytest.approx(1 / 2**8) and shuffled["value"] == 0 and shuffled["p_value"] > 0.4


@pytest.mark.parametrize("n", [1, 2, 5])
def test_p_value_equals_the_count_of_all_sign_flips(n):
    d = np.random.default_rng(n).normal(size=n)
    means = [np.mean(np.array(signs) * d) for signs in product((1, -1), repeat=n)]
    assert _sign_flip_p_value(d, 0) == pytest.approx(np.mean(np.array(means) >= d.mean() - 1e-12))
    assert _sign_flip_p_value(np.full(20, 1.0), 0) == pytest.approx(1e-4, abs=1e-6), "a sample of signs beyond 12 pairs"


def test_sentences_without_one_mark_are_refused(model, factors):
    for sentence in ("w2 w3", "«w2» «w3»", "w2 «» w3", "»w2«"):
        with pytest.raises(EmbspaceError, match="does not have exactly one marked word. Put « and » around one word"):
            probe(factors, model, [(sentence, "w2 «w3»")])
    long = " ".join(["w2"] * 500)
    with pytest.raises(EmbspaceError, match="is beyond the model's context length. Pass a shorter sentence"):
        probe(factors, model, [(f"{long} «w3»", "w2 «w3»")])
    with pytest.raises(EmbspaceError, match="factor=8 is not an integer from 0 to 7"):
        probe(factors, model, PAIRS, factor=8)
    with pytest.raises(EmbspaceError, match="codes has no column 'variant'"):
        probe_differences(tidy(["factor", "layer", "example", "code"], []))
