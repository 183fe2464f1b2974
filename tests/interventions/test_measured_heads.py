"""Measurements of heads on random words: the planted heads, a slow loop over one forward pass, and independence of batches."""

import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, demo, head_measurements
from embspace_lens.forward.repetitions import random_sequences, second_after_first
from embspace_lens.search.tiles import chunk_bytes

ATTENTION = ["attends_previous", "attends_first", "attends_duplicate", "attends_induction"]
COLUMNS = ["layer", "head", "copied", *ATTENTION, "uniform"]


@pytest.fixture(scope="module")
def planted():
    return head_measurements(EmbeddingLens(demo.induction_model())).set_index(["layer", "head"])


def test_planted_heads_are_found(planted):
    assert planted.loc[(0, 1), "attends_previous"] > 0.95
    assert planted.loc[(1, 2), "attends_induction"] > 0.95
    assert 0.45 < planted.loc[(1, 1), "attends_duplicate"] < 0.55, "the other half is on the letter itself"
    assert planted.loc[(1, 2), "copied"] > 0.95
    for column, head in [("attends_previous", (0, 1)), ("attends_induction", (1, 2)), ("copied", (1, 2))]:
        assert planted[column].idxmax() == head
    assert planted["attends_duplicate"].idxmax() == (1, 1)


def test_planted_random_heads_have_the_values_of_chance(planted):
    for head in [(0, 0), (0, 2)]:
        assert (planted.loc[head, ATTENTION] - planted.loc[head, "uniform"]).abs().max() < 0.002
        assert abs(planted.loc[head, "copied"] - 0.5) < 0.05
    mean = sum(1 / (i + 1) for i in range(21, 41)) / 20
    assert planted["uniform"].tolist() == pytest.approx([mean] * 6)


def slow_measurements(lens, length, n_sequences, seed):
    """One text, head and query at a time, from the cache of TransformerLens."""
    words = random_sequences(lens.model, lens.space.token_ids, n_sequences, length, seed)
    batch = second_after_first(lens.model, words, words)
    cache = lens.model.run_with_cache(batch.tokens)[1]
    W_U, ids, start = lens.weights.W_U, lens.space.token_ids, batch.tokens.shape[1] - 2 * length
    rows = {}
    for layer in range(lens.weights.n_layers):
        for head in range(lens.weights.n_heads):
            sums, copied = torch.zeros(4).double(), []
            for text in range(n_sequences):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][text, head]
                z = cache[f"blocks.{layer}.attn.hook_z"][text, :, head]
                for i in range(start, start + 2 * length):
                    if i >= start + length:
                        keys = (i - 1, 0, i - length, i - length + 1)
                        sums += torch.stack([pattern[i, j] for j in keys]).double()
                    attended = start + int(pattern[i, start:].argmax())
                    added = (z[i] @ lens.weights.W_O(layer)[head] @ W_U)[ids].double()
                    own = int((ids == batch.tokens[text, attended]).nonzero()[0, 0])
                    below = [u for u in range(len(ids)) if u != own and added[u] < added[own]]
                    copied.append(len(below) / (len(ids) - 1))
            rows[layer, head] = [sum(copied) / len(copied), *(sums / (n_sequences * length)).tolist()]
    return rows


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gpt_neo", "gemma2", "bloom", "qwen3", "ht_gpt2", "ht_gqa_gated_rms", "native_ln"]
)
@torch.no_grad()
def test_measurements_equal_a_slow_loop(models, name):
    lens = EmbeddingLens(models(name), vocabulary=torch.arange(zoo.D_VOCAB) % 3 != 0)
    table = head_measurements(lens, length=6, n_sequences=3, seed=5)
    check_tidy(table, ["layer", "head"], COLUMNS)
    expected = slow_measurements(lens, 6, 3, 5)
    assert len(table) == len(expected)
    for row in table.itertuples():
        values = [row.copied, *(getattr(row, name) for name in ATTENTION)]
        assert values == pytest.approx(expected[row.layer, row.head], abs=2e-3)


def test_results_are_independent_of_batches_and_selection(models):
    lens = EmbeddingLens(models("gpt2"))
    whole = head_measurements(lens, length=5)
    with chunk_bytes(5000):
        batches = head_measurements(lens, length=5)
    assert (batches - whole).abs().to_numpy().max() < 1e-5
    some = head_measurements(lens, layer=1, head=[2, 0], length=5)
    expected = whole.query("layer == 1 and head in [0, 2]").reset_index(drop=True)
    assert (some - expected).abs().to_numpy().max() < 1e-5


def test_an_empty_selection_keeps_the_columns(models):
    check_tidy(head_measurements(EmbeddingLens(models("gpt2")), head=[]), ["layer", "head"], COLUMNS)


def test_sequences_hold_no_special_token_and_none_twice():
    model = demo.induction_model()
    words = random_sequences(model, torch.arange(27), 8, 20, 0)
    assert all(len(set(row)) == 20 and 0 not in row for row in words.tolist())
    batch = second_after_first(model, words, words)
    assert (batch.tokens[:, 0] == 0).all() and not batch.mask[:, 0].any() and batch.mask[:, 1:].all()
    assert torch.equal(batch.tokens[:, 1:21], batch.tokens[:, 21:])


def test_bidirectional_models_raise(models):
    with pytest.raises(EmbspaceError, match="is bidirectional. Use a causal model"):
        head_measurements(EmbeddingLens(models("bert")))


def test_lengths_that_do_not_fit_raise():
    lens = EmbeddingLens(demo.induction_model())
    with pytest.raises(EmbspaceError, match="length=21 is not an integer from 2 to 20"):
        head_measurements(lens, length=21)
    narrow = EmbeddingLens(demo.induction_model(), vocabulary=torch.arange(27) < 2)
    with pytest.raises(EmbspaceError, match="has room for 20, and the lens reads 1 words"):
        head_measurements(narrow)
