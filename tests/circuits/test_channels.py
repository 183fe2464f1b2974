"""Vocabulary channels: tables compared with slow loops, planted channels, and the paper's optimiser."""

import numpy as np
import pytest
import torch
from reference import adamw_channel, channel_objective
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import vocabulary_channels
from embspace_lens.circuits.kurtosis import centred, excess_kurtosis, long_rows, objective
from embspace_lens.search.tiles import chunk_bytes

KEYS = ["layer", "neuron", "weight", "channel"]
VALUES = ["similarity", "skew", "kurtosis", "explained", "n_tokens", "objective"]


@pytest.fixture(scope="module")
def result(tiny):
    return vocabulary_channels(EmbeddingLens(tiny("gpt2")), n_channels=3, k=4, threshold=2.0)


def test_objective_exceeds_that_of_the_papers_optimiser_on_a_demo_model(frequent_lens):
    w, rows = frequent_lens.weights.W_out(2)[:4], frequent_lens.space.rows("write")[:]
    mask = torch.ones(len(rows))
    mask[long_rows(rows.norm(dim=1), 0.99)] = 1e-4
    result_of_four_neurons = vocabulary_channels(frequent_lens, 2, range(4), n_channels=1)
    adamw_objectives = []
    for vector in w[:4]:
        r = adamw_channel(vector, rows, mask, 120)
        c = centred((r @ rows.T)[None] * mask)
        adamw_objectives.append(objective(excess_kurtosis(c), torch.cosine_similarity(r, vector, dim=0), 0.3).item())
    assert result_of_four_neurons.channels["objective"][:4].mean() > np.mean(adamw_objectives)


def test_tables_and_directions_agree(tiny, result):
    lens = EmbeddingLens(tiny("gpt2"))
    check_tidy(result.channels, KEYS, [*KEYS, *VALUES])
    check_tidy(result.tokens, [*KEYS, "rank"], [*KEYS, "rank", "token_index", "token_string", "score"])
    assert len(result.directions) == len(result.channels) and len(result.tokens) == 4 * len(result.channels)
    assert repr(result) == f"VocabularyChannels(zoo: {len(result.channels)} channels of 96 neurons, W_out)"
    assert result.channels["channel"].max() == 2, "at least one neuron has n_channels channels"
    w = torch.cat([lens.weights.W_out(n) for n in range(2)])[
        torch.from_numpy((result.channels["layer"] * 48 + result.channels["neuron"]).to_numpy().copy())
    ]
    torch.testing.assert_close(result.directions.norm(dim=1), w.norm(dim=1))
    similarity = torch.cosine_similarity(result.directions, w, dim=1)
    np.testing.assert_allclose(result.channels["similarity"], similarity, atol=1e-5)
    # Scores equal those of the lens.
    scores = lens.project(result.directions)
    row = np.repeat(np.arange(len(result.channels)), 4)
    expected = scores[torch.from_numpy(row), torch.from_numpy(result.tokens["token_index"].to_numpy().copy())]
    np.testing.assert_allclose(result.tokens["score"], expected, atol=1e-4)


def test_masks_and_values_equal_slow_loops(tiny, result):
    """The masks of a neuron are computed again from its directions, token by token."""
    lens = EmbeddingLens(tiny("gpt2"))
    rows = lens.space.rows("write")[:].double()
    lengths = sorted(rows.norm(dim=1).tolist())
    limit = np.quantile(lengths, 0.99)
    for neuron, neuron_channels in list(result.channels.loc[result.channels["layer"] == 1].groupby("neuron"))[:12]:
        w = lens.weights.W_out(1)[neuron].double()
        mask = [1e-4 if length > limit else 1.0 for length in rows.norm(dim=1).tolist()]
        basis = []
        for i, row in neuron_channels.iterrows():
            r = result.directions[i].double()
            value = channel_objective(r.tolist(), w.tolist(), rows.tolist(), mask)
            assert row["objective"] == pytest.approx(value, abs=1e-4)
            scores = np.array([float(r @ e) for e in rows])  # without the mask, as in the authors' code
            z = (scores - scores.mean()) / scores.std()
            assert row["skew"] == pytest.approx((z**3).mean(), abs=1e-3)
            assert row["kurtosis"] == pytest.approx((z**4).mean() - 3, abs=1e-3)
            outliers = [t for t, x in enumerate(z) if abs(x) > 2]
            assert row["n_tokens"] == len(outliers)
            order = sorted(range(len(z)), key=lambda t: -z[t] * (1 if (z**3).mean() >= 0 else -1))
            tokens = result.tokens.loc[(result.tokens["layer"] == 1) & (result.tokens["neuron"] == neuron)]
            assert tokens.loc[tokens["channel"] == row["channel"], "token_index"].tolist() == order[:4]
            basis.append(r)
            span = torch.stack(basis).T
            fitted = span @ torch.linalg.lstsq(span, w).solution
            assert row["explained"] == pytest.approx(float(fitted @ fitted / (w @ w)), abs=1e-3)
            for t in outliers:
                mask[t] = 0.01


