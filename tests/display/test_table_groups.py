"""The kind of a table, and its rows by neuron, head or direction."""

import pandas as pd
import pytest
import torch

from embspace_lens import EmbspaceError
from embspace_lens.display.table_groups import count_groups, first_groups, kind, table_groups


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
