"""Experiments of Yun et al.: their rules fit their sentences, their statistics equal slow ones, and they run without data."""

import numpy as np
import pandas as pd
import pytest

from embspace_lens.factors.pattern_shares import _follows
from embspace_lens.papers import Setting, experiments
from embspace_lens.papers.experiment import COLUMNS
from embspace_lens.papers.factor_activity import _correlations, _depth_of_onset
from embspace_lens.papers.pattern_sentences import PATTERNS, TABLE_4
from embspace_lens.papers.sense_predictions import _placements
from embspace_lens.papers.tagging import train_perceptron
from embspace_lens.tables.columns import GLOSSARY

WITHOUT_DATA = ["B:importance", "B:contexts", "B:patterns", "B:probe", "B:raters"]
WITH_BROWN = ["B:left", "B:code-histogram"]


def parts(sentence):
    """The text before the marked word, the word as a token with its space, and the text after it."""
    before, rest = sentence.split("«")
    target, after = rest.split("»")
    return (before[:-1], f" {target}", after) if before.endswith(" ") else (before, target, after)


@pytest.mark.parametrize("name", PATTERNS)
def test_rule_holds_for_kept_sentences_and_not_for_broken_ones(name):
    follows = _follows(PATTERNS[name].rule)
    assert len(PATTERNS[name].sentences) >= 8
    for kept, broken in PATTERNS[name].sentences:
        assert follows(*parts(kept)), kept
        assert not follows(*parts(broken)), broken
        assert parts(kept)[1].strip() == parts(broken)[1].strip(), "pairs have the same marked word"


def test_variations_of_the_adjective_list_have_one_mark_and_the_papers_codes():
    assert [variation.published for variation in TABLE_4] == [9.5, 9.2, 8.2, 7.8, 6.2, 0.0, 7.9]
    assert all(variation.sentence.count("«") == variation.sentence.count("»") == 1 for variation in TABLE_4)


def test_placements_equal_the_count_over_all_pairs():
    first, second = np.array([0.0, 1.0, 2.0, 2.0]), np.array([0.0, 2.0, 1.5])
    expected = [np.mean([(a > b) + (a == b) / 2 for b in second]) for a in first]
    assert _placements(first, second).tolist() == pytest.approx(expected)


def test_onset_is_the_first_layer_with_half_of_the_maximum():
    curves = np.array([[5, 5, 5, 5], [1, 4, 6, 8], [0, 1, 4, 8], [0, 1, 1, 9.0]])
    assert _depth_of_onset(curves).tolist() == [0, 0, 1, 2]


def test_correlation_of_equal_saliencies_is_one_and_the_control_compares_other_contexts():
    def run(values):
        rows = [(f, 0, 0, o, v) for f, row in enumerate(values) for o, v in enumerate(row)]
        return pd.DataFrame(rows, columns=["factor", "layer", "rank", "offset", "saliency"])

    up, down = [1, 2, 3, 4], [4, 3, 2, 1]
    own, control = _correlations(run([up, down]), run([up, down]))
    assert own.tolist() == pytest.approx([1, 1]) and control == pytest.approx(-1)


def test_trained_tagger_uses_the_context():
    pytest.importorskip("nltk")
    sentences = [
        [("they", "pp"), ("left", "vbd"), ("home", "nn")],
        [("the", "at"), ("left", "jj"), ("hand", "nn")],
    ] * 20
    tag = train_perceptron(sentences)
    assert tag(["they", "left", "home"])[1] == "vbd" and tag(["the", "left", "hand"])[1] == "jj"


def check_findings(name, findings, setting):
    figures = findings.figures
    assert figures.columns.tolist() == [column for column in GLOSSARY if column in COLUMNS]
    assert set(figures["experiment"]) == {name} and set(figures["model"]) == {setting.model}
    assert (
        figures["measure"].is_unique and len(findings.notes) >= 2 and all(note.endswith(".") for note in findings.notes)
    )
    assert all(isinstance(table, pd.DataFrame) for table in findings.details.values())
    if findings.plot is not None:
        assert findings.plot().data


@pytest.mark.full
def test_experiments_run_without_data(tmp_path):
    setting = Setting("reviews-small-0", None, 40 / 298_489, folder=tmp_path)
    for name in WITHOUT_DATA:
        findings = experiments()[name].run(setting)
        check_findings(name, findings, setting)
        assert any("sampled from the model" in note for note in findings.notes), name
    assert list(tmp_path.glob("ratings-*/rating-sheet.csv"))


@pytest.mark.full
def test_sense_experiments_run_on_a_tagged_corpus(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    rows = []
    for i in range(120):
        words = ["They", "left", "town"] if i % 2 else ["The", "left", "hand"]
        tags = ["pp", "vbd", "nn"] if i % 2 else ["at", "jj", "nn"]
        rows += [(f"f{i // 4}", i, j, word, tag) for j, (word, tag) in enumerate(zip(words, tags))]
    table = pd.DataFrame(rows, columns=["file", "sentence", "position", "word", "tag"])
    table.to_parquet(tmp_path / "brown_tagged.parquet")
    setting = Setting("reviews-small-0", tmp_path, 20 / 298_489, folder=tmp_path / "runs")
    for name in WITH_BROWN:
        check_findings(name, experiments()[name].run(setting), setting)
    left = experiments()["B:left"].run(setting).figures.set_index("measure")["value"]
    assert left["F1, logistic regression on the hidden state"] == 1 and 0.5 < left["F1, majority"] < 0.8


@pytest.mark.full
def test_saliency_experiment_runs(tmp_path, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.setattr("embspace_lens.papers.factor_activity.N_SAMPLES", 100)
    monkeypatch.setattr("embspace_lens.papers.factor_activity.N_FEW_SAMPLES", 20)
    setting = Setting("reviews-small-0", None, 20 / 298_489, folder=tmp_path)
    check_findings("B:saliency", experiments()["B:saliency"].run(setting), setting)


@pytest.mark.full
def test_agreement_is_read_from_filled_sheets(tmp_path):
    pytest.importorskip("sklearn")
    setting = Setting("reviews-small-0", tmp_path / "data", 20 / 298_489, folder=tmp_path / "runs")
    (tmp_path / "data" / "ratings").mkdir(parents=True)
    experiments()["B:raters"].run(setting)
    (sheet,) = (tmp_path / "runs").glob("ratings-*/rating-sheet.csv")
    (key,) = (tmp_path / "runs").glob("ratings-*/rating-key.csv")
    own = pd.read_csv(key).set_index("item")["sample"] == "own"
    filled = pd.read_csv(sheet)
    filled["rating"] = np.where(filled["item"].map(own), "word", "none")
    for name in ("ann", "ben"):
        filled.to_csv(tmp_path / "data" / "ratings" / f"{name}.csv", index=False)
    kappa, share = experiments()["B:raters"].run(setting).figures.sort_values("measure").to_dict("records")
    assert kappa["value"] == 1 and share["value"] == 1 and share["control"] == 0
