"""Every registered experiment: its fields, and a run on small models and a few texts."""

import re

import pandas as pd
import pytest
from tables import check_tidy

from embspace_lens import demo
from embspace_lens.papers import Setting, experiments
from embspace_lens.papers.experiment import COLUMNS
from embspace_lens.tables.columns import GLOSSARY

ALL = experiments()
DATA = {"reviews", "sentiment"}  # what the fixture has
POSITIVE = "good great best love beautiful wonderful excellent perfect fun nice brilliant superb amazing".split()
NEGATIVE = "bad worst boring poor awful terrible waste stupid horrible dull weak annoying ridiculous".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a few reviews and two lists of words."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        (f"A {word} film about the {topic}. I saw it with a friend.", label)
        for topic in ("sea", "war", "family", "town")
        for words, label in ((POSITIVE, "pos"), (NEGATIVE, "neg"))
        for word in words
    ]
    frame = pd.DataFrame(rows, columns=["text", "label"]).sample(frac=1, random_state=0)
    frame.assign(split=["train", "test"] * (len(frame) // 2)).to_csv(folder / "reviews.csv", index=False)
    (folder / "sentiment").mkdir()
    for sign, words in (("positive", POSITIVE), ("negative", NEGATIVE)):
        (folder / "sentiment" / f"opinion_{sign}.txt").write_text("\n".join(words))
    return folder


@pytest.mark.parametrize("experiment", ALL.values(), ids=list(ALL))
def test_every_experiment_is_described(experiment):
    assert re.fullmatch(r"\w+:[a-z0-9-]+", experiment.name)
    assert experiment.title and experiment.source and experiment.protocol.endswith((".", ")"))
    models = {part for model in experiment.models for part in model.split(",")}
    assert models and models <= set(demo.names()) and 0 < experiment.demo_scale <= 1


@pytest.mark.full
@pytest.mark.parametrize("experiment", ALL.values(), ids=list(ALL))
def test_every_experiment_runs_on_its_first_model(experiment, data, tmp_path):
    if not set(experiment.needs) <= DATA:
        pytest.skip(f"needs {', '.join(experiment.needs)}")
    if experiment.name.startswith("B:"):
        pytest.skip("needs longer texts; test_factor_experiments.py runs it")
    findings = experiment.run(Setting(experiment.models[0], data, 0.01, 0, tmp_path))
    grain = ["experiment", "measure", "model"]
    in_order = findings.figures.sort_values(grain, ignore_index=True)  # measures are in the order of the paper
    check_tidy(in_order, grain, [name for name in GLOSSARY if name in COLUMNS])
    assert set(findings.figures["experiment"]) == {experiment.name}
    assert findings.figures["value"].notna().any() and all(len(table) for table in findings.details.values())
    if findings.plot is not None:
        assert findings.plot().data
