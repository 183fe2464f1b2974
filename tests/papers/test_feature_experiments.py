"""The experiments on dictionaries of features: their parts, compared with slow loops and with planted features."""

import numpy as np
import pytest
import torch

from embspace_lens import EmbeddingLens, Features
from embspace_lens.features import Activation
from embspace_lens.forward.batches import token_batches
from embspace_lens.papers.feature_contexts import NO_TOKEN, commonest, top_contexts
from embspace_lens.papers.feature_legibility import (
    Labels,
    agreement_row,
    best_labels,
    legibility_rows,
    shuffle_encoder,
)
from embspace_lens.papers.virtual_weight_effects import (
    CODES,
    INPUTS,
    correlation_row,
    correlations,
    effects,
)

SOURCE = {"layer": 0, "hook": "blocks.0.mlp.hook_in", "output_hook": "blocks.0.hook_mlp_out"}
TARGET = {"layer": 1, "hook": "blocks.1.mlp.hook_in", "output_hook": "blocks.1.hook_mlp_out"}
TEXTS = ["w2 w3 w4 w5", "w7 w2", "w9 w3 w3 w8 w2 w4"]


def dictionary(n, bias=-1.0, **place):
    return Features(torch.randn(n, 32), torch.randn(32, n), activation=Activation(bias=torch.full((n,), bias)), **place)


def row_of(model, text):
    """The tokens of a text as the model reads it, and which of them are no special tokens."""
    (batch,) = token_batches(model, [text])
    return batch.tokens[0].tolist(), batch.mask[0].tolist()


@torch.no_grad()
def test_top_contexts_equal_a_loop(lens):
    features, n = dictionary(6, **SOURCE), 4
    contexts = top_contexts(lens.model, features, TEXTS, n)
    positions = []
    for text in TEXTS:
        ids, is_own = row_of(lens.model, text)
        _, cache = lens.model.run_with_cache(torch.tensor([ids]))
        codes = features.encode(cache[features.hook][0])
        for pos, token in enumerate(ids):
            if is_own[pos]:
                after = ids[pos + 1] if pos + 1 < len(ids) else NO_TOKEN
                positions.append((codes[pos].tolist(), token, after))
    for feature in range(6):
        best = sorted(positions, key=lambda row: -row[0][feature])[:n]
        active = [row for row in best if row[0][feature] > 0]
        assert contexts.code[feature, : len(active)].tolist() == pytest.approx(
            [row[0][feature] for row in active], rel=1e-4
        )
        assert contexts.token[feature, : len(active)].tolist() == [row[1] for row in active]
        assert contexts.next_token[feature, : len(active)].tolist() == [row[2] for row in active]
    assert (contexts.code > 0).any() and not (contexts.code > 0).all()


def test_commonest_ignores_inactive_positions_and_ends():
    ids = torch.tensor([[5, 5, 3, 3, 3], [4, 6, 6, NO_TOKEN, NO_TOKEN], [1, 1, 1, 1, 1]])
    code = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    assert commonest(ids, code, 2).tolist() == [5, 6, NO_TOKEN]


def test_shuffled_encoders_have_the_same_entries_in_another_order():
    features = dictionary(5, **SOURCE)
    shuffled = shuffle_encoder(features, torch.Generator().manual_seed(0))
    assert not torch.equal(shuffled.encoder, features.encoder)
    torch.testing.assert_close(shuffled.encoder.sort(dim=0).values, features.encoder.sort(dim=0).values)
    torch.testing.assert_close(shuffled.decoder, features.decoder)
    assert shuffled.hook == features.hook and shuffled.activation is features.activation


def test_planted_features_agree_with_their_contexts(lens):
    """Features of the embedding that read one token each: labels from weights and from contexts are this token."""
    planted = torch.arange(10, 16)
    W_E = lens.weights.W_E
    directions = torch.linalg.pinv(W_E.T[:, :32].T)[:, :6].T  # the first 32 tokens are independent
    features = Features(directions, directions.T, hook="hook_embed", activation=Activation())
    labels = best_labels(EmbeddingLens(lens.model, vocabulary=range(32)), features)
    assert labels.read.tolist() == list(range(6))
    row = agreement_row("planted", labels.read, np.arange(6), 0)
    assert row["value"] == 1 and row["control"] == 0 and row["n"] == 6
    assert len(planted)


def test_agreement_is_compared_with_all_other_pairs():
    tokens, labels = np.array([1, 2, 2, 7, 9]), np.array([1, 2, 3, 2, NO_TOKEN])
    row = agreement_row("", tokens, labels, 0)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    assert row["value"] == 0.5 and row["n"] == 4
    assert row["control"] == pytest.approx(np.mean([tokens[i] == labels[j] for i, j in pairs]))
    assert "value" not in agreement_row("", tokens[-2:], labels[-2:], 0)


def test_legibility_has_two_thresholds():
    rng = np.random.default_rng(0)

    def of(z):
        return Labels(np.zeros(len(z), dtype=int), np.zeros(len(z), dtype=int), z, z > 4.5)

    rows = legibility_rows("x", of(np.full(10, 6.0)), [of(rng.normal(3, 1, 100))])
    assert [row["value"] for row in rows] == [1, 1]
    assert rows[0]["control"] < 0.2 and rows[1]["control"] == 0.05


@torch.no_grad()
def test_effects_equal_a_loop(lens):
    source, target = dictionary(5, bias=1.0, **SOURCE), dictionary(7, bias=1.0, **TARGET)
    chosen = np.array([3, 0])
    changes, n_positions = effects(lens.model, source, target, TEXTS, chosen)
    for i, feature in enumerate(chosen):
        totals, n = {kind: torch.zeros(7) for kind in changes}, 0
        for text in TEXTS:
            ids, is_own = row_of(lens.model, text)
            _, cache = lens.model.run_with_cache(torch.tensor([ids]))
            code = source.encode(cache[source.hook][0])[:, feature] * torch.tensor(is_own)
            removed = code[:, None] * source.decoder[feature]
            after = {}
            lens.model.run_with_hooks(
                torch.tensor([ids]),
                fwd_hooks=[
                    (source.output_hook, lambda value, hook, removed=removed: value - removed),
                    (target.hook, lambda value, hook, after=after: after.update(x=value)),
                ],
            )
            for pos in code.nonzero()[:, 0]:
                x, y = cache[target.hook][0, pos], after["x"][0, pos]
                totals[CODES] += target.encode(x) - target.encode(y)
                totals[INPUTS] += (x - y) @ target.encoder
                n += 1
        assert n_positions[i] == n > 0
        for kind, change in changes.items():
            np.testing.assert_allclose(change[i], totals[kind] / n, rtol=1e-3, atol=1e-4)


def test_correlations_are_those_of_numpy():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 30))
    a[3] = 1.0
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a[:3], b)]
    np.testing.assert_allclose(correlations(a, b), [*expected, 0])


@pytest.mark.parametrize("is_ranked", [False, True])
def test_a_planted_correlation_stands_above_its_control(is_ranked):
    rng = np.random.default_rng(0)
    change = rng.normal(size=(20, 40))
    row = correlation_row("", change + rng.normal(size=change.shape), change, is_ranked, 0)
    assert 0.5 < row["low"] < row["value"] < row["high"] < 0.9
    assert abs(row["control"]) < 0.05 and row["n"] == 20
