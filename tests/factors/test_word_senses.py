"""Word senses are predicted on constructed sentences, and random senses are not."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, sense_codes, senses
from embspace_lens.factors.word_senses import _best_threshold
from embspace_lens.forward.states import hidden_states


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


def tagged(n=80):
    """Sentences in which `w5` is a verb after `w2` and a noun after `w3`; `w9` is always a noun."""
    return [[("w2" if i % 3 else "w3", "x"), ("W5", "vb" if i % 3 else "nn"), ("w9", "nn")] for i in range(n)]


def test_planted_sense_is_predicted_and_random_tags_are_not(model):
    pytest.importorskip("sklearn")
    sentences = tagged()
    by_tag = {"vb": [], "nn": []}
    for sentence in sentences[:12]:
        text = " ".join(w for w, _ in sentence).lower()
        (hidden,) = hidden_states(model, [text], [0])
        by_tag[sentence[1][1]].append(hidden.states[0][1])
    means = [torch.stack(by_tag[tag]).mean(0) for tag in ("vb", "nn")]
    difference = torch.nn.functional.normalize(means[0] - means[1], dim=0)
    sentences = [[(w.lower(), t) for w, t in s] for s in sentences]
    directions = torch.nn.functional.normalize(
        torch.stack([difference, -difference, *torch.randn(3, zoo.D_MODEL)]), dim=1
    )
    df = senses(Factors(directions, l1=0.01), model, sentences, layers=[0], at_least=20)
    check_tidy(
        df,
        ["word", "tag", "method"],
        ["word", "tag", "method", "factor", "layer", "recall", "precision", "f1", "accuracy", "n"],
    )
    rows = df.set_index("method")
    assert set(df["word"]) == {"w5"} and set(df["tag"]) == {"vb"} and set(df["n"]) == {40}
    assert rows.loc["factor", "f1"] == 1.0 and rows.loc["state", "f1"] == rows.loc["code", "f1"] == 1.0
    share = rows.loc["majority", "precision"]
    assert 0.5 < share < 0.8 and rows.loc["majority", "f1"] == pytest.approx(2 * share / (1 + share))
    rng = np.random.default_rng(0)
    randomly_tagged = [[s[0], (s[1][0], ("vb", "nn")[int(rng.integers(2))]), s[2]] for s in sentences]
    control = senses(Factors(directions, l1=0.01), model, randomly_tagged, layers=[0], at_least=20).set_index("method")
    assert control.loc["factor", "accuracy"] < 0.75 and control.loc["state", "accuracy"] < 0.75


def test_words_can_be_selected_and_words_with_one_sense_are_refused(model):
    pytest.importorskip("sklearn")
    factors = Factors(torch.eye(zoo.D_MODEL), l1=0.01)
    sentences = [[(w.lower(), t) for w, t in s] for s in tagged()]
    df = senses(factors, model, sentences, words={"w5": ["nn"]}, layers=[0, 1])
    assert set(df["tag"]) == {"nn"} and senses(factors, model, sentences, words={"w5": ["nn"]}, layers=[0, 1]).equals(
        df
    )
    assert senses(factors, model, sentences, words={"w5": "nn"}, layers=[0, 1]).equals(df), "one tag may be a string"
    assert set(senses(factors, model, sentences, words="w5", layers=[0], at_least=9)["word"]) == {"w5"}
    with pytest.raises(EmbspaceError, match="seed=-1 is not an integer of 0 or more"):
        senses(factors, model, sentences, seed=-1)
    with pytest.raises(EmbspaceError, match="No word has two tags with 60 occurrences each"):
        senses(factors, model, sentences)
    with pytest.raises(EmbspaceError, match="'w50' does not occur in sentences"):
        senses(factors, model, sentences, words={"w50": ["nn"]})
    with pytest.raises(EmbspaceError, match="two occurrences of both senses"):
        senses(factors, model, sentences, words={"w9": ["nn"]})


def test_threshold_does_not_separate_equal_codes():
    truth = np.array([True, False, False])
    score, factor, threshold = _best_threshold(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), truth)
    assert (score, factor, threshold) == (pytest.approx(2 / 3), 1, 0.5)


def test_tagger_sees_no_sentence_of_a_source_with_held_out_occurrences(model):
    pytest.importorskip("sklearn")
    sentences = [[(w.lower(), t) for w, t in s] for s in tagged()]
    sources = [i // 4 for i in range(len(sentences))]
    training = []

    def train(given):
        training.extend(id(sentence) for sentence in given)
        return lambda words: ["x", "vb" if words[0] == "w2" else "nn", "nn"]

    factors = Factors(torch.eye(zoo.D_MODEL), l1=0.01)
    options = {"words": {"w5": ["vb"]}, "layers": [0], "groups": sources}
    df = senses(factors, model, sentences, **options, train_tagger=train)
    assert df["method"].tolist() == ["code", "factor", "majority", "state", "tagger"]
    rows = df.set_index("method")
    assert rows.loc["tagger", "f1"] == 1.0 and set(df["n"]) == {40}
    seen = [source for source, sentence in zip(sources, sentences) if id(sentence) in training]
    assert len(seen) == len(training) == 40 and all(seen.count(source) == 4 for source in seen)
    without = senses(factors, model, sentences, **options)
    assert without.equals(df[df["method"] != "tagger"].reset_index(drop=True)), "the split is the same for all methods"


def test_codes_of_a_word_equal_those_computed_sentence_by_sentence(model):
    sentences = [[(w.lower(), t) for w, t in s] for s in tagged(8)]
    sentences.append([("w5", "nn"), ("w5", "vb")])
    factors = Factors(torch.nn.functional.normalize(torch.randn(6, zoo.D_MODEL), dim=1), l1=0.01)
    df = sense_codes(factors, model, sentences, "W5", factor=2, layers=[1, 0])
    check_tidy(df, ["layer", "example", "pos"], ["word", "tag", "factor", "layer", "example", "pos", "code"])
    assert len(df) == 2 * 10 and set(df["factor"]) == {2} and set(df["word"]) == {"w5"}
    for row in df.to_dict("records"):
        sentence = sentences[row["example"]]
        (hidden,) = hidden_states(model, [" ".join(word for word, _ in sentence)], [row["layer"]])
        code = factors.encode(hidden.states[row["layer"]])[list(hidden.pos).index(row["pos"]), 2]
        assert row["code"] == pytest.approx(float(code), abs=2e-3)
        assert row["tag"] in {tag for word, tag in sentence if word == "w5"}
    with pytest.raises(EmbspaceError, match="'w50' does not occur in sentences"):
        sense_codes(factors, model, sentences, "w50", factor=2)
    with pytest.raises(EmbspaceError, match="factor=6 is not an integer from 0 to 5"):
        sense_codes(factors, model, sentences, "w5", factor=6)
