"""Labels of features from weights, compared with a slow loop and with planted dictionaries."""

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, Features
from embspace_lens.features import Activation, feature_labels
from embspace_lens.features.weight_labels import COLUMNS
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.tables.columns import GLOSSARY

GRAIN = ["feature", "side", "rank"]
HOOK = "blocks.1.mlp.hook_in"
SMALL = {"pool": 40, "feature_pool": 9, "k": 4}  # pools for 97 tokens


def random_features(n=12, d=32, **options):
    return Features(torch.randn(n, d), torch.randn(d, n), **{"name": "target", "layer": 1, "hook": HOOK} | options)


def earlier_features():
    return [
        random_features(10, name="first", layer=0, hook="blocks.0.mlp.hook_in"),
        random_features(7, name="embedded", layer=None, hook="", labels=list("abcdefg")),
    ]


def legible(table):
    return table.groupby("feature")["is_legible"].first().tolist()


@pytest.mark.parametrize(
    "options", [{}, {"largest": False}, {"raw": True}, {"first_mlp": True}, {"validate": True}, {"feature": [2, 5]}]
)
def test_table_is_tidy(lens, options):
    features = random_features(activation=Activation())
    table = feature_labels(lens, features, earlier=earlier_features(), **SMALL, **options)
    check_tidy(table, GRAIN, [name for name in GLOSSARY if name in COLUMNS])
    n_features = len(options.get("feature", range(len(features))))
    assert len(table) == n_features * 2 * SMALL["k"]
    assert table.groupby("feature")["is_legible"].nunique().eq(1).all()


