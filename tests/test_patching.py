"""Results of the host's forward-pass tools as tables, and what weights predict of them."""

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from scipy import stats
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, agreement
from embspace_lens.circuits import attribution_frame, composition_frame, logit_lens_frame, patching_frame
from embspace_lens.tables.columns import GLOSSARY
from embspace_lens.tables.frames import tidy

KEYS = ["metric", "patch_type", "layer", "head", "neuron", "pos", "src_pos", "example"]
ATTRIBUTION = ["layer", "node", "head", "neuron", "pos", "example"]
CLEAN, CORRUPTED = torch.tensor([[1, 5, 6, 7], [1, 8, 3, 2]]), torch.tensor([[1, 9, 6, 7], [1, 4, 3, 2]])


def metric(logits):
    return logits[:, -1, 5] - logits[:, -1, 9]


def mean(logits):
    return metric(logits).mean()


def ordered(columns):
    return [name for name in GLOSSARY if name in columns]


def host(name):
    """A module of the installed TransformerLens."""
    try:
        return importlib.import_module(f"transformer_lens.{name}")
    except ImportError:
        pytest.skip(f"this TransformerLens has no {name}")


@pytest.fixture(scope="module")
def folded():
    return zoo.compat(zoo.boot(zoo.ZOO["gpt2"]()))


# -- patching


def test_a_tensor_cell_by_cell():
    values = torch.randn(2, 3, 4)
    table = patching_frame(values, ("layer", "dest_pos", "head_index"), metric="loss")
    check_tidy(table, KEYS, ordered([*KEYS, "value"]))
    assert len(table) == 24 and set(table["metric"]) == {"loss"} and set(table["patch_type"]) == {""}
    assert (table[["neuron", "src_pos", "example"]] == -1).all().all()
    for row in table.itertuples():
        assert row.value == values[row.layer, row.pos, row.head]


@pytest.mark.parametrize("axes", [("layer", "neuron"), ("layer", "pos"), ("layer", "head", "dest_pos", "src_pos")])
def test_every_axis_is_a_key(axes):
    values = torch.randn(*(range(2, 2 + len(axes))))
    table = patching_frame(values, axes)
    names = [{"dest_pos": "pos"}.get(name, name) for name in axes]
    assert table.set_index(names)["value"].to_dict() == {
        tuple(index): values[tuple(index)].item() for index in np.ndindex(*values.shape)
    }


def test_a_tensor_with_its_index_table(tiny):
    patching = host("patching")
    _, cache = tiny("gpt2").run_with_cache(CLEAN)
    found = patching.get_act_patch_resid_pre(tiny("gpt2"), CORRUPTED, cache, mean, return_index_df=True)
    table = patching_frame(found)
    check_tidy(table, KEYS, ordered([*KEYS, "value"]))
    assert table.set_index(["layer", "pos"])["value"].to_dict() == {
        (i, j): found[0][i, j].item() for i, j in np.ndindex(2, 4)
    }


def test_examples_and_metrics_of_a_patching_result(tiny):
    patching = host("patching")
    if not hasattr(patching, "PatchingResult"):
        pytest.skip("this TransformerLens has no PatchingResult")
    model = tiny("gpt2")
    _, cache = model.run_with_cache(CLEAN)
    metrics = {"difference": metric, "other": lambda logits: logits[:, -1, 3]}
    result = patching.get_act_patch_attn_head_out_all_pos(model, CORRUPTED, cache, metrics, reduce="none")
    table = patching_frame(result)
    check_tidy(table, KEYS, ordered([*KEYS, "value"]))
    theirs = result.to_dataframe()
    joined = table.merge(theirs, on=["metric", "layer", "head", "example"], suffixes=("", "_theirs"))
    assert len(joined) == len(table) == len(theirs) == 2 * 2 * 4 * 2
    np.testing.assert_allclose(joined["value"], joined["value_theirs"], rtol=1e-6)
    assert len(EmbeddingLens(model).ov(k=2).merge(table, on=["layer", "head"])) == 2 * len(table)