def test_channels_without_outliers_do_not_end_the_search(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    unmasked = vocabulary_channels(lens, 0, [1, 2], n_channels=3, k=2, threshold=50)
    assert unmasked.channels["channel"].tolist() == [0, 1, 2] * 2 and set(unmasked.channels["n_tokens"]) == {0}
    torch.testing.assert_close(unmasked.directions[0], unmasked.directions[2])


def test_candidates_differ_in_kurtosis_and_objective(frequent_lens):
    options = {"n_channels": 1, "k": 2}
    kurtosis, best = (
        vocabulary_channels(frequent_lens, 2, range(40), candidate=candidate, **options).channels
        for candidate in ("kurtosis", "objective")
    )
    assert (kurtosis["kurtosis"].abs() >= best["kurtosis"].abs() - 1e-3).all()
    assert (kurtosis["objective"] <= best["objective"] + 1e-4).all()
    assert (kurtosis["kurtosis"].abs() > best["kurtosis"].abs() + 1e-3).any()


def planted(strength):
    """Five of 500 tokens lie along one direction and ten along another; neuron 0 writes the sum of both directions."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    shape = dict(d_model=64, d_head=16, n_layers=1, n_ctx=8, n_heads=4, d_vocab=500, d_mlp=8, seed=0)
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**shape, act_fn="relu", normalization_type=None))
    direction_a, direction_b = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))[0].T
    U = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    U[10:15] += strength * direction_a
    U[40:50] += strength * direction_b
    U = 8 * torch.nn.functional.normalize(U, dim=1)  # all of the same length
    lens = EmbeddingLens(model)
    with torch.no_grad():
        lens.weights.stored("W_U").copy_(U.T)
        lens.weights.stored("W_out", 0)[0] = direction_a + direction_b
    torch.testing.assert_close(lens.space.rows("write")[:], U)
    return vocabulary_channels(lens, 0, 0, n_channels=2, k=5, kurtosis_weight=2.0)


def test_planted_channels_are_recovered():
    result = planted(20.0)
    first, second = (set(result.tokens.loc[result.tokens["channel"] == i, "token_index"]) for i in (0, 1))
    assert {frozenset(first), frozenset(second)} >= {frozenset(range(10, 15))}
    assert first | second < {*range(10, 15), *range(40, 50)} and not first & second
    assert set(result.channels["n_tokens"]) == {5, 10}
    assert result.channels["explained"].iloc[1] > 0.8
    assert result.channels["similarity"].between(0.5, 0.9).all(), "each is half of the neuron"


def test_kurtosis_is_small_without_planted_channels():
    result, control = planted(20.0), planted(0.0)
    assert control.channels["kurtosis"].max() < 0.7 * result.channels["kurtosis"].min()
    assert not set(control.tokens["token_index"]) & set(range(10, 15))


def test_objectives_are_independent_of_chunk_size(tiny, result):
    with chunk_bytes(97 * 4 * 10):
        chunked = vocabulary_channels(EmbeddingLens(tiny("gpt2")), 0, n_channels=1, k=4, threshold=2.0)
    objectives = chunked.channels["objective"]
    before = result.channels.loc[(result.channels["layer"] == 0) & (result.channels["channel"] == 0), "objective"]
    # Rounding may lead a few vectors to another local maximum.
    assert len(objectives) == 48 and np.isclose(objectives, before, atol=1e-3).mean() > 0.95


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("weight", ["W_in", "W_gate", "W_out"])
def test_tables_of_gated_mlps_and_mixtures(tiny, family, weight):
    lens = EmbeddingLens(tiny(family), score="cosine" if weight == "W_in" else "dot", inverse="pinv")
    result = vocabulary_channels(lens, 1, [0, 3], weight=weight, n_channels=2, k=3)
    keys = [*KEYS[:1], *(["expert"] if lens.weights.has_experts else []), *KEYS[1:]]
    check_tidy(result.channels, keys, [*keys, *VALUES])
    check_tidy(result.tokens, [*keys, "rank"], [*keys, "rank", "token_index", "token_string", "score"])
    assert set(result.channels["weight"]) == {weight} and result.channels["similarity"].gt(0).all()
    side = "write" if weight == "W_out" else "read"
    scores = lens.project(result.directions, side)[torch.arange(len(result.channels)).repeat_interleave(3)]
    expected = scores.gather(1, torch.tensor(result.tokens["token_index"].tolist())[:, None])[:, 0]
    np.testing.assert_allclose(result.tokens["score"], expected, rtol=1e-3, atol=1e-4)


def test_only_tokens_of_the_lens_are_listed(tiny):
    lens = EmbeddingLens(tiny("gpt2"), vocabulary=range(30, 80))
    assert vocabulary_channels(lens, 0, [1], k=3).tokens["token_index"].between(30, 79).all()


def test_empty_selections_keep_the_columns(lens):
    empty_result = vocabulary_channels(lens, [])
    assert empty_result.channels.columns.tolist() == [*KEYS, *VALUES] and len(empty_result.tokens) == 0
    no_neurons = vocabulary_channels(lens, 0, [], k=2)
    assert no_neurons.channels.columns.tolist() == empty_result.channels.columns.tolist()
    assert len(no_neurons.channels) == len(no_neurons.tokens) == 0
    assert (
        empty_result.directions.shape == (0, 32)
        and repr(empty_result) == "VocabularyChannels(zoo: 0 channels of 0 neurons, W_out)"
    )


def test_invalid_options_raise(lens):
    for options, message in (
        (dict(layer=9), "layer=9 is out of range: zoo has 2 layers"),
        (dict(neuron=99), "neuron=99 is out of range"),
        (dict(weight="W_O"), "weight='W_O' is not one of 'W_in', 'W_gate', 'W_out'"),
        (dict(weight="W_gate"), "not gated"),
        (dict(k=98), "k=98 is not an integer from 1 to 97, the number of tokens"),
        (dict(n_channels=0), "n_channels=0 is not an integer of 1 or more"),
        (dict(threshold=-1), "threshold=-1 is not a finite number above 0"),
        (dict(kurtosis_weight=0), "kurtosis_weight=0 is not a finite number above 0"),
    ):
        with pytest.raises(EmbspaceError, match=message):
            vocabulary_channels(lens, **options)
