"""The page of results."""

import numpy as np
import pandas as pd
import pytest
from papers_stub import counted

from embspace_lens.papers import runs
from embspace_lens.papers.results_page import format_number, text_block, write_page
from embspace_lens.papers.runs import RunOptions, run_experiments

SECTION = """## Counted

`T:counted` · Nobody (2020)

Count.

```text
measure  model            value  control  published    n
overlap  reviews-small-0  0.123     0.05     0.0083  100
k = 64   reviews-small-0     24                       24
```

- A note.

Heads:

```text
layer  head  label
    0     2  ␣a
    1     2  ␣b
```

Command: `embspace-lens paper T:counted`
"""


def test_section_has_published_values_beside_ours_and_its_command(calls, tmp_path):
    options = RunOptions(folder=tmp_path)
    assert write_page(run_experiments(options), options).endswith(SECTION)


def test_page_is_the_same_for_new_and_for_cached_runs(calls, tmp_path):
    options = RunOptions(folder=tmp_path)
    assert write_page(run_experiments(options), options) == write_page(run_experiments(options), options)


def test_command_has_the_options_that_were_given(calls, tmp_path):
    options = RunOptions(model="reviews-small-1", scale=0.5, seed=3, folder=tmp_path)
    page = write_page(run_experiments(options), options)
    assert "Command: `embspace-lens paper T:counted --model reviews-small-1 --scale 0.5 --seed 3`" in page


def test_section_states_what_is_missing(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "experiments", lambda: {"T:counted": counted(calls, needs=("brown",))})
    page = write_page(run_experiments(RunOptions(folder=tmp_path)), RunOptions())
    assert "Not run: the data folder lacks brown." in page
    assert "Command: `embspace-lens paper T:counted --data DATA`" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00832, "0.00832"),
        (0.1, "0.1"),
        (24.0, "24"),
        (7000.0, "7000"),
        (50257.0, "50257"),
        (90.58, "90.6"),
        (np.nan, ""),
    ],
)
def test_numbers_have_three_figures_and_no_exponent(value, text):
    assert format_number(value) == text


def test_long_tables_are_cut_and_say_so():
    block = text_block(pd.DataFrame({"layer": range(100)}))
    assert block.splitlines()[-2] == "… 40 more rows" and len(block.splitlines()) == 64


def test_passages_of_the_corpus_are_not_copied():
    table = pd.DataFrame({"token_string": [" film"], "code": [1.0], "before": ["I saw this"], "after": ["yesterday"]})
    assert text_block(table).split() == ["```text", "token_string", "code", "␣film", "1", "```"]
