"""Vocabulary channels: the optimiser beside the original's and beside loops, planted channels, and their ablation."""

import math

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import adamw_channel, channel_objective
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.circuits import channels, vocabulary_channels
from embspace_lens.circuits.kurtosis import (
    _ascend,
    _best_angle,
    _by_score,
    centred,
    climb,
    excess_kurtosis,
    long_rows,
    objective,
    stand_out,
)
from embspace_lens.forward.batches import token_batches
from embspace_lens.interventions import channel_ablation as channel_effects

KEYS = ["layer", "neuron", "weight", "channel"]
VALUES = ["similarity", "skew", "kurtosis", "explained", "n_tokens", "objective"]
TEXTS = ["w2 w3 w4 w5 w6 w7", "w9 w8 w7 w6", "w20 w21 w22 w23 w24", "w40 w41 w3", "w50 w9 w50 w9 w50"]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def words():
    return EmbeddingLens(demo.load("reviews-small-0"), vocabulary=demo.frequent_words)


@pytest.fixture(scope="module")
def found(tiny):
    return vocabulary_channels(EmbeddingLens(tiny("gpt2")), n_channels=3, k=4, threshold=2.0)


# -- the optimiser


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 2.0))
def test_the_best_angle_is_that_of_brute_force(seed, weight):
    c, q = (centred(noise(3, 40, seed=seed + i)) for i in range(2))
    along, across = noise(3, seed=seed + 2).abs().clamp(max=1), noise(3, seed=seed + 3).clamp(-1, 1)
    angle, reached = _best_angle(c, q, along, across, weight)
    for i in range(3):
        every = []
        for t in np.linspace(-math.pi, math.pi, 501):
            kurtosis = excess_kurtosis((math.cos(t) * c[i] + math.sin(t) * q[i])[None])
            every.append(float(objective(kurtosis, along[i] * math.cos(t) + across[i] * math.sin(t), weight)))
        at = math.cos(angle[i]) * c[i] + math.sin(angle[i]) * q[i]
        cosine = along[i] * angle[i].cos() + across[i] * angle[i].sin()
        assert float(objective(excess_kurtosis(at[None]), cosine, weight)) == pytest.approx(float(reached[i]), abs=1e-9)
        assert float(reached[i]) >= max(every) - 1e-3


def test_the_slope_is_autograds():
    scores = noise(4, 50).pow(3).requires_grad_()
    objective(excess_kurtosis(centred(scores)), torch.zeros(()), 0.3).sum().backward()
    torch.testing.assert_close(_by_score(centred(scores.detach()), 0.3), scores.grad)


def problem(n=6, d=12, n_tokens=80, seed=0):
    rows, w = noise(n_tokens, d, seed=seed), noise(n, d, seed=seed + 1)
    mask = torch.ones(n, n_tokens, dtype=torch.float64)
    mask[:, :5] = 1e-4
    return rows, w, mask


def values(rows, w, r, mask):
    return [channel_objective(a, b, rows.tolist(), m) for a, b, m in zip(r.tolist(), w.tolist(), mask.tolist())]


@pytest.mark.parametrize("seed", range(2))
def test_reaches_the_originals_objective_on_average(seed):
    rows, w, mask = problem(seed=10 * seed)
    ours = climb(w, mask, lambda x: x @ rows.T, lambda s: s @ rows)
    theirs = torch.stack([adamw_channel(v, rows, m, 300) for v, m in zip(w, mask)])
    assert np.mean(values(rows, w, ours, mask)) >= np.mean(values(rows, w, theirs, mask)) - 1e-3
    assert min(np.subtract(values(rows, w, ours, mask), values(rows, w, w, mask))) > 0


def test_reaches_the_originals_objective_on_neurons_of_a_demo_model(words):
    w, rows = words.weights.W_out(2)[:4], words.space.rows("write")[:]
    mask = torch.ones(len(rows))
    mask[long_rows(rows.norm(dim=1), 0.99)] = 1e-4
    ours = vocabulary_channels(words, 2, range(4), n_channels=1)
    reached = []
    for vector in w[:4]:
        r = adamw_channel(vector, rows, mask, 120)
        c = centred((r @ rows.T)[None] * mask)
        reached.append(objective(excess_kurtosis(c), torch.cosine_similarity(r, vector, dim=0), 0.3).item())
    assert ours.channels["objective"][:4].mean() > np.mean(reached)


