"""Reading exactly the components in the rows of a table."""

import numpy as np
import pandas as pd
import pytest
import torch
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, match_neurons
from embspace_lens.tables.columns import GLOSSARY

TOKEN = ["token_index", "token_string", "score"]
PAIR = ["dest_token_index", "dest_token_string", "src_token_index", "src_token_string", "score"]


def check_rows(table, rows, others=()):
    """The table's own columns are tidy, in the order of the rows; the others are those of the rows."""
    ours = [column for column in table if column in GLOSSARY and column not in set(others) - {"weight"}]
    check_tidy(table[ours], ["row", "weight", "rank"], ours)
    assert table["row"].unique().tolist() == list(range(len(rows)))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2_moe"])
def test_reading_shuffled_units_gives_their_rows_of_the_whole_table(tiny, family):
    lens = EmbeddingLens(tiny(family), score="cosine")
    for read in (lens.neurons, lens.subheads, lens.ov, lens.qk):
        whole = read(k=2)
        keys = [column for column in whole if column in ("layer", "expert", "head", "neuron", "subhead", "weight")]
        units = whole[keys].drop_duplicates().sample(frac=1, random_state=0).reset_index(drop=True)
        table = lens.read(units, k=2)
        check_rows(table, units)
        expected = units.merge(whole, on=keys, how="left")[whole.columns]
        pd.testing.assert_frame_equal(table[whole.columns], expected, check_categorical=False)
        lowest = lens.read(units.head(3), k=1, largest=False)
        assert (lowest["score"].to_numpy() <= table["score"].iloc[: 2 * 3 : 2].to_numpy()).all()


def test_units_of_a_search_are_read_in_its_order_and_not_crossed(lens):
    matches = lens.search(5, weight="W_out", k=10)
    table = lens.read(matches, k=3)
    check_rows(table, matches)
    assert len(table) == 30
    assert table["neuron"].tolist() == matches["neuron"].repeat(3).tolist()
    assert table["score_given"].tolist() == matches["score"].repeat(3).tolist()
    assert table["token_index_given"].eq(5).all() and table["rank_given"].tolist() == list(np.repeat(range(10), 3))
    assert table["rank"].tolist() == [0, 1, 2] * 10


def test_a_search_over_all_weights_is_read_row_by_row(lens):
    matches = lens.search(5, k=2)
    table = lens.read(matches, k=2)
    check_rows(table, matches)
    is_head = table["weight"].isin(["W_OV", "W_QK"])
    assert (table["token_index"] == -1).eq(is_head).all() and (table["token_string"] == "").eq(is_head).all()
    assert (table["dest_token_index"] == -1).eq(~is_head).all() and (table["src_token_string"] == "").eq(~is_head).all()
    head = matches.query("weight == 'W_OV'").iloc[0]
    expected = lens.ov(int(head["layer"]), int(head["head"]), k=2)[PAIR]
    actual = table.query("weight == 'W_OV'").head(2)[PAIR].reset_index(drop=True)
    pd.testing.assert_frame_equal(actual, expected)


def test_without_a_weight_all_weights_of_a_component_are_read(tiny):
    lens = EmbeddingLens(tiny("llama"))
    neurons = lens.read(pd.DataFrame({"layer": [1, 0], "neuron": [3, 4]}), k=2)
    assert neurons["weight"].tolist() == [name for name in ("W_in", "W_gate", "W_out") for _ in range(2)] * 2
    assert list(neurons) == ["row", "layer", "neuron", "weight", "rank", *TOKEN]
    heads = lens.read(pd.DataFrame({"layer": [1, 0], "head": [3, 2]}), k=1)
    assert heads["weight"].tolist() == ["W_OV", "W_QK"] * 2
    assert list(heads) == ["row", "layer", "head", "weight", "rank", *PAIR]
    subheads = lens.read(pd.DataFrame({"layer": [1], "head": [3], "subhead": [2]}), k=1)
    assert subheads["weight"].tolist() == ["W_Q", "W_K", "W_V", "W_O"]
    both = pd.DataFrame({"layer": [1, 1], "head": [np.nan, 3], "neuron": [7, np.nan], "value": [0.5, 0.25]})
    assert lens.read(both, k=1)["value"].tolist() == [0.5] * 3 + [0.25] * 2


def test_other_columns_are_kept_and_repeated_units_are_repeated(lens):
    patching = pd.DataFrame({"value": [3.0, 1.0, 2.0], "pos": [4, 5, 4], "head": [1, 1, 0], "layer": [0, 0, 1]})
    patching["my note"] = ["a", "b", "c"]
    patching.index = pd.Index([10, 10, 12])
    table = lens.read(patching, k=2)
    check_rows(table, patching, others=["value", "pos"])
    assert table["my note"].tolist() == [note for note in "abc" for _ in range(4)]
    assert list(table)[-3:] == ["value", "pos", "my note"]
    first, second = (table[table["row"] == row].drop(columns=["row", "value", "pos", "my note"]) for row in (0, 1))
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))