def test_empty_selection_keeps_the_columns(lens):
    table = feature_labels(lens, random_features(), feature=[], **SMALL)
    check_tidy(table, GRAIN, [name for name in GLOSSARY if name in COLUMNS])
    assert not len(table)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_equals_brute_force(tiny, name, largest, raw):
    lens = EmbeddingLens(tiny(name))
    features, earlier = random_features(), earlier_features()
    table = feature_labels(
        lens, features, earlier=earlier, largest=largest, raw=raw, token_threshold=2, feature_threshold=1.5, **SMALL
    )
    W_E, W_U = lens.weights.stored("W_E"), lens.weights.stored("W_U")
    encoder = features.encoder.T
    if not raw:
        W_U = lens.weights.W_U
        norm = lens.weights.norm("W_in", 1)
        encoder = encoder * norm.gain
        encoder = encoder - encoder.mean(1, keepdim=True) if norm.centres else encoder
    expected = reference.brute_feature_labels(
        encoder, features.decoder, W_E, W_U.T, [each.decoder for each in earlier], SMALL, (2, 1.5), largest
    )
    actual = table[["feature", "rank", "token_index", "feature_index", "is_outlier", "is_legible"]].astype(int)
    sources = table["dictionary"].map({"": -1, "first": 0, "embedded": 1})
    assert (actual.assign(source=sources).to_numpy() == np.array([row[:7] for row in expected])).all()
    scores = np.array([row[7:] for row in expected])
    np.testing.assert_allclose(table[["score", "z_score"]].to_numpy(), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_the_first_mlp_stands_for_embeddings(tiny, score):
    lens = EmbeddingLens(tiny("gpt2"), score=score, vocabulary=range(10, 90))
    features = random_features(hook="blocks.1.hook_resid_pre")
    with chunk_bytes(2**14):
        table = feature_labels(lens, features, first_mlp=True, **SMALL)
    block = lens.model.blocks[0]
    enriched = block.mlp(block.ln2(lens.weights.W_E[None]))[0].detach()[10:90]
    expected = features.encoder.T
    if score == "cosine":
        enriched, expected = (torch.nn.functional.normalize(x, dim=1) for x in (enriched - enriched.mean(0), expected))
    best = (expected @ enriched.T).topk(SMALL["k"])
    read, written = (table[table["side"] == side].reset_index(drop=True) for side in ("read", "write"))
    assert read["token_index"].tolist() == (best.indices + 10).flatten().tolist()
    np.testing.assert_allclose(read["score"], best.values.flatten(), rtol=1e-4, atol=1e-5)
    usual = feature_labels(lens, features, **SMALL)
    usual = usual[usual["side"] == "write"].reset_index(drop=True)
    columns = ["token_index", "score", "z_score"]
    pd.testing.assert_frame_equal(written[columns], usual[columns])


@pytest.mark.parametrize("score", ["centered", "cosine"])
def test_scores_are_those_of_the_lens(tiny, score):
    lens = EmbeddingLens(tiny("gpt2"), score=score, vocabulary=range(10, 90))
    features, earlier = random_features(hook="blocks.1.hook_resid_pre"), earlier_features()
    table = feature_labels(lens, features, earlier=earlier, **SMALL)
    for side, vectors in (("read", features.encoder.T), ("write", features.decoder)):
        rows = table[(table["side"] == side) & (table["token_index"] >= 0)]
        expected = lens.project(vectors, side).numpy()[rows["feature"].to_numpy(), rows["token_index"].to_numpy()]
        np.testing.assert_allclose(rows["score"], expected, rtol=1e-4, atol=1e-5)
    rows = table[table["dictionary"] == "first"]
    decoder = earlier[0].decoder - earlier[0].decoder.mean(0)
    encoder = features.encoder
    if score == "cosine":
        decoder, encoder = (torch.nn.functional.normalize(x, dim=dim) for x, dim in ((decoder, 1), (encoder, 0)))
    expected = (decoder @ encoder).numpy()[rows["feature_index"].to_numpy(), rows["feature"].to_numpy()]
    assert len(rows)
    np.testing.assert_allclose(rows["score"], expected, rtol=1e-4, atol=1e-5)


def test_planted_tokens_are_legible_and_shuffled_encoders_are_not(lens):
    planted = torch.arange(20, 40)
    W_E = lens.weights.W_E
    W_E = W_E[planted] * 32**0.5 / W_E[planted].norm(dim=1, keepdim=True)
    shuffled = torch.stack([row[torch.randperm(32)] for row in W_E])
    options = {"pool": 97, "token_threshold": 4, "raw": True, "k": 1}
    table = feature_labels(lens, Features(torch.randn(20, 32), W_E.T), **options)
    assert table[table["side"] == "read"]["token_index"].tolist() == planted.tolist()
    assert np.mean(legible(table)) > 0.9
    assert np.mean(legible(feature_labels(lens, Features(torch.randn(20, 32), shuffled.T), **options))) < 0.1


def test_planted_outputs_are_the_tokens_of_the_decoder(lens):
    planted = torch.arange(20, 30)
    decoder = torch.linalg.pinv(lens.weights.W_U.T)[:, planted].T
    table = feature_labels(lens, Features(decoder, decoder.T), k=1, pool=97)
    assert table[table["side"] == "write"]["token_index"].tolist() == planted.tolist()


def test_planted_earlier_features_are_named(lens):
    labels = [f"feature {i}" for i in range(90)]
    earlier = [*earlier_features(), random_features(90, name="planted", layer=0, hook="", labels=labels)]
    decoder = earlier[2].decoder[[14, 71]]
    read = 30 * decoder / decoder.norm(dim=1, keepdim=True) ** 2
    table = feature_labels(lens, Features(torch.randn(2, 32), read.T), earlier=earlier, raw=True, k=1, pool=97)
    first = table[table["side"] == "read"]
    assert first["dictionary"].tolist() == ["planted", "planted"]
    assert first["feature_label"].tolist() == ["feature 14", "feature 71"]
    assert first["feature_index"].tolist() == [14, 71]
    assert first["token_index"].tolist() == [-1, -1] and first["token_string"].tolist() == ["", ""]


def test_result_is_independent_of_chunks_and_precision(lens):
    features, earlier = random_features(70), earlier_features()
    expected = feature_labels(lens, features, earlier=earlier, **SMALL)
    with chunk_bytes(2**12):
        pd.testing.assert_frame_equal(feature_labels(lens, features, earlier=earlier, **SMALL), expected)
    half = Features(features.decoder.bfloat16(), features.encoder.bfloat16(), hook=HOOK)
    single = Features(half.decoder.float(), half.encoder.float(), hook=HOOK)
    pd.testing.assert_frame_equal(feature_labels(lens, half, **SMALL), feature_labels(lens, single, **SMALL))


def test_selected_features_have_the_rows_of_all(lens):
    features = random_features()
    table = feature_labels(lens, features, **SMALL)
    selected = feature_labels(lens, features, [3, 8], **SMALL)
    pd.testing.assert_frame_equal(selected, table[table["feature"].isin([3, 8])].reset_index(drop=True))


def test_permuted_features_have_permuted_rows(lens):
    features, order = random_features(), torch.randperm(12)
    permuted = Features(features.decoder[order], features.encoder[:, order], hook=HOOK)
    table = feature_labels(lens, features, **SMALL).set_index(GRAIN)
    of_permuted = feature_labels(lens, permuted, **SMALL)
    of_permuted["feature"] = order.numpy()[of_permuted["feature"]]
    of_permuted = of_permuted.set_index(GRAIN).loc[table.index]
    exact = ["token_index", "is_outlier", "is_legible"]
    pd.testing.assert_frame_equal(of_permuted[exact], table[exact])
    np.testing.assert_allclose(of_permuted["z_score"], table["z_score"], rtol=1e-5)


def test_lowest_scores_are_the_highest_of_the_negative(lens):
    features = random_features()
    negative = Features(-features.decoder, -features.encoder, hook=HOOK)
    lowest = feature_labels(lens, features, largest=False, **SMALL)
    highest = feature_labels(lens, negative, **SMALL)
    for column in ("score", "z_score"):
        np.testing.assert_allclose(lowest[column], -highest[column], rtol=1e-6)
    rest = [column for column in lowest if column not in ("score", "z_score")]
    pd.testing.assert_frame_equal(lowest[rest], highest[rest])


def test_zero_vectors_have_no_outliers(lens):
    features = Features(torch.zeros(3, 32), torch.zeros(32, 3))
    table = feature_labels(lens, features, token_threshold=0, **SMALL)
    assert not table["z_score"].any() and not table["is_outlier"].any() and not table["is_legible"].any()


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_validation_measures_codes_of_single_tokens(lens, kind):
    features = random_features(activation=Activation(kind, bias=torch.randn(12), k=3))
    table = feature_labels(lens, features, earlier=earlier_features(), validate=True, token_threshold=1.5, **SMALL)
    read = table[(table["side"] == "read") & (table["token_index"] >= 0)]
    assert table["activation"].notna().tolist() == table.index.isin(read.index).tolist()
    model, first = lens.model, lens.model.tokenizer.bos_token_id
    for row in read.iloc[::5].itertuples():
        tokens = [[row.token_index]] if first is None else [[first, row.token_index]]
        _, cache = model.run_with_cache(torch.tensor(tokens))
        expected = features.encode(cache[HOOK][0, -1])[row.feature].item()
        assert row.activation == pytest.approx(expected, rel=1e-4, abs=1e-5)
    proposed = feature_labels(lens, features, token_threshold=1.5, **SMALL | {"k": 40})
    proposed = proposed[(proposed["side"] == "read") & proposed["is_outlier"]]
    measured = feature_labels(lens, features, validate=True, **SMALL | {"k": 40}).loc[proposed.index]
    activates = (measured["activation"] > 0).groupby(measured["feature"]).any()
    assert legible(table) == activates.reindex(range(12), fill_value=False).tolist()
    assert 0 < sum(legible(table)) < 12


def test_a_token_that_does_not_activate_makes_no_feature_legible(lens):
    read = lens.weights.W_E[20:30].T
    options = {"raw": True, "pool": 97, "k": 2, "token_threshold": 3}
    hook = "blocks.0.hook_resid_pre"
    silent = Features(read.T, read, hook=hook, activation=Activation(bias=torch.full((10,), -1e6)))
    assert all(legible(feature_labels(lens, silent, **options)))
    assert not any(legible(feature_labels(lens, silent, validate=True, **options)))


def test_bad_input(lens):
    features = random_features()
    with pytest.raises(EmbspaceError, match="reads features, and the function needs tokens"):
        feature_labels(lens.with_features(source=features), features, **SMALL)
    with pytest.raises(EmbspaceError, match="16"):
        feature_labels(lens, random_features(d=16), **SMALL)
    with pytest.raises(EmbspaceError, match="target has no encoder"):
        feature_labels(lens, Features(torch.randn(3, 32), name="target"), **SMALL)
    with pytest.raises(EmbspaceError) as raised:
        feature_labels(
            lens, features, earlier=[random_features(name="later", hook="blocks.1.hook_resid_post")], **SMALL
        )
    assert "target reads at blocks.1.mlp.hook_in, before later writes at blocks.1.hook_resid_post" in str(raised.value)
    twice = [random_features(name="first", layer=0, hook="")] * 2
    with pytest.raises(EmbspaceError) as raised:
        feature_labels(lens, features, earlier=twice, **SMALL)
    assert str(raised.value) == (
        "Two dictionaries have the name 'first', so that the rows of a table would not say which of them is meant. "
        "Pass name= to Features."
    )
    with pytest.raises(EmbspaceError, match="target has no hook point, so its activations cannot be measured"):
        feature_labels(lens, random_features(hook="", activation=Activation()), validate=True, **SMALL)
    with pytest.raises(EmbspaceError, match="no encoder with a non-linearity"):
        feature_labels(lens, features, validate=True, **SMALL)
    with pytest.raises(EmbspaceError, match="k=41 is not an integer from 1 to 40"):
        feature_labels(lens, features, **SMALL | {"k": 41})
    with pytest.raises(EmbspaceError, match="pool=1 "):
        feature_labels(lens, features, pool=1, k=1)
    with pytest.raises(EmbspaceError, match="token_threshold=nan"):
        feature_labels(lens, features, token_threshold=float("nan"))
    with pytest.raises(EmbspaceError, match="feature=12 is out of range"):
        feature_labels(lens, features, 12)