def test_the_higher_of_two_ends_stands(words):
    w, rows = torch.nn.functional.normalize(words.weights.W_out(2)[:60], dim=1), words.space.rows("write")[:]
    mask = torch.ones(len(w), len(rows))
    there = (mask, lambda x: x @ rows.T, lambda s: s @ rows)

    def height(u):
        return objective(excess_kurtosis(centred(u @ rows.T)), (u * w).sum(1), 0.3)

    straight, said = _ascend(w, w, *there, 0.3, 1e-5, 100)
    nearer, _ = _ascend(w, _ascend(w, w, *there, 0.1, 1e-5, 10)[0], *there, 0.3, 1e-5, 100)
    torch.testing.assert_close(said, height(straight), atol=1e-3, rtol=0)
    best = torch.maximum(height(straight), height(nearer))
    torch.testing.assert_close(height(climb(w, *there)), best, atol=1e-3, rtol=0)
    assert (best > height(straight) + 0.005).any() and (best > height(nearer) + 0.005).any(), "each is higher for some"


def test_ends_on_a_height():
    rows, w, mask = problem()
    u = climb(w, mask, lambda x: x @ rows.T, lambda s: s @ rows, tolerance=1e-13, max_steps=500)
    r = u.clone().requires_grad_()
    c = centred((r @ rows.T) * mask)
    objective(excess_kurtosis(c), torch.cosine_similarity(r, w, dim=1), 0.3).sum().backward()
    assert (r.grad - (r.grad * u).sum(1, keepdim=True) * u).norm(dim=1).max() < 1e-3
    torch.testing.assert_close(u.norm(dim=1), torch.ones(len(u), dtype=u.dtype))