def test_a_side_of_a_comparison_is_chosen_by_its_suffix():
    lenses = [
        EmbeddingLens.from_pretrained(f"reviews-small-{i}", vocabulary="frequent", score="cosine") for i in (0, 1)
    ]
    matches = match_neurons(*lenses, 1, 2).head(4)
    for lens, suffix in zip(lenses, ("_a", "_b"), strict=True):
        table = lens.read(matches, suffix=suffix, k=2)
        check_rows(table, matches, others=[c for c in matches])
        assert table["neuron"].tolist() == matches[f"neuron{suffix}"].repeat(2 * table["weight"].nunique()).tolist()
        assert table["layer"].eq(1 if suffix == "_a" else 2).all()
        assert {"neuron_a", "neuron_b", "correlation"} <= set(table)


def test_reading_a_reading_keeps_both_scores(lens):
    again = lens.read(lens.read(lens.search(5, weight="W_in", k=2), k=1), k=1)
    assert {"score", "score_given", "score_given_given", "row", "row_given"} <= set(again)
    assert again.columns.is_unique and len(again) == 2


def test_a_table_without_rows_keeps_its_columns(lens):
    for rows in (lens.search(5, k=1), lens.neurons(k=1), lens.ov(k=1)):
        empty = lens.read(rows.head(0), k=2)
        assert len(empty) == 0 and list(empty) == list(lens.read(rows.head(2), k=2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (dict(layer=[0], direction=["a"]), "rows has the columns .* needs `layer`, and `neuron`"),
        (dict(neuron=[0]), "rows has the columns"),
        (dict(layer=[0], head=[-1]), "names no neuron, head or sub-head"),
        (dict(layer=[0], neuron=[48]), r"neuron=48 is out of range"),
        (dict(layer=[0], head=[4]), r"head=4 is out of range"),
        (dict(layer=[0], head=[0], subhead=[8]), r"subhead=8 is out of range"),
        (dict(layer=[2], neuron=[0]), r"layer=2 is out of range"),
        (dict(layer=["x"], neuron=[0]), r"rows has layer='x' in row 0, which is not a whole number"),
        (dict(layer=["x"], head=[0]), r"rows has layer='x' in row 0, which is not a whole number"),
        (dict(layer=[0, 0], neuron=[1, "x"]), r"rows has neuron='x' in row 1, which is not a whole number"),
        (dict(layer=[np.nan], neuron=[0]), r"rows has layer=nan in row 0, which is not a whole number"),
        (dict(layer=[-1], neuron=[0]), r"layer=-1 is out of range"),
        (dict(layer=[np.inf], neuron=[0]), r"rows has layer=inf in row 0, which is not a whole number"),
        (dict(layer=[1 + 2j], neuron=[0]), r"rows has layer=\(1\+2j\) in row 0, which is not a whole number"),
        (
            dict(layer=[pd.Timestamp(0)], neuron=[0]),
            r"rows has layer=Timestamp.* in row 0, which is not a whole number",
        ),
        (dict(layer=[[1]], neuron=[0]), r"rows has layer=\[1\] in row 0, which is not a whole number"),
        (dict(layer=[0], neuron=[0.5]), r"neuron=.*0\.5.* in row 0, which is not a whole number"),
        (dict(layer=[0], neuron=[0], weight=["W_Q"]), "weight='W_Q' is not one of 'W_in', 'W_out'"),
    ],
)
def test_rows_that_cannot_be_read_raise_an_error(lens, rows, message):
    with pytest.raises(EmbspaceError, match=message):
        lens.read(pd.DataFrame(rows))


def test_singular_directions_are_not_read(lens):
    with pytest.raises(EmbspaceError, match=r"Singular directions are read by lens.singular\(\)"):
        lens.read(lens.singular(layer=0, head=0, k=1))


def test_results_are_independent_of_the_number_of_rows(lens):
    rows = pd.concat([lens.neurons(k=1)] * 2, ignore_index=True)
    table = lens.read(rows.drop(columns=[*TOKEN, "rank"]), k=1)
    torch.testing.assert_close(torch.tensor(table["score"].to_numpy()), torch.tensor(rows["score"].to_numpy()))


def test_repeated_columns_are_named(lens):
    found = lens.search(5, k=1)
    message = "rows has several columns of the name 'layer', 'head', .*Rename or drop them"
    with pytest.raises(EmbspaceError, match=message):
        lens.read(pd.concat([found, found], axis=1))


@pytest.mark.parametrize("circuits", [True, False])
def test_a_table_with_its_own_token_column_is_read_and_shown(lens, circuits):
    """Whether the reading has tokens, pairs, or both."""
    rows = pd.DataFrame({"layer": [0, 1], "head": [1, 2], "token_string": [" a", " b"]})
    rows = rows if circuits else rows.assign(neuron=[3, -1], head=[-1, 2])
    table = lens.read(rows, k=2)
    column = "token_string" if circuits else "token_string_given"
    assert table[column].tolist() == [" a"] * 4 + [" b"] * 4
    assert len(table.embspace.label()) == 4 and "L1H2" in repr(table.embspace.show())
    assert "L1H2" in table.embspace.show()._repr_html_()
