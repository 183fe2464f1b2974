"""Every table of a lens, with every option, satisfies the rules of tidy tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.papers.experiment import COLUMNS as FIGURE_COLUMNS
from embspace_lens.tables.columns import GLOSSARY
from embspace_lens.tables.frames import tidy

TOKEN = ["token_index", "token_string", "score"]
PAIR = ["dest_token_index", "dest_token_string", "src_token_index", "src_token_string", "score"]
# name: (call, grain, further columns). In mixtures of experts, "expert" follows "layer" in the tables of HAS_EXPERT.
TABLES = {
    "neurons": (lambda lens, **o: lens.neurons(**o), ["layer", "neuron", "weight", "rank"], TOKEN),
    "subheads": (lambda lens, **o: lens.subheads(**o), ["layer", "head", "subhead", "weight", "rank"], TOKEN),
    "ov": (lambda lens, **o: lens.ov(**o), ["layer", "head", "weight", "rank"], PAIR),
    "qk": (lambda lens, **o: lens.qk(**o), ["layer", "head", "weight", "rank"], PAIR),
    "singular": (
        lambda lens, **o: lens.singular(n_directions=2, **o),
        ["layer", "head", "weight", "component", "side", "rank"],
        [*TOKEN, "singular_value"],
    ),
    "directions": (lambda lens, **o: lens.directions(torch.ones(3, 32), **o), ["direction", "rank"], TOKEN),
    "search": (
        lambda lens, **o: lens.search(5, **o),
        ["weight", "rank"],
        ["layer", "head", "neuron", "subhead", *TOKEN, *PAIR, "token_rank"],
    ),
    "components": (
        lambda lens, **o: lens.components(**o),
        ["layer", "weight"],
        ["rows", "columns", "n_heads", "norm", "dtype", "folded", "note"],
    ),
}
OPTIONS = {
    "neurons": [
        {},
        dict(layer=1),
        dict(layer=[]),
        dict(layer=slice(0, 1), neuron=range(3)),
        dict(neuron=[2, 5], k=1, largest=False),
        dict(weight="W_out"),
        dict(weight=["W_out", "W_in"], k=3),
    ],
    "subheads": [{}, dict(layer=0, head=1), dict(head=[3, 0], weight="W_V"), dict(head=[]), dict(k=2, largest=False)],
    "ov": [
        {},
        dict(layer=1, head=0, k=7),
        dict(layer=[]),
        dict(largest=False),
        dict(head=slice(2)),
        dict(exclude_same="fuzzy"),
    ],
    "qk": [{}, dict(layer=1, head=0, k=7), dict(head=[]), dict(largest=False)],
    "singular": [
        {},
        *(dict(weight=w, k=2) for w in ("W_QK", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")),
        dict(head=[1]),
    ],
    "directions": [{}, dict(names=["a", "b", "c"]), dict(side="read", k=2, largest=False)],
    "search": [
        {},
        dict(weight=["W_OV", "W_QK"], layer=[1]),
        dict(layer=0),
        dict(weight="W_out", k=3),
        dict(weight=["W_Q", "W_O"], largest=False),
    ],
    "components": [{}],
}
CASES = [(name, options) for name in TABLES for options in OPTIONS[name]]
HAS_EXPERT = {"neurons", "singular", "search", "components"}


def columns_of(name, mixture):
    _, grain, more = TABLES[name]
    columns = {*grain, *more} | ({"expert"} if mixture and name in HAS_EXPERT else set())
    return [column for column in GLOSSARY if column in columns]


def grain_of(name, mixture):
    grain = list(TABLES[name][1])
    if mixture and name in HAS_EXPERT and name != "search":
        grain.insert(grain.index("layer") + 1, "expert")
    return grain


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_tables_with_every_option_are_tidy(tiny, family, name, options):
    lens = EmbeddingLens(tiny(family))
    frame = TABLES[name][0](lens, **options)
    mixture = lens.weights.has_experts
    check_tidy(frame, grain_of(name, mixture), columns_of(name, mixture))
    empty = any(isinstance(value, list) and not value for value in options.values())
    assert (len(frame) == 0) == empty


SPACES = list(itertools.product(["circuit", "unembed", "embed"], ["transpose", "pinv"], ["dot", "centered", "cosine"]))


@pytest.mark.parametrize(("space", "inverse", "score"), SPACES)
@pytest.mark.parametrize("name", TABLES)
def test_tables_in_every_space_are_tidy(tiny, name, space, inverse, score):
    lens = EmbeddingLens(
        tiny("llama"), space=space, inverse=inverse, score=score, vocabulary=range(5, 60), fold_ln=score != "centered"
    )
    frame = TABLES[name][0](lens, **({} if name == "components" else dict(k=4)))
    check_tidy(frame, grain_of(name, False), columns_of(name, False))
    for column in [c for c in frame if c.endswith("token_index")]:
        is_id = frame[column] >= 0 if name == "search" else frame[column] == frame[column]
        assert frame.loc[is_id, column].between(5, 59).all(), "only chosen tokens are read"
    if score == "cosine" and "score" in frame:
        assert frame["score"].abs().max() <= 1 + 1e-5


def test_every_column_has_a_meaning_and_is_used():
    meanings = [column.meaning for column in GLOSSARY.values()]
    assert len(set(meanings)) == len(meanings)
    assert all(len(meaning) > 20 for meaning in meanings)
    used = {column for name in TABLES for column in columns_of(name, True)}
    used |= {"target", "source", "pair", "inverse", "k", "sample", "jaccard", "recall", "low", "high", "n"}  # evidence
    used |= {"layer_a", "layer_b", "expert_a", "neuron_a", "match", "expert_b", "neuron_b", "correlation"}  # align
    used |= {"n_nearest", "n_matched", "n_layers", "chance"}  # align
    used |= {"recipient", "donor", "keep", "accuracy", "share"}  # stitch_sweep, displacement
    used |= {"n_vectors", "objective", "explained_variance", "n_active", "n_dead"}  # FactorFitter.history
    used |= {"factor", "importance", "example", "pos", "code", "before", "after"}  # factors.activity
    used |= {"level", "peak", "onset", "purity", "reach", "word", "tag", "method", "precision", "f1"}  # level, senses
    used |= {"sharpness", "n_contexts", "n_texts", "code_from"}  # level, activity
    used |= {"offset", "saliency"}  # saliency
    used |= {"experiment", "measure", "model", "published", "published_control"}  # papers
    used |= {"variant", "rater_a", "rater_b", "kappa", "item"}  # probe, rater_agreement, rating_sheet
    used |= {"activation"}  # activations
    used |= {"row", "activation_change"}  # read, channel_input_effects
    used |= {
        "dest_pos",
        "src_pos",
        "previous_token",
        "first_token",
        "same_position",
        "uniform",
    }  # position_qk, position_heads
    used |= {f"{dest}_{src}" for dest in ("token", "position") for src in ("token", "position")}
    used |= {
        "channel",
        "skew",
        "kurtosis",
        "explained",
        "n_tokens",
        "logit_change",
    }  # vocabulary_channels, channel_effects
    used |= {"metric", "patch_type", "src_pos", "value", "node", "composition", "src_layer", "src_head"}  # patching
    used |= {f"{name}_norm" for name in ("in", "gate", "out", "ov", "qk")} | {"role", "ov_copying", "qk_matching"}
    used |= {f"{pair}_similarity" for pair in ("in_out", "gate_out", "in_gate")}  # neuron_statistics, head_statistics
    used |= {f"vocab_{moment}" for moment in ("mean", "variance", "skew", "kurtosis")}
    used |= {"ov_effective_rank", "qk_effective_rank"}
    used |= {"relation", "effect", "relation_score", "control", "p_value", "n_left_out"}  # relation_scores
    used |= {"matching", "loss", "gain", "half", "copied"}  # token_composition, repetition_loss, repetition_gain
    used |= {f"attends_{key}" for key in ("previous", "first", "duplicate", "induction")}  # head_measurements
    used |= {"src_rank", "amplification"}  # salient_operations
    used |= set(FIGURE_COLUMNS)  # papers
    used |= {f"{end}feature_{part}" for end in ("", "src_", "dest_") for part in ("index", "label")}  # with_features
    used |= {
        "circuit",
        "era",
        "twera",
        "frequency",
        "mean_activation",
        "joint_frequency",
        "mean_product",
    }  # coactivation
    used |= {"mean_where_active", "dictionary", "z_score", "is_outlier", "is_legible", "feature"}  # feature_labels
    used |= {"feature", "dictionary", "z_score", "is_outlier", "is_legible"}  # feature_labels
    unused = set(GLOSSARY) - used - {"similarity", "label"}  # made by match_neurons and by the accessor
    assert not unused


def test_an_empty_table_keeps_its_columns():
    frame = tidy(["layer", "weight", "token_string", "score"], [])
    assert frame.columns.tolist() == ["layer", "weight", "token_string", "score"]
    assert frame["layer"].dtype == np.int64 and frame["score"].dtype == np.float32


def test_the_kind_is_stored_in_attrs(lens):
    kinds = {name: TABLES[name][0](lens).attrs["embspace_kind"] for name in TABLES}
    tokens = dict.fromkeys(("neurons", "subheads", "singular", "directions"), "tokens")
    assert kinds == {**tokens, "ov": "pairs", "qk": "pairs", "search": "search", "components": "components"}


def test_unknown_kinds_are_refused():
    with pytest.raises(AssertionError):
        tidy(["layer"], [], kind="other")


def test_tables_join_with_activation_patching(tiny):
    patching = pytest.importorskip("transformer_lens.patching")
    if not hasattr(patching, "PatchingResult"):
        pytest.skip("this TransformerLens has no PatchingResult")
    model, clean, corrupted = tiny("gpt2"), torch.tensor([[1, 5, 6, 7]]), torch.tensor([[1, 9, 6, 7]])
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[:, -1, 5]

    result = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric, reduce="none")
    joined = EmbeddingLens(model).ov(k=2).merge(result.to_dataframe(), on=["layer", "head"])
    assert len(joined) == 2 * 4 * 2 and joined["value"].notna().all()


def test_directions_keep_the_order_of_their_names(lens):
    assert lens.directions(torch.eye(32)[:3], names=["c", "a", "b"], k=1)["direction"].tolist() == ["c", "a", "b"]
    by_index = lens.directions(torch.eye(32)[:12], k=1)
    assert by_index["direction"].astype(int).tolist() == list(range(12))
    check_tidy(by_index, ["direction", "rank"], ["direction", "rank", *TOKEN])


@pytest.mark.parametrize("names", [[70, 3, 11], np.array([70, 3, 11]), pd.Index([70, 3, 11])], ids=type)
def test_directions_keep_integers_as_names(lens, names):
    table = lens.directions(torch.eye(32)[:3], names=names, k=2)
    assert table["direction"].dtype == "int64" and table["direction"].tolist() == [70, 70, 3, 3, 11, 11]
    expected = lens.directions(torch.eye(32)[:3], k=2).drop(columns="direction")
    pd.testing.assert_frame_equal(table.drop(columns="direction"), expected)
    joined = table.merge(pd.DataFrame({"direction": [11], "value": [0.5]}), on="direction")
    assert len(joined) == 2


def test_a_mapping_gives_directions_their_names(lens):
    vectors = {"second": torch.eye(32)[1], "first": np.eye(32)[0], "third": [1.0] * 32}
    table = lens.directions(vectors, k=2)
    x = torch.stack([torch.eye(32)[1], torch.eye(32)[0], torch.ones(32)])
    pd.testing.assert_frame_equal(table, lens.directions(x, names=["second", "first", "third"], k=2))
    assert lens.directions({7: torch.ones(32)}, k=1)["direction"].tolist() == [7]
    with pytest.raises(EmbspaceError, match="vectors is a mapping, whose keys are the names"):
        lens.directions(vectors, names=["a", "b", "c"])


def test_reading_a_mixture_without_an_expert_index_raises(moe_lens):
    with pytest.raises(EmbspaceError, match="expert=-1 is not an expert of block 0"):
        moe_lens.weights.W_in(0)