def test_query_heads_share_the_row_of_their_key_head(tiny):
    patching, lens = host("patching"), EmbeddingLens(tiny("llama"))
    model = tiny("llama")
    _, cache = model.run_with_cache(CLEAN)
    values = patching.get_act_patch_attn_head_k_all_pos(model, CORRUPTED, cache, mean)
    assert values.shape == (2, 2), "two key heads, four query heads"
    table = patching_frame(values, ("layer", "head"), lens=lens)
    assert table.set_index(["layer", "head"])["value"].to_dict() == {
        (i, j): values[i, j // 2].item() for i, j in np.ndindex(2, 4)
    }
    own = patching_frame(torch.rand(2, 4), ("layer", "head"), lens=lens)
    assert own["head"].tolist() == [0, 1, 2, 3] * 2

    every = patching.get_act_patch_attn_head_all_pos_every(model, CORRUPTED, cache, mean)
    axes = ("patch_type", "layer", "head")
    table = patching_frame(every, axes, lens=lens)
    check_tidy(table, KEYS, ordered([*KEYS, "value"]))
    expected = {}
    for number, kind in enumerate(("out", "q", "k", "v", "pattern")):
        for i, j in np.ndindex(2, 4):
            expected[kind, i, j] = every[number, i, j // 2 if kind in "kv" else j].item()
    assert table.set_index(["patch_type", "layer", "head"])["value"].to_dict() == expected
    with pytest.raises(EmbspaceError, match="query heads seem to share heads here. Give lens="):
        patching_frame(every, axes)


def test_without_groups_no_lens_is_needed(tiny):
    patching, model = host("patching"), tiny("gpt2")
    _, cache = model.run_with_cache(CLEAN)
    every = patching.get_act_patch_attn_head_all_pos_every(model, CORRUPTED, cache, mean)
    axes = ("patch_type", "layer", "head")
    with_lens = patching_frame(every, axes, lens=EmbeddingLens(model))
    pd.testing.assert_frame_equal(patching_frame(every, axes), with_lens)
    blocks = patching.get_act_patch_attn_out(model, CORRUPTED, cache, mean)
    three = patching_frame(torch.stack([blocks, blocks + 1, blocks + 2]), ("patch_type", "layer", "pos"))
    means = three.groupby("patch_type")["value"].mean()
    assert means["attn_out"] - means["resid_pre"] == pytest.approx(1, abs=1e-4)
    assert means["mlp_out"] - means["resid_pre"] == pytest.approx(2, abs=1e-4)
    assert sorted(set(three["patch_type"])) == ["attn_out", "mlp_out", "resid_pre"]


# -- attribution


@pytest.mark.parametrize("unit", ["component", "layer", "head"])
@pytest.mark.parametrize("pos", [-1, None])
def test_direct_logit_attribution(folded, unit, pos):
    tool = host("tools.analysis.direct_logit_attribution")
    result = tool.direct_logit_attribution(folded, CLEAN, torch.tensor([5, 2]) if pos == -1 else 5, unit=unit, pos=pos)
    table = attribution_frame(result)
    check_tidy(table, ATTRIBUTION, ordered([*ATTRIBUTION, "value"]))
    assert len(table) == result.attribution.numel()
    for i, label in enumerate(result.labels):
        rows = table
        if label.startswith("L"):
            layer, head = map(int, label[1:].split("H"))
            rows = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        elif label[0].isdigit() or label == "final_post":
            number, node = (1, "post") if label == "final_post" else (int(label[0]), label[2:])
            node = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post"}.get(node, node)
            rows = rows[(rows["layer"] == number) & (rows["node"] == node)]
        else:
            rows = rows[(rows["node"] == label) & (rows["layer"] == -1)]
        rows = rows.sort_values(["example", "pos"])
        np.testing.assert_allclose(rows["value"], result.attribution[i].flatten().detach(), rtol=1e-6)
    assert set(table["example"]) == {0, 1} and set(table["pos"]) == ({-1} if pos == -1 else {0, 1, 2, 3})


def test_neurons_and_unknown_labels():
    found = SimpleNamespace(attribution=torch.tensor([1.0, 2.0]), labels=["L1N30", "L0N2"])
    assert attribution_frame(found)[["layer", "neuron", "value"]].values.tolist() == [[0, 2, 2], [1, 30, 1]]
    with pytest.raises(EmbspaceError, match="label '\\?' is not one that TransformerLens is known to give"):
        attribution_frame(SimpleNamespace(attribution=torch.tensor([1.0]), labels=["?"]))


def test_attribution_patching(tiny):
    tool = host("tools.analysis.attribution_patching")
    result = tool.attribution_patch(tiny("gpt2"), CLEAN, CORRUPTED, mean)
    table = attribution_frame(result)
    check_tidy(table, ATTRIBUTION, ordered([*ATTRIBUTION, "value"]))
    assert len(table) == len(result.node_scores) and (table["example"] == -1).all()
    value = table.set_index(["node", "layer", "head", "pos"])["value"]
    for node, score in result.node_scores.items():
        kind = {"attn_head_out": "head"}.get(node.kind, node.kind)
        key = (kind, *(-1 if n is None else n for n in (node.layer, node.head)), node.position)
        assert value[key] == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition(tiny, mode):
    scores = tiny("llama").all_composition_scores(mode)
    table = composition_frame(scores, mode=mode)
    keys = ["composition", "src_layer", "src_head", "layer", "head"]
    check_tidy(table, keys, ordered([*keys, "value"]))
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
def test_logit_lens(tiny, options):
    tool = host("tools.analysis.logit_lens")
    result = tool.logit_lens(tiny("gpt2"), CLEAN, **(dict(positions=None) | options))
    lens = EmbeddingLens(tiny("gpt2"))
    table = logit_lens_frame(result, lens)
    keys = ["metric", "layer", "node", "example", "pos", "rank"]
    check_tidy(table, keys, ordered([*keys, "token_index", "token_string", "value"]))
    theirs = result.to_dataframe()
    assert len(table) == len(theirs)
    column = {"logits": "logit", "probs": "probability"}[options.get("return_type", "logits")]
    assert set(table["metric"]) == {column}
    label = table["layer"].astype(str) + "_" + table["node"].str.removeprefix("resid_")
    label = label.where(table["node"] != "resid_post", "final_post")
    mine = table.assign(label=label).set_index(["label", "example", "pos", "token_index"])["value"].to_dict()
    for row in theirs.itertuples():
        key = (row.layer, row.batch, getattr(row, "pos", -1), row.token_index)
        assert mine[key] == pytest.approx(getattr(row, column), rel=1e-5, abs=1e-6)
    assert (table.groupby(keys[:-1])["value"].diff().dropna() <= 1e-9).all(), "best first"
    assert logit_lens_frame(result, lens, k=1)["rank"].eq(0).all()


# -- agreement


def units(n, seed=0, noise=0.0):
    a = np.random.default_rng(seed).normal(size=n)
    b = a**3 + noise * np.random.default_rng(seed + 1).normal(size=n)
    keys = dict(layer=np.arange(n) // 4, head=np.arange(n) % 4)
    return pd.DataFrame(keys | {"score": a}), pd.DataFrame(keys | {"value": b})


def test_agreement_is_spearmans():
    a, b = units(40, noise=2.0)
    table = agreement(a, b.sample(frac=1, random_state=0), n_resamples=3000)
    check_tidy(table, ["sample"], ordered(["sample", "correlation", "low", "high", "p_value", "n"]))
    expected = stats.spearmanr(a["score"], b["value"])
    paired, permuted = (table.iloc[i] for i in (0, 1))
    assert paired["correlation"] == pytest.approx(expected.statistic, abs=1e-6) and paired["n"] == 40
    rng = np.random.default_rng(5)
    draws = [rng.integers(40, size=40) for _ in range(1000)]
    slow = [stats.spearmanr(a["score"].to_numpy()[i], b["value"].to_numpy()[i]).statistic for i in draws]
    np.testing.assert_allclose([paired["low"], paired["high"]], np.quantile(slow, [0.025, 0.975]), atol=0.05)
    assert abs(permuted["correlation"]) < 0.05
    np.testing.assert_allclose([permuted["low"], permuted["high"]], [-1.96 / 39**0.5, 1.96 / 39**0.5], atol=0.05)


def test_what_agrees_and_what_does_not():
    agree = agreement(*units(30)).iloc[0]
    assert agree["correlation"] == pytest.approx(1) and agree["p_value"] < 0.001 and agree["low"] > 0.99
    a, b = units(30)
    against = agreement(a, b.assign(value=-b["value"])).iloc[0]
    assert against["correlation"] == pytest.approx(-1) and against["p_value"] < 0.001, "either way counts"
    p_values = [agreement(a, units(30, seed=seed)[1], n_resamples=300).iloc[0]["p_value"] for seed in range(1, 41)]
    assert 0.2 < np.mean(p_values) < 0.8 and np.mean(np.less(p_values, 0.05)) < 0.2


def test_rows_of_a_unit_are_averaged():
    a, b = units(12, noise=1.0)
    twice = pd.concat([b.assign(value=b["value"] - 3), b.assign(value=b["value"] + 3)])
    pd.testing.assert_frame_equal(agreement(a, twice), agreement(a, b))


def test_mistakes_are_told(tiny, lens):
    a, b = units(12)
    for call, message in (
        (lambda: patching_frame(torch.zeros(2, 4)), "axes must name 2 of patch_type, layer"),
        (lambda: patching_frame(torch.zeros(2, 4), ("layer", "heads")), "axis='heads' is not one of .* Did you mean 'head'?"),
        (lambda: patching_frame(torch.zeros(2, 4), ("pos", "dest_pos")), r"axes name one thing twice: \('pos', 'dest_pos'\)"),
        (lambda: patching_frame("nothing"), "A str is no patching result"),
        (lambda: patching_frame(torch.zeros(4, 2), ("patch_type", "layer")), "patch_type has 4 kinds"),
        (lambda: patching_frame(torch.zeros(2, 9), ("layer", "head"), lens=lens), "head=8 is out of range"),
        (lambda: attribution_frame(3), "A int is neither a DirectLogitAttribution nor an AttributionResult"),
        (lambda: composition_frame(torch.zeros(2, 4), mode="Q"), "scores are no tensor"),
        (lambda: composition_frame(torch.zeros(2, 4, 2, 4), mode="O"), "mode='O' is not one of 'Q', 'K', 'V'"),
        (lambda: logit_lens_frame(3, lens), "A int is no result of logit_lens"),
        (lambda: agreement(a, b, on="layers"), "zero_pass has no column 'layers'"),
        (lambda: agreement(a, b.head(3)), "3 units are in both tables; a rank correlation needs 5"),
        (lambda: agreement(a.head(0), b), "0 units are in both tables"),
        (lambda: agreement(a, b.assign(value=np.nan)), "0 units are in both tables"),
        (lambda: agreement(a.assign(score="x"), b), "zero_pass's 'score' holds no numbers"),
        (lambda: agreement([1], b), "zero_pass is a list; give a table"),
        (lambda: agreement(a, b, on=[]), "on names no key"),
        (lambda: agreement(a, b, n_resamples=0), "n_resamples=0 is not a positive number"),
        (lambda: agreement(a.assign(score=1.0), b), "The zero_pass score is the same for all 12 units"),
    ):  # fmt: skip
        with pytest.raises(EmbspaceError, match=message):
            call()


def test_agreement_is_drawn():
    pytest.importorskip("plotly", reason="plots need plotly")
    from embspace_lens.show import plot_agreement

    keys = {"layer": np.repeat([0, 1], 4), "head": np.tile(np.arange(4), 2)}
    a = tidy(["layer", "head", "score"], [keys | {"score": np.arange(8.0)}])
    b = tidy(["layer", "head", "value"], [keys | {"value": np.array([0, 0.1, 0, 0.2, 0.1, 0.3, 0.2, 5.0])}])
    figure = plot_agreement(a, b, said=("score <x>", "effect"))
    (trace,) = figure.data
    assert list(trace.x) == list(range(8)) and trace.y[7] == pytest.approx(5)
    assert "L1H3" in trace.hovertext[7] and "L1H3" in {note.text for note in figure.layout.annotations}
    found = agreement(a, b).to_dict("records")
    text = figure.layout.title.text + str(figure.layout.title.subtitle.text)
    assert f"{found[0]['correlation']:.3g}" in text and "n = 8" in text and "permuted" in text
    assert figure.layout.xaxis.title.text == "score &lt;x&gt;"
