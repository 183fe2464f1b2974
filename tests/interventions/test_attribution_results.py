"""Results of attribution, composition and logit lens as tables: compared with the results of TransformerLens, and errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from host_tools import CLEAN, CORRUPTED, host_module, in_glossary_order, mean_logit_difference
from tables import check_tidy
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.interventions import attribution_frame, composition_frame, logit_lens_frame

ATTRIBUTION = ["layer", "node", "head", "neuron", "pos", "example"]


@pytest.fixture(scope="module")
def folded():
    return zoo.compat(zoo.boot(zoo.ZOO["gpt2"]()))


@pytest.mark.parametrize("unit", ["component", "layer", "head"])
@pytest.mark.parametrize("pos", [-1, None])
def test_direct_logit_attribution_has_one_row_per_cell(folded, unit, pos):
    tool = host_module("tools.analysis.direct_logit_attribution")
    result = tool.direct_logit_attribution(folded, CLEAN, torch.tensor([5, 2]) if pos == -1 else 5, unit=unit, pos=pos)
    table = attribution_frame(result)
    check_tidy(table, ATTRIBUTION, in_glossary_order([*ATTRIBUTION, "value"]))
    assert len(table) == result.attribution.numel()
    for i, label in enumerate(result.labels):
        rows = table
        if label.startswith("L"):
            layer, head = map(int, label[1:].split("H"))
            rows = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        elif label[0].isdigit() or label == "final_post":
            layer, node = (1, "post") if label == "final_post" else (int(label[0]), label[2:])
            node = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post"}.get(node, node)
            rows = rows[(rows["layer"] == layer) & (rows["node"] == node)]
        else:
            rows = rows[(rows["node"] == label) & (rows["layer"] == -1)]
        rows = rows.sort_values(["example", "pos"])
        np.testing.assert_allclose(rows["value"], result.attribution[i].flatten().detach(), rtol=1e-6)
    assert set(table["example"]) == {0, 1} and set(table["pos"]) == ({-1} if pos == -1 else {0, 1, 2, 3})


def test_labels_of_neurons_are_read_and_unknown_labels_raise():
    result = SimpleNamespace(attribution=torch.tensor([1.0, 2.0]), labels=["L1N30", "L0N2"])
    assert attribution_frame(result)[["layer", "neuron", "value"]].values.tolist() == [[0, 2, 2], [1, 30, 1]]
    with pytest.raises(EmbspaceError, match="label '\\?' is not a known label of TransformerLens"):
        attribution_frame(SimpleNamespace(attribution=torch.tensor([1.0]), labels=["?"]))


def test_attribution_patching_has_one_row_per_node(tiny):
    tool = host_module("tools.analysis.attribution_patching")
    result = tool.attribution_patch(tiny("gpt2"), CLEAN, CORRUPTED, mean_logit_difference)
    table = attribution_frame(result)
    check_tidy(table, ATTRIBUTION, in_glossary_order([*ATTRIBUTION, "value"]))
    assert len(table) == len(result.node_scores) and (table["example"] == -1).all()
    value = table.set_index(["node", "layer", "head", "pos"])["value"]
    for node, score in result.node_scores.items():
        kind = {"attn_head_out": "head"}.get(node.kind, node.kind)
        key = (kind, *(-1 if n is None else n for n in (node.layer, node.head)), node.position)
        assert value[key] == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_of_earlier_heads_are_listed(tiny, mode):
    scores = tiny("llama").all_composition_scores(mode)
    table = composition_frame(scores, mode=mode)
    keys = ["composition", "src_layer", "src_head", "layer", "head"]
    check_tidy(table, keys, in_glossary_order([*keys, "value"]))
    values = getattr(scores, "scores", scores)
    assert len(table) == 16 and (table["src_layer"] < table["layer"]).all()
    for row in table.itertuples():
        assert row.value == pytest.approx(values[row.src_layer, row.src_head, row.layer, row.head].item())
    hybrid = SimpleNamespace(scores=values, layer_indices=[2, 5])
    assert set(composition_frame(hybrid, mode=mode)["layer"]) == {5}


@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=3),
        dict(targets=[5, 9]),
        dict(vocab=[4, 5, 6], return_type="probs"),
        dict(positions=-1),
        dict(top_k=2, incl_mid=True),
    ],
)
def test_rows_of_a_logit_lens_equal_its_dataframe(tiny, options):
    tool = host_module("tools.analysis.logit_lens")
    result = tool.logit_lens(tiny("gpt2"), CLEAN, **(dict(positions=None) | options))
    lens = EmbeddingLens(tiny("gpt2"))
    table = logit_lens_frame(result, lens)
    keys = ["metric", "layer", "node", "example", "pos", "rank"]
    check_tidy(table, keys, in_glossary_order([*keys, "token_index", "token_string", "value"]))
    host_table = result.to_dataframe()
    assert len(table) == len(host_table)
    column = {"logits": "logit", "probs": "probability"}[options.get("return_type", "logits")]
    assert set(table["metric"]) == {column}
    label = table["layer"].astype(str) + "_" + table["node"].str.removeprefix("resid_")
    label = label.where(table["node"] != "resid_post", "final_post")
    our_values = table.assign(label=label).set_index(["label", "example", "pos", "token_index"])["value"].to_dict()
    for row in host_table.itertuples():
        key = (row.layer, row.batch, getattr(row, "pos", -1), row.token_index)
        assert our_values[key] == pytest.approx(getattr(row, column), rel=1e-5, abs=1e-6)
    assert (table.groupby(keys[:-1])["value"].diff().dropna() <= 1e-9).all(), "best first"
    assert logit_lens_frame(result, lens, k=1)["rank"].eq(0).all()


def test_invalid_results_raise(lens):
    with pytest.raises(EmbspaceError, match="attribution_frame takes a DirectLogitAttribution .*; this is a int"):
        attribution_frame(3)
    with pytest.raises(EmbspaceError, match="logit_lens_frame takes the result of logit_lens; this is a int"):
        logit_lens_frame(3, lens)
    with pytest.raises(
        EmbspaceError, match=r"scores is a Tensor of shape \(2, 4\). Give CompositionScores, or a tensor"
    ):
        composition_frame(torch.zeros(2, 4), mode="Q")
    with unchecked_types(), pytest.raises(EmbspaceError, match="mode='O' is not one of 'Q', 'K', 'V'"):
        composition_frame(torch.zeros(2, 4, 2, 4), mode="O")  # pyright: ignore[reportArgumentType]
    four_dimensional = SimpleNamespace(attribution=torch.zeros(1, 1, 1, 1), labels=["embed"])
    with pytest.raises(EmbspaceError, match=r"The attribution has shape \(1, 1, 1, 1\)"):
        attribution_frame(four_dimensional)