def test_neurons_do_not_see_each_other_and_zeros_stay_zeros():
    rows, w, mask = problem()
    w[2] = 0
    together = climb(w, mask, lambda x: x @ rows.T, lambda s: s @ rows)
    alone = torch.cat([climb(v[None], m[None], lambda x: x @ rows.T, lambda s: s @ rows) for v, m in zip(w, mask)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert not together[2].any()


def test_what_stands_out_by_loops():
    c = centred(noise(5, 60).pow(3))
    c[4, 0] = 500  # one token in 60 cannot skew it past 10
    marked, skew = stand_out(c, 2.0, one_sided_skew=5.0)
    for row, marks, third in zip(c.tolist(), marked.tolist(), skew.tolist()):
        deviation = math.sqrt(math.fsum(x * x for x in row) / len(row))
        z = [x / deviation for x in row]
        expected = math.fsum(x**3 for x in z) / len(z)
        assert third == pytest.approx(expected)
        sign = math.copysign(1, expected)
        assert marks == [(x * sign if abs(expected) > 5 else abs(x)) > 2 for x in z]
    assert skew[4] > 5
    assert long_rows(torch.arange(200.0), 0.99).tolist() == [198, 199]
    assert long_rows(torch.ones(200), 0.99).tolist() == []


# -- channels


def test_tables_and_directions_belong_together(tiny, found):
    lens = EmbeddingLens(tiny("gpt2"))
    check_tidy(found.channels, KEYS, [*KEYS, *VALUES])
    check_tidy(found.tokens, [*KEYS, "rank"], [*KEYS, "rank", "token_index", "token_string", "score"])
    assert len(found.directions) == len(found.channels) and len(found.tokens) == 4 * len(found.channels)
    assert repr(found) == f"VocabularyChannels(zoo: {len(found.channels)} channels of 96 neurons, W_out)"
    assert found.channels["channel"].max() == 2, "some neuron has all that were asked for"
    w = torch.cat([lens.weights.W_out(n) for n in range(2)])[
        torch.from_numpy((found.channels["layer"] * 48 + found.channels["neuron"]).to_numpy().copy())
    ]
    torch.testing.assert_close(found.directions.norm(dim=1), w.norm(dim=1))
    similarity = torch.cosine_similarity(found.directions, w, dim=1)
    np.testing.assert_allclose(found.channels["similarity"], similarity, atol=1e-5)
    # the lens's own scores, on the side of the heavier tail
    scores = lens.project(found.directions)
    number = np.repeat(np.arange(len(found.channels)), 4)
    expected = scores[torch.from_numpy(number), torch.from_numpy(found.tokens["token_index"].to_numpy().copy())]
    np.testing.assert_allclose(found.tokens["score"], expected, atol=1e-4)


def test_masks_and_values_by_loops(tiny, found):
    """Every neuron's masks are rebuilt from its directions alone, token by token."""
    lens = EmbeddingLens(tiny("gpt2"))
    rows = lens.space.rows("write")[:].double()
    lengths = sorted(rows.norm(dim=1).tolist())
    edge = np.quantile(lengths, 0.99)
    for neuron, channels_of in list(found.channels.loc[found.channels["layer"] == 1].groupby("neuron"))[:12]:
        w = lens.weights.W_out(1)[neuron].double()
        mask = [1e-4 if length > edge else 1.0 for length in rows.norm(dim=1).tolist()]
        basis = []
        for i, row in channels_of.iterrows():
            r = found.directions[i].double()
            value = channel_objective(r.tolist(), w.tolist(), rows.tolist(), mask)
            assert row["objective"] == pytest.approx(value, abs=1e-4)
            scores = np.array([float(r @ e) * m for e, m in zip(rows, mask)])
            z = (scores - scores.mean()) / scores.std()
            assert row["skew"] == pytest.approx((z**3).mean(), abs=1e-3)
            assert row["kurtosis"] == pytest.approx((z**4).mean() - 3, abs=1e-3)
            marked = [t for t, x in enumerate(z) if abs(x) > 2 and mask[t] == 1]
            assert row["n_tokens"] == len(marked)
            order = sorted(range(len(z)), key=lambda t: -z[t] * (1 if (z**3).mean() >= 0 else -1))
            shown = found.tokens.loc[(found.tokens["layer"] == 1) & (found.tokens["neuron"] == neuron)]
            assert shown.loc[shown["channel"] == row["channel"], "token_index"].tolist() == order[:4]
            basis.append(r)
            span = torch.stack(basis).T
            fitted = span @ torch.linalg.lstsq(span, w).solution
            assert row["explained"] == pytest.approx(float(fitted @ fitted / (w @ w)), abs=1e-3)
            for t in marked:
                mask[t] = 0.01


def planted(strength):
    """Of 500 tokens in 64 dimensions, five lie along one direction and ten along another; neuron 0 writes both."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    shape = dict(d_model=64, d_head=16, n_layers=1, n_ctx=8, n_heads=4, d_vocab=500, d_mlp=8, seed=0)
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**shape, act_fn="relu", normalization_type=None))
    one, two = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))[0].T
    U = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    U[10:15] += strength * one
    U[40:50] += strength * two
    U = 8 * torch.nn.functional.normalize(U, dim=1)  # none is longer than others
    lens = EmbeddingLens(model)
    with torch.no_grad():
        lens.weights.host.outer("W_U").copy_(U.T)
        lens.weights.host.mlp(lens.weights.host.blocks[0], "W_out")[0] = one + two
    torch.testing.assert_close(lens.space.rows("write")[:], U)
    return vocabulary_channels(lens, 0, 0, n_channels=2, k=5, kurtosis_weight=2.0)


def test_planted_channels_are_found_one_after_the_other():
    found = planted(20.0)
    first, second = (set(found.tokens.loc[found.tokens["channel"] == i, "token_index"]) for i in (0, 1))
    assert {frozenset(first), frozenset(second)} >= {frozenset(range(10, 15))}
    assert first | second < {*range(10, 15), *range(40, 50)} and not first & second
    assert set(found.channels["n_tokens"]) == {5, 10}
    assert found.channels["explained"].iloc[1] > 0.8
    assert found.channels["similarity"].between(0.5, 0.9).all(), "each is one half of the neuron"


def test_without_a_plant_there_is_no_such_channel():
    found, control = planted(20.0), planted(0.0)
    assert control.channels["kurtosis"].max() < 0.7 * found.channels["kurtosis"].min()
    assert not set(control.tokens["token_index"]) & set(range(10, 15))


def test_batches_cannot_be_seen(tiny, found, monkeypatch):
    monkeypatch.setattr(channels, "SCORE_BYTES", 97 * 4 * 20)
    again = vocabulary_channels(EmbeddingLens(tiny("gpt2")), 0, n_channels=1, k=4, threshold=2.0).channels["objective"]
    before = found.channels.loc[(found.channels["layer"] == 0) & (found.channels["channel"] == 0), "objective"]
    # rounding may lead one of many up another height
    assert len(again) == 48 and np.isclose(again, before, atol=1e-3).mean() > 0.95


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("weight", ["W_in", "W_gate", "W_out"])
def test_gated_mlps_and_mixtures(tiny, family, weight):
    lens = EmbeddingLens(tiny(family), score="cosine" if weight == "W_in" else "dot", inverse="pinv")
    some = vocabulary_channels(lens, 1, [0, 3], weight=weight, n_channels=2, k=3)
    keys = [*KEYS[:1], *(["expert"] if lens.weights.has_experts else []), *KEYS[1:]]
    check_tidy(some.channels, keys, [*keys, *VALUES])
    check_tidy(some.tokens, [*keys, "rank"], [*keys, "rank", "token_index", "token_string", "score"])
    assert set(some.channels["weight"]) == {weight} and some.channels["similarity"].gt(0).all()
    side = "write" if weight == "W_out" else "read"
    scores = lens.project(some.directions, side)[torch.arange(len(some.channels)).repeat_interleave(3)]
    expected = scores.gather(1, torch.tensor(some.tokens["token_index"].tolist())[:, None])[:, 0]
    np.testing.assert_allclose(some.tokens["score"], expected, rtol=1e-3, atol=1e-4)


def test_only_the_lens_tokens_are_read(tiny):
    lens = EmbeddingLens(tiny("gpt2"), vocabulary=range(30, 80))
    assert vocabulary_channels(lens, 0, [1], k=3).tokens["token_index"].between(30, 79).all()


def test_an_empty_choice_keeps_the_columns(lens):
    none = vocabulary_channels(lens, [])
    assert none.channels.columns.tolist() == [*KEYS, *VALUES] and len(none.tokens) == 0
    nor = vocabulary_channels(lens, 0, [], k=2)
    assert nor.channels.columns.tolist() == none.channels.columns.tolist() and len(nor.channels) == len(nor.tokens) == 0
    assert none.directions.shape == (0, 32) and repr(none) == "VocabularyChannels(zoo: 0 channels of 0 neurons, W_out)"


def test_mistakes_are_told(lens):
    for options, message in (
        (dict(layer=9), "layer=9 is out of range: zoo has 2 layers"),
        (dict(neuron=99), "neuron=99 is out of range"),
        (dict(weight="W_O"), "weight='W_O' is not one of 'W_in', 'W_gate', 'W_out'"),
        (dict(weight="W_gate"), "not gated"),
        (dict(k=98), "k=98 is not between 1 and 97"),
        (dict(n_channels=0), "n_channels=0 is not a positive number of channels"),
        (dict(threshold=-1), "threshold=-1 and kurtosis_weight=0.3 must be above zero"),
    ):
        with pytest.raises(EmbspaceError, match=message):
            vocabulary_channels(lens, **options)


# -- their ablation


def edited(family, neuron, layer, direction):
    """The same model with the channel taken out of the neuron's stored weight."""
    model = zoo.boot(zoo.ZOO[family]())
    with torch.no_grad():
        W_out = model.blocks[layer].mlp.W_out
        unit = direction / direction.norm()
        w = W_out[neuron].clone()
        W_out[neuron] = w - (w @ unit) * unit
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "granite"])  # granite scales what its MLPs add
@torch.no_grad()
def test_effects_are_those_of_an_edited_weight(tiny, family):
    read = range(3, 60)
    lens = EmbeddingLens(tiny(family), vocabulary=read)
    some = vocabulary_channels(lens, 0, [5, 7], n_channels=2, k=4, threshold=2.0)
    before = lens.weights.host.model(torch.tensor([[1, 5, 6]]))
    table = channel_effects(lens, some, TEXTS, n_active=3)
    torch.testing.assert_close(lens.weights.host.model(torch.tensor([[1, 5, 6]])), before, rtol=0, atol=0)
    keys = [*KEYS, "sample"]
    check_tidy(table, keys, [*keys, "moved", "low", "high", "n"])
    assert set(table["n"]) == {3}

    model = lens.weights.host.model
    for i, row in some.channels.iterrows():
        changed = edited(family, row["neuron"], row["layer"], some.directions[i])
        best = []
        for text in TEXTS:
            (batch,) = token_batches(model, [text])
            ids = batch.tokens
            _, cache = model.run_with_cache(ids)
            size = cache["blocks.0.mlp.hook_post"][0, :, row["neuron"]].abs() * batch.mask[0]
            best.append((float(size.max()), ids[:, : int(size.argmax()) + 1]))
        of = some.tokens.loc[some.tokens["neuron"] == row["neuron"]]
        own = of.loc[of["channel"] == row["channel"], "token_index"].tolist()
        other = sorted(set(of["token_index"]) - set(own))
        each = {"own": [], "other": []}
        for _, ids in sorted(best, key=lambda one: -one[0])[:3]:
            move = model(ids)[0, -1] - changed(ids)[0, -1]
            move = (move - move[read.start : read.stop].mean()).abs()
            each["own"].append(float(move[own].mean()))
            each["other"].append(float(move[other].mean()) if other else math.nan)
        here = table.loc[(table["neuron"] == row["neuron"]) & (table["channel"] == row["channel"])]
        for sample, moves in each.items():
            line = here.loc[here["sample"] == sample].iloc[0]
            assert line["moved"] == pytest.approx(np.mean(moves), rel=1e-3, abs=1e-5, nan_ok=True)
            half = 1.96 * np.std(moves, ddof=1) / 3**0.5
            assert line["high"] - line["low"] == pytest.approx(2 * half, rel=1e-2, abs=1e-5, nan_ok=True)


