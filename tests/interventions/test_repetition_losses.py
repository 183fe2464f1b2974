"""The loss on repetitions: TransformerLens's own loss, the planted circuit with and without its heads, and controls."""

import math

import pytest
import torch
from tables import check_tidy

from embspace_lens import (
    EmbeddingLens,
    EmbspaceError,
    ablation_hooks,
    demo,
    head_statistics,
    repetition_gain,
    repetition_loss,
)
from embspace_lens.forward.repetitions import random_sequences, second_after_first
from embspace_lens.search.tiles import chunk_bytes

GRAIN, COLUMNS = ["sample", "example", "half", "pos"], ["sample", "example", "half", "pos", "loss"]


@pytest.fixture(scope="module")
def planted():
    return EmbeddingLens(demo.induction_model())


@pytest.mark.parametrize("name", ["gpt2", "llama", "ht_gpt2"])
def test_losses_are_those_of_transformer_lens(models, name):
    lens = EmbeddingLens(models(name))
    table = repetition_loss(lens, length=5, n_sequences=3, seed=4)
    check_tidy(table, GRAIN, COLUMNS)
    words = random_sequences(lens.model, lens.space.token_ids, 3, 5, 4)
    tokens = second_after_first(lens.model, words, words).tokens
    with torch.no_grad():
        expected = lens.model(tokens, return_type="loss", loss_per_token=True)
    repeated = table[table["sample"] == "repeated"].pivot(index="example", columns="pos", values="loss")
    assert repeated.columns.tolist() == list(range(1, tokens.shape[1]))
    assert torch.allclose(torch.tensor(repeated.to_numpy()).double(), expected.double(), atol=1e-4)


def test_samples_differ_only_in_the_first_half(planted):
    table = repetition_loss(planted, length=8, n_sequences=4)
    assert table.groupby(["sample", "example"])["half"].sum().eq(8).all()
    assert set(table["sample"]) == {"other", "repeated", "shuffled"}
    assert table.query("half == 1")["pos"].min() == 9, "the start, eight letters, and then the second half"


def test_the_planted_circuit_predicts_the_repetition(planted):
    losses = repetition_loss(planted)
    second = losses.query("half == 1 and pos > 21").groupby("sample")["loss"].mean()
    assert second["repeated"] < 0.1 and second.drop("repeated").min() > math.log(26)
    gain = repetition_gain(losses)
    check_tidy(gain, ["sample"], ["sample", "gain", "low", "high", "n"])
    assert gain["sample"].tolist() == ["other", "shuffled"] and set(gain["n"]) == {32}
    assert (gain["low"] > 1).all() and (gain["low"] < gain["gain"]).all() and (gain["gain"] < gain["high"]).all()
    assert gain.set_index("sample").loc["other", "gain"] == pytest.approx(
        second["other"] - second["repeated"], abs=1e-4
    )


def test_ablation_of_either_head_of_the_circuit_removes_the_gain(planted):
    heads = head_statistics(planted)

    def loss_without(layer, head):
        hooks = ablation_hooks(heads.query(f"layer == {layer} and head == {head}"), model=planted.model)
        table = repetition_loss(planted, hooks=hooks, n_sequences=8)
        return table.query("sample == 'repeated' and pos > 21")["loss"].mean()

    losses = {(layer, head): loss_without(layer, head) for layer in range(2) for head in range(3)}
    assert {key for key, loss in losses.items() if loss > 3} == {(0, 1), (1, 2)}
    assert max(loss for key, loss in losses.items() if key not in {(0, 1), (1, 2)}) < 1


def test_a_random_model_has_no_gain(models):
    gain = repetition_gain(repetition_loss(EmbeddingLens(models("gpt2")), n_sequences=64))
    assert (gain["low"] < 0.1).all() and (gain["high"] > -0.1).all()


def test_results_are_independent_of_batches(models):
    lens = EmbeddingLens(models("gpt2"))
    whole = repetition_loss(lens, length=5, n_sequences=7)
    with chunk_bytes(100):
        batches = repetition_loss(lens, length=5, n_sequences=7)
    assert whole.drop(columns="loss").equals(batches.drop(columns="loss"))
    assert (whole["loss"] - batches["loss"]).abs().max() < 1e-5


def test_incomplete_tables_raise(planted):
    losses = repetition_loss(planted, length=4, n_sequences=2)
    with pytest.raises(EmbspaceError, match="needs rows of the samples 'shuffled'. Pass the whole table"):
        repetition_gain(losses.query("sample != 'shuffled'"))
    with pytest.raises(EmbspaceError, match="'half'"):
        repetition_gain(losses.drop(columns="half"))
    with pytest.raises(EmbspaceError, match="n_sequences=1 is not an integer of 2 or more"):
        repetition_loss(planted, n_sequences=1)
