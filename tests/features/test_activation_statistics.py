"""coactivation and reweighted: the sums of a loop over tokens, resumed runs, and the guard for targets that are never active."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from reference import coactivation_loop
from safetensors.torch import load_file, save_file
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.features import (
    Activation,
    Features,
    activation_statistics,
    activation_sums,
    coactivation,
    reweighted,
    virtual_weights,
)
from embspace_lens.features.activation_sums import ActivationSums
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.runs import collect_activations
from embspace_lens.search.tiles import chunk_bytes

TEXTS = [" ".join(f"w{2 + (7 * i + 3 * j) % 60}" for j in range(3 + i % 9)) for i in range(40)]
PAIRS = [(0, 0), (3, 1), (3, 4), (7, 2), (19, 14)]


def dictionary(n, layer, dtype=torch.float32, **options):
    activation = options.pop("activation", Activation(bias=-torch.rand(n)))
    encoder = torch.randn(zoo.D_MODEL, n).to(dtype)
    place = {"name": f"layer {layer}", "hook": f"blocks.{layer}.hook_resid_post"}
    return Features(torch.randn(n, zoo.D_MODEL).to(dtype), encoder, activation=activation, **(place | options))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return dictionary(20, 0)


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(2)
    return dictionary(15, 1)


def codes_of(model, features, batch_tokens=8192, texts=TEXTS):
    """The activations of all tokens, in the order of the batches."""
    codes = []
    for batch in token_batches(model, texts, batch_tokens=batch_tokens):
        values = collect_activations(model, batch, [features.hook])[features.hook]
        codes.append(features.encode(values[batch.mask].detach()))
    return torch.cat(codes)


def assert_equal(result, expected):
    """The same sums, bit for bit."""
    assert result.n_tokens == expected.n_tokens and torch.equal(result.pair_index, expected.pair_index)
    for name, values in expected.sums.items():
        assert torch.equal(result.sums[name], values), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "activation", [Activation(), Activation("jumprelu", threshold=torch.full((20,), 0.5)), Activation("topk", k=3)]
)
@pytest.mark.parametrize("products_per_pair", [0, 10**6])
def test_statistics_equal_a_loop_over_tokens(model, target, dtype, activation, products_per_pair, monkeypatch):
    monkeypatch.setattr(activation_sums, "PRODUCTS_PER_PAIR", products_per_pair)
    source = dictionary(20, 0, dtype, activation=activation)
    statistics = coactivation(source, model, TEXTS, target=target, pairs=PAIRS)
    expected = coactivation_loop(codes_of(model, source).tolist(), codes_of(model, target).tolist(), PAIRS)
    assert statistics.n_tokens == sum(len(text.split()) for text in TEXTS)
    for frame, rows in ((statistics.source_features, "source"), (statistics.target_features, "target")):
        check_tidy(frame, ["feature_index"], ["feature_index", "feature_label", "frequency", "mean_activation", "n"])
        actual = frame[["frequency", "mean_activation"]].to_numpy()
        np.testing.assert_allclose(actual, np.array(expected[rows]), rtol=1e-5, atol=1e-7)
    pairs = statistics.pairs.set_index(["src_feature_index", "dest_feature_index"])
    for pair, values in expected["pairs"].items():
        actual = pairs.loc[pair, ["joint_frequency", "mean_product", "mean_where_active"]].tolist()
        np.testing.assert_allclose(np.array(actual, dtype=float), values, rtol=1e-5, atol=1e-7)
    assert statistics.sums["pair_active"].sum() > 0, "some pairs are active together"


def test_table_of_pairs_is_tidy(model, source, target):
    statistics = coactivation(source, model, TEXTS, target=target, pairs=[*PAIRS, PAIRS[2]])
    labels = ["dest_feature_index", "dest_feature_label", "src_feature_index", "src_feature_label"]
    values = ["joint_frequency", "mean_product", "mean_where_active", "n"]
    table = statistics.pairs
    check_tidy(table.sort_values(labels[::2], ignore_index=True), labels[::2], [*labels, *values])
    assert len(table) == len(PAIRS), "each pair once"


@pytest.mark.parametrize("budget", [2**10, 2**16])
def test_statistics_are_independent_of_chunks_and_batches(model, source, target, budget):
    expected = coactivation(source, model, TEXTS, target=target, pairs=PAIRS)
    with chunk_bytes(budget):
        chunked = coactivation(source, model, TEXTS, target=target, pairs=PAIRS, batch_tokens=60)
    for name, values in expected.sums.items():
        torch.testing.assert_close(chunked.sums[name], values, rtol=1e-5, atol=1e-4)


def test_target_is_the_source_by_default(model, source):
    once, twice = (
        coactivation(source, model, TEXTS, pairs=PAIRS[:1]),
        coactivation(source, model, TEXTS, target=replace(source), pairs=PAIRS[:1]),
    )
    assert_equal(once, twice)
    assert repr(once) == f"Coactivation(layer 0: {once.n_tokens} tokens, 1 pairs)"
    assert once.target_features.equals(once.source_features)
    a = codes_of(model, source)[:, 0].double()
    assert once.mean("pair_product")[0] == pytest.approx(a.square().mean().item())
    assert once.mean("pair_gated")[0] == pytest.approx(once.mean("source_sum")[0])


def test_features_without_pairs_have_statistics(model, source):
    for pairs in (None, [], np.empty((0, 2), dtype=int)):
        statistics = coactivation(source, model, TEXTS, pairs=pairs)
        assert len(statistics.pairs) == 0 and len(statistics.source_features) == 20


# -- resuming


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_run_resumes_to_the_same_statistics(model, source, target, tmp_path, monkeypatch, after):
    options = {"target": target, "pairs": PAIRS, "batch_tokens": 60}
    expected = coactivation(source, model, TEXTS, **options)
    path, runs, run = tmp_path / "sums.safetensors", [], collect_activations

    def interrupt(*args):
        if len(runs) == after:
            raise KeyboardInterrupt
        runs.append(1)
        return run(*args)

    with monkeypatch.context() as m:
        m.setattr(activation_statistics, "collect_activations", interrupt)
        with pytest.raises(
            KeyboardInterrupt, match=r"^Interrupted\. The checkpoint is .*The same call resumes from it\.$"
        ):
            coactivation(source, model, TEXTS, **options, checkpoint=path)
    monkeypatch.setattr(activation_statistics, "collect_activations", lambda *args: runs.append(1) or run(*args))
    assert_equal(coactivation(source, model, TEXTS, **options, checkpoint=path), expected)
    n_batches = len(list(token_batches(model, TEXTS, batch_tokens=60)))
    assert len(runs) == n_batches > after
    assert_equal(coactivation(source, model, TEXTS, **options, checkpoint=path), expected)
    assert len(runs) == n_batches, "nothing is computed again"


@pytest.mark.parametrize("after", [0, 2])
def test_half_added_batch_is_not_saved(model, source, target, tmp_path, monkeypatch, after):
    """A second Ctrl-C interrupts an addition; the checkpoint before it is used."""
    options = {"target": target, "pairs": PAIRS, "batch_tokens": 60}
    expected = coactivation(source, model, TEXTS, **options)
    added, add_pairs, path = [], ActivationSums._add_pairs, tmp_path / "sums.safetensors"

    def interrupt(self, a, b):
        if len(added) == after:
            raise KeyboardInterrupt  # the sums of features contain the batch, those of pairs do not
        added.append(1)
        add_pairs(self, a, b)

    monkeypatch.setattr(activation_sums, "SECONDS", -1)
    with monkeypatch.context() as m:
        m.setattr(ActivationSums, "_add_pairs", interrupt)
        message = (
            "^Interrupted. The checkpoint"
            if after
            else "^Interrupted before the first checkpoint. The same call starts"
        )
        with pytest.raises(KeyboardInterrupt, match=message):
            coactivation(source, model, TEXTS, **options, checkpoint=path)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            coactivation(source, model, TEXTS, **options)
    assert_equal(coactivation(source, model, TEXTS, **options, checkpoint=path), expected)


def test_checkpoints_are_written_between_batches(model, source, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_sums, "SECONDS", -1)
    saves = []
    save = activation_sums.SumsCheckpoint.save
    monkeypatch.setattr(activation_sums.SumsCheckpoint, "save", lambda self: saves.append(self._is_saved) or save(self))
    coactivation(source, model, TEXTS, batch_tokens=60, checkpoint=tmp_path / "sums.safetensors")
    assert saves.count(False) == len(list(token_batches(model, TEXTS, batch_tokens=60)))


def test_checkpoint_of_another_run_raises(model, source, target, tmp_path):
    path = tmp_path / "sums.safetensors"
    coactivation(source, model, TEXTS, pairs=PAIRS[:1], batch_tokens=60, checkpoint=path)
    for options, different in (
        ({"pairs": PAIRS[1:2], "batch_tokens": 60}, "pairs"),
        ({"pairs": PAIRS[:1], "batch_tokens": 50}, "batch_tokens"),
        ({"pairs": PAIRS[:1], "batch_tokens": 60, "target": target}, "target"),
    ):
        with pytest.raises(EmbspaceError) as caught:
            coactivation(source, model, TEXTS, **options, checkpoint=path)
        assert str(caught.value) == (
            f"{path} is the checkpoint of another coactivation; these differ: {different}. Pass another file, or delete "
            "this one."
        )
    for texts in (TEXTS[:5], TEXTS[::-1], ["w9 " + text for text in TEXTS]):
        with pytest.raises(EmbspaceError) as caught:
            coactivation(source, model, texts, pairs=PAIRS[:1], batch_tokens=60, checkpoint=path)
        assert str(caught.value) == (
            f"{path} is the checkpoint of a coactivation of other texts. Pass another file, or delete this one."
        )


@pytest.mark.parametrize("contents", [b"", b"not safetensors", "other tensors"])
def test_damaged_checkpoint_raises(model, source, tmp_path, contents):
    path = tmp_path / "sums.safetensors"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(EmbspaceError, match="is not a checkpoint of coactivation, or is damaged"):
        coactivation(source, model, TEXTS, checkpoint=path)
    if not isinstance(contents, bytes):
        assert set(load_file(path)) == {"a"}


# -- reweighted


def test_reweighted_follows_the_formulas(model, source, target):
    table = virtual_weights(source, target, k=50)
    statistics = coactivation(source, model, TEXTS, target=target, pairs=table)
    weighted = reweighted(table, statistics)
    check_tidy(weighted, ["circuit", "layer", "head", "rank"], [*table.columns, "era", "twera"])
    assert weighted[table.columns].equals(table), "the weight stays as it is"
    a, b = codes_of(model, source).double().numpy(), codes_of(model, target).double().numpy()
    for row in weighted.itertuples():
        x, y = a[:, row.src_feature_index], b[:, row.dest_feature_index]
        assert row.era == pytest.approx((x * (y > 0)).mean() * row.score, rel=1e-5)
        if y.any():
            assert row.twera == pytest.approx((x * y).mean() / y.mean() * row.score, rel=1e-5)
    assert weighted["era"].any() and weighted["twera"].any()


def test_constant_activations_give_known_attributions(model):
    """Both features are always active with 2 and 3: era and twera are 2 V."""
    ones = [
        Features(
            torch.ones(1, zoo.D_MODEL), torch.zeros(zoo.D_MODEL, 1), hook="blocks.0.hook_resid_post", activation=each
        )
        for each in (Activation(bias=torch.tensor([2.0])), Activation(bias=torch.tensor([3.0])))
    ]
    table = pd.DataFrame({"src_feature_index": [0], "dest_feature_index": [0], "score": [5.0]})
    weighted = reweighted(table, coactivation(ones[0], model, TEXTS, target=ones[1], pairs=table))
    assert weighted[["score", "era", "twera"]].values.tolist() == [[5, 10, 10]]


def test_target_that_is_never_active_has_no_weighted_mean(model, source, target):
    silent = replace(target, activation=Activation(bias=torch.full((15,), -1e6)))
    table = virtual_weights(source, silent, k=10)
    weighted = reweighted(table, coactivation(source, model, TEXTS, target=silent, pairs=table))
    assert (weighted["era"] == 0).all() and weighted["twera"].isna().all()


def test_pairs_that_were_not_measured_raise(model, source, target):
    table = virtual_weights(source, target, k=10)
    for pairs, n_missing in ((table.head(4), 6), (None, 10)):
        with pytest.raises(EmbspaceError) as caught:
            reweighted(table, coactivation(source, model, TEXTS, target=target, pairs=pairs))
        assert str(caught.value) == (
            f"The statistics lack {n_missing} of the 10 pairs. Pass the same table to coactivation(…, pairs=)."
        )
    assert reweighted(table.head(0), coactivation(source, model, TEXTS, target=target)).columns[-1] == "twera"


def test_pairs_through_heads_raise(lens, model, source, target):
    table = virtual_weights(source, target, lens=lens, circuit="ov", k=2)
    with pytest.raises(EmbspaceError) as caught:
        reweighted(table, coactivation(source, model, TEXTS, target=target, pairs=table))
    assert str(caught.value) == (
        "Pairs of circuit='ov' pass through attention, which connects different positions; era and twera are defined for "
        "circuit='direct' alone. Pass direct pairs."
    )


# -- bad input


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([0, 1], "pairs has the shape [2]: pass a table of virtual_weights, or indices of source and target features, [n, 2]."),
        ([[0.5, 1.0]], "pairs has the shape [1, 2]: pass a table"),
        ([[0, 20]], "feature=20 is out of range: layer 0 has 20 features (0 to 19)."),
        ([[-1, 2]], "feature=-1 is out of range: layer 0 has 20 features (0 to 19)."),
        (pd.DataFrame({"src_feature_index": [0]}), "pairs has no column 'dest_feature_index'. Pass a table of virtual_weights."),
    ],
)  # fmt: skip
def test_bad_pairs_raise(model, source, pairs, message):
    with pytest.raises(EmbspaceError) as caught:
        coactivation(source, model, TEXTS, pairs=pairs)
    assert str(caught.value).startswith(message)


def test_dictionaries_without_a_place_or_a_non_linearity_raise(model, source):
    with pytest.raises(EmbspaceError) as caught:
        coactivation(replace(source, hook=""), model, TEXTS)
    assert str(caught.value) == (
        "layer 0 has no hook point, so its activations cannot be measured. Pass hook= to Features, such as "
        "'blocks.3.hook_resid_post'."
    )
    with pytest.raises(EmbspaceError, match="^layer 0 has no encoder with a non-linearity"):
        coactivation(replace(source, activation=None), model, TEXTS)
    with pytest.raises(EmbspaceError, match="width"):
        coactivation(replace(source, hook="blocks.0.mlp.hook_post"), model, TEXTS)
    with pytest.raises(EmbspaceError):
        coactivation(source, model, [""])