def test_a_channel_of_a_demo_model_moves_its_own_tokens(words):
    texts = [
        "A wonderful film with a great cast.",
        "The worst movie that I have ever seen.",
        "She walks to the house of her mother.",
    ]
    some = vocabulary_channels(words, 2, range(4), n_channels=2)
    table = channel_effects(words, some, texts, n_active=3).pivot_table("moved", ["neuron", "channel"], "sample")
    assert (table["own"] > table["random"]).all() and table["own"].mean() > 2 * table["random"].mean()
    assert table["own"].mean() > table["other"].mean()


def test_effects_that_cannot_be_had_are_refused(tiny, lens):
    with pytest.raises(EmbspaceError, match="These are channels of W_in; only those of W_out are written"):
        channel_effects(lens, vocabulary_channels(lens, 0, 1, weight="W_in", k=2), TEXTS)
    some = vocabulary_channels(lens, 0, 1, k=2)
    with pytest.raises(EmbspaceError, match="fewer than two texts"):
        channel_effects(lens, some, ["w2"])
    with pytest.raises(EmbspaceError, match="n_active=1 is not a number of places from 2 on"):
        channel_effects(lens, some, TEXTS, n_active=1)
    for fold_ln in (True, False):
        sandwich = EmbeddingLens(tiny("gemma2"), fold_ln=fold_ln)
        with pytest.raises(EmbspaceError, match="stands behind the MLP"):
            channel_effects(sandwich, vocabulary_channels(sandwich, 0, 1, k=2), TEXTS)
    mixture = EmbeddingLens(tiny("mixtral"))
    with pytest.raises(EmbspaceError, match="no hook point for neurons"):
        channel_effects(mixture, vocabulary_channels(mixture, 0, 1, k=2), TEXTS)
