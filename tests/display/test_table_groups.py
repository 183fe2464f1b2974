"""The kind of a table, and its rows by neuron, head or direction."""

import pandas as pd
import pytest
import torch
from handmade import neurons_of

from embspace_lens import EmbspaceError
from embspace_lens.display.table_groups import count_groups, first_groups, kind, table_groups
from embspace_lens.display.terminal import render


def test_groups_are_named_by_their_component(lens, moe_lens):
    assert [group.name for group in table_groups(lens.neurons(1, 3, k=1))] == ["L1N3", "L1N3"]
    assert next(table_groups(lens.ov(1, 2, k=1))).name == "L1H2"
    assert next(table_groups(lens.subheads(1, 2, weight="W_V", k=1))).name == "L1H2.0"
    assert next(table_groups(moe_lens.neurons(0, 5, weight="W_out", k=1))).name == "L0E0N5"
    assert [group.weight for group in table_groups(lens.singular(0, 0, n_directions=1, k=1))] == [
        "W_OV 0 read",
        "W_OV 0 write",
    ]
    assert next(table_groups(lens.directions(torch.ones(lens.weights.d_model), names="mine", k=1))).name == "mine"


def test_first_groups_are_complete(lens):
    df = lens.neurons(k=3)
    assert first_groups(df, 2).equals(df.head(6))
    assert count_groups(df) == len(df) // 3


def test_groups_keep_the_tables_order_and_sort_by_rank(lens):
    df = lens.neurons(0, [1, 2], weight="W_out", k=3)
    groups = list(table_groups(df.iloc[::-1]))
    assert [group.name for group in groups] == ["L0N2", "L0N1"]
    assert groups[0].rows["rank"].tolist() == [0, 1, 2]


# -- kinds


def test_the_stored_kind_is_used_while_the_table_has_its_columns(lens):
    df = lens.search(5, k=2)
    assert kind(df) == "search"
    df.attrs["embspace_kind"] = "tokens"
    assert kind(df) == "tokens"
    df.attrs["embspace_kind"] = "components"  # this kind needs columns that the table does not have
    assert kind(df) == "search"
    df.attrs["embspace_kind"] = "no such kind"
    assert kind(df) == "search"


def test_columns_decide_if_the_kind_is_lost(lens):
    tables = {
        "tokens": lens.neurons(0, k=1),
        "pairs": lens.ov(0, k=1),
        "search": lens.search(5, k=1),
        "components": lens.components(),
    }
    for name, df in tables.items():
        df.attrs = {}
        assert kind(df) == name
    merged = tables["pairs"].merge(pd.DataFrame({"layer": [0], "my own": [1.0]}), on="layer")
    assert kind(merged) == "pairs"
    without_tokens = tables["tokens"].drop(columns=["token_index", "token_string", "score"])
    assert kind(without_tokens.assign(similarity=0.5)) == "measurements"
    with pytest.raises(EmbspaceError, match=r"not one of EmbeddingLens's tables.*'layer', 'mean_recall'\.$"):
        kind(pd.DataFrame({"layer": [0], "mean_recall": [0.5]}))
    with pytest.raises(EmbspaceError, match=r"Its columns are none\.$"):
        kind([1, 2])


def test_matched_neurons_are_measurements_and_not_an_alignment():
    columns = {"weight": ["W_in"], "layer_a": [0], "layer_b": [0], "correlation": [0.5]}
    assert kind(pd.DataFrame(columns)) == "alignment"
    assert kind(pd.DataFrame(columns | {"neuron_a": [3], "neuron_b": [4]})) == "measurements"


# -- the tables of two models put together


def tables_of_two_models():
    """One neuron of two models, with different tokens."""
    first, second = (neurons_of(tokens, ["W_out"]) for tokens in ([" a", " b"], [" x", " y"]))
    return first, second


def test_models_put_together_are_not_interleaved():
    first, second = tables_of_two_models()
    df = pd.concat([first.assign(model="one"), second.assign(model="two")], ignore_index=True)
    groups = list(table_groups(df))
    assert [group.rows["token_string"].tolist() for group in groups] == [[" a", " b"], [" x", " y"]]
    assert [group.name for group in groups] == ["L3N120, one", "L3N120, two"]
    assert count_groups(df) == 2 and len(first_groups(df, 1)) == 2
    lines = render(df).splitlines()
    assert lines[0].startswith("neuron, model ") and lines[1].split()[:2] == ["L3N120,", "one"]
    page = df.embspace.show()._repr_html_()
    assert "neuron, model" in page and "L3N120, two" in page
    labels = df.embspace.label(k=2)
    assert labels[["model", "label"]].to_numpy().tolist() == [["one", "␣a ␣b"], ["two", "␣x ␣y"]]


@pytest.mark.parametrize("values", [(0, 1), (0.1, 0.2), (False, True)])
def test_an_added_column_of_numbers_is_a_key_if_it_separates_equal_ranks(values):
    first, second = tables_of_two_models()
    df = pd.concat([first.assign(seed=values[0]), second.assign(seed=values[1])], ignore_index=True)
    assert [group.rows["token_string"].tolist() for group in table_groups(df)] == [[" a", " b"], [" x", " y"]]
    assert first.assign(seed=3).pipe(table_groups).__next__().name == "L3N120"


def test_models_put_together_without_a_column_are_not_interleaved():
    df = pd.concat(tables_of_two_models())
    assert [group.rows["token_string"].tolist() for group in table_groups(df)] == [[" a", " b"], [" x", " y"]]
    assert [group.name for group in table_groups(df)] == ["L3N120", "L3N120"]


def test_a_column_with_a_value_for_each_token_is_no_key():
    df = neurons_of([" a", " b", " c"], ["W_out"]).assign(tag=["X", "Y", "X"], frequency=[0.1, 0.2, 0.3])
    assert count_groups(df) == 1
    assert count_groups(df.assign(note=[[1], [2], [3]])) == 1


def test_components_of_two_models_are_labelled_separately(lens):
    search = lens.search(5, k=2)
    df = pd.concat([search.assign(model="one"), search.assign(model="two")], ignore_index=True)
    assert len(df.embspace.label()) == len(df)


def test_values_of_rows_given_to_a_reading_are_not_part_of_a_name(lens):
    found = lens.search(5, weight="W_out", k=2).assign(token_string=["a", "b"])
    names = [group.name for group in table_groups(lens.read(found, k=2))]
    assert names == [f"L{row.layer}N{row.neuron}" for row in found.itertuples()]
