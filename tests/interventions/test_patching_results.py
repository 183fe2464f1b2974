"""Results of activation patching as tables: compared cell by cell with the tables of TransformerLens, and errors."""

import numpy as np
import pandas as pd
import pytest
import torch
from host_tools import CLEAN, CORRUPTED, host_module, in_glossary_order, logit_difference, mean_logit_difference
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.interventions import patching_frame

KEYS = ["metric", "patch_type", "layer", "head", "neuron", "pos", "src_pos", "example"]


def test_a_tensor_has_one_row_per_cell():
    values = torch.randn(2, 3, 4)
    table = patching_frame(values, ("layer", "dest_pos", "head_index"), metric="loss")
    check_tidy(table, KEYS, in_glossary_order([*KEYS, "value"]))
    assert len(table) == 24 and set(table["metric"]) == {"loss"} and set(table["patch_type"]) == {""}
    assert (table[["neuron", "src_pos", "example"]] == -1).all().all()
    for row in table.itertuples():
        assert row.value == values[row.layer, row.pos, row.head]


@pytest.mark.parametrize("axes", [("layer", "neuron"), ("layer", "pos"), ("layer", "head", "dest_pos", "src_pos")])
def test_each_axis_is_a_key(axes):
    values = torch.randn(*(range(2, 2 + len(axes))))
    table = patching_frame(values, axes)
    names = [{"dest_pos": "pos"}.get(name, name) for name in axes]
    assert table.set_index(names)["value"].to_dict() == {
        tuple(index): values[tuple(index)].item() for index in np.ndindex(*values.shape)
    }


def test_a_tensor_with_its_index_table_is_accepted(tiny):
    patching = host_module("patching")
    _, cache = tiny("gpt2").run_with_cache(CLEAN)
    result = patching.get_act_patch_resid_pre(
        tiny("gpt2"), CORRUPTED, cache, mean_logit_difference, return_index_df=True
    )
    table = patching_frame(result)
    check_tidy(table, KEYS, in_glossary_order([*KEYS, "value"]))
    assert table.set_index(["layer", "pos"])["value"].to_dict() == {
        (i, j): result[0][i, j].item() for i, j in np.ndindex(2, 4)
    }


def test_rows_of_a_patching_result_equal_its_dataframe(tiny):
    patching = host_module("patching")
    if not hasattr(patching, "PatchingResult"):
        pytest.skip("this TransformerLens has no PatchingResult")
    model = tiny("gpt2")
    _, cache = model.run_with_cache(CLEAN)
    metrics = {"difference": logit_difference, "other": lambda logits: logits[:, -1, 3]}
    result = patching.get_act_patch_attn_head_out_all_pos(model, CORRUPTED, cache, metrics, reduce="none")
    table = patching_frame(result)
    check_tidy(table, KEYS, in_glossary_order([*KEYS, "value"]))
    host_table = result.to_dataframe()
    joined = table.merge(host_table, on=["metric", "layer", "head", "example"], suffixes=("", "_theirs"))
    assert len(joined) == len(table) == len(host_table) == 2 * 2 * 4 * 2
    np.testing.assert_allclose(joined["value"], joined["value_theirs"], rtol=1e-6)
    assert len(EmbeddingLens(model).ov(k=2).merge(table, on=["layer", "head"])) == 2 * len(table)


def test_query_heads_get_the_row_of_their_key_value_head(tiny):
    patching, lens = host_module("patching"), EmbeddingLens(tiny("llama"))
    model = tiny("llama")
    _, cache = model.run_with_cache(CLEAN)
    values = patching.get_act_patch_attn_head_k_all_pos(model, CORRUPTED, cache, mean_logit_difference)
    assert values.shape == (2, 2), "two key-value heads, four query heads"
    table = patching_frame(values, ("layer", "head"), lens=lens)
    assert table.set_index(["layer", "head"])["value"].to_dict() == {
        (i, j): values[i, j // 2].item() for i, j in np.ndindex(2, 4)
    }
    of_query_heads = patching_frame(torch.rand(2, 4), ("layer", "head"), lens=lens)
    assert of_query_heads["head"].tolist() == [0, 1, 2, 3] * 2

    stack = patching.get_act_patch_attn_head_all_pos_every(model, CORRUPTED, cache, mean_logit_difference)
    axes = ("patch_type", "layer", "head")
    table = patching_frame(stack, axes, lens=lens)
    check_tidy(table, KEYS, in_glossary_order([*KEYS, "value"]))
    expected = {}
    for index, kind in enumerate(("out", "q", "k", "v", "pattern")):
        for i, j in np.ndindex(2, 4):
            expected[kind, i, j] = stack[index, i, j // 2 if kind in "kv" else j].item()
    assert table.set_index(["patch_type", "layer", "head"])["value"].to_dict() == expected
    with pytest.raises(EmbspaceError, match="query heads seem to share key-value heads. Pass lens="):
        patching_frame(stack, axes)


def test_ungrouped_heads_need_no_lens(tiny):
    patching, model = host_module("patching"), tiny("gpt2")
    _, cache = model.run_with_cache(CLEAN)
    stack = patching.get_act_patch_attn_head_all_pos_every(model, CORRUPTED, cache, mean_logit_difference)
    axes = ("patch_type", "layer", "head")
    with_lens = patching_frame(stack, axes, lens=EmbeddingLens(model))
    pd.testing.assert_frame_equal(patching_frame(stack, axes), with_lens)
    blocks = patching.get_act_patch_attn_out(model, CORRUPTED, cache, mean_logit_difference)
    types_of_three = patching_frame(torch.stack([blocks, blocks + 1, blocks + 2]), ("patch_type", "layer", "pos"))
    means = types_of_three.groupby("patch_type")["value"].mean()
    assert means["attn_out"] - means["resid_pre"] == pytest.approx(1, abs=1e-4)
    assert means["mlp_out"] - means["resid_pre"] == pytest.approx(2, abs=1e-4)
    assert sorted(set(types_of_three["patch_type"])) == ["attn_out", "mlp_out", "resid_pre"]


@pytest.mark.parametrize(
    ("result", "axes", "message"),
    [
        (torch.zeros(2, 4), None, r"has shape \(2, 4\), and axes=None. Name 2 of patch_type, layer"),
        (torch.zeros(2, 4), ("layer", "heads"), "axis='heads' is not one of .* Did you mean 'head'?"),
        (torch.zeros(2, 4), ("pos", "dest_pos"), r"axes=\('pos', 'dest_pos'\) name the same dimension twice"),
        ("nothing", None, "patching_frame takes a tensor.*; this is a str"),
        (torch.zeros(4, 2), ("patch_type", "layer"), "patch_type has 4 types"),
        (torch.zeros(2, 9), ("layer", "head"), "head=8 is out of range"),
    ],
)
def test_invalid_results_raise(lens, result, axes, message):
    with pytest.raises(EmbspaceError, match=message):
        patching_frame(result, axes, lens=lens)
