"""Differences of a fine-tuned model and its base: every reading method, on after − before."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy
from tuned_models import tuned

from embspace_lens import EmbeddingLens, EmbspaceError, difference
from embspace_lens.search.tiles import chunk_bytes

ARCHITECTURES = ["gpt2", "llama", "mixtral", "gemma2"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    torch.manual_seed(1)
    after, before = tuned(request.param)
    return EmbeddingLens(after), EmbeddingLens(before)


def test_weights_are_after_minus_before(pair):
    after, before = pair
    change = difference(after, before)
    a, b = after.weights, before.weights
    for name in ("W_E", "W_U"):
        torch.testing.assert_close(getattr(change.weights, name), getattr(a, name) - getattr(b, name))
    for layer in range(b.n_layers):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            expected = a.directions(name, layer) - b.directions(name, layer)
            torch.testing.assert_close(change.weights.directions(name, layer), expected)
            assert expected.abs().max() > 0
        for name in ("W_OV", "W_QK"):
            dense, circuits = getattr(change.weights, name)(layer), [getattr(w, name)(layer) for w in (a, b)]
            assert dense.A.shape[-1] == circuits[0].A.shape[-1] + circuits[1].A.shape[-1]
            torch.testing.assert_close(dense.AB, circuits[0].AB - circuits[1].AB, atol=1e-4, rtol=1e-4)
        for expert in b.experts(layer):
            for name in ("W_in", "W_out", *(["W_gate"] if b.is_gated(layer) else [])):
                expected = a.directions(name, layer, expert) - b.directions(name, layer, expert)
                torch.testing.assert_close(change.weights.directions(name, layer, expert), expected)


def test_reading_methods_read_the_difference(pair):
    after, before = pair
    change = difference(after, before)
    neurons = change.neurons(layer=0, weight="W_out", k=3)
    check_tidy(
        neurons, ["layer", *before.expert_column, "neuron", "weight", "rank"], list(before.neurons(layer=1, k=1))
    )
    expert = before.weights.experts(0)[0]
    scores = change.weights.directions("W_out", 0, expert) @ before.weights.W_U
    best_scores = neurons.query("rank == 0")["score"].to_numpy()[: len(scores)]
    np.testing.assert_allclose(best_scores, scores.max(dim=1).values.numpy(), rtol=1e-4, atol=1e-5)
    for table, grain in (
        (change.subheads(k=1), ["layer", "head", "subhead", "weight", "rank"]),
        (change.ov(k=2), ["layer", "head", "rank"]),
        (change.qk(k=2), ["layer", "head", "rank"]),
    ):
        check_tidy(table, grain, list(table))
        assert len(table)
    assert len(change.singular(layer=0, weight="W_OV", n_directions=2, k=1))
    assert len(change.search("w5", layer=0, k=2))
    best_pair = change.ov(layer=1, head=0, k=1)["score"].item()
    dense = before.weights.W_E @ change.weights.W_OV(1)[0].AB @ before.weights.W_U
    assert best_pair == pytest.approx(dense.max().item(), rel=1e-4)


def test_components_describe_the_difference(pair):
    after, before = pair
    change = difference(after, before)
    df = change.components().set_index(["layer", "weight"])
    assert df.loc[(-1, "W_E"), "norm"] == pytest.approx(
        (after.weights.W_E - before.weights.W_E).norm().item(), rel=1e-4
    )
    assert df.loc[(-1, "W_U"), "norm"] == pytest.approx(change.weights.W_U.norm().item(), rel=1e-4)
    assert df.loc[(1, "W_V"), "norm"] == pytest.approx(change.weights.W_V(1).norm().item(), rel=1e-4)
    assert list(change.components()) == list(before.components())


def test_difference_of_a_model_and_itself_is_zero(lens):
    change = difference(lens, lens)
    assert set(change.components()["norm"]) == {0.0} and set(change.neurons(k=1)["score"]) == {0.0}


def test_weights_that_were_not_tuned_have_zero_difference():
    after, before = (EmbeddingLens(model) for model in tuned("gpt2", blocks_only=True))
    norms = difference(after, before).components().set_index(["layer", "weight"])["norm"]
    assert norms.loc[(-1, "W_E")].item() == 0 and norms.loc[(0, "W_in")].item() > 0


def test_circuit_of_a_changed_head_is_the_difference(tiny):
    before, changed = EmbeddingLens(tiny("gpt2")), zoo.boot(zoo.ZOO["gpt2"]())
    with torch.no_grad():
        for new, old in zip(changed.parameters(), before.model.parameters()):
            new.copy_(old)
        changed.blocks[1].attn.o.original_component.weight[3] += 1.0
    after = EmbeddingLens(changed)
    change = difference(after, before)
    assert change.weights.W_in(1).abs().max() == 0
    for name in ("W_OV", "W_QK"):
        expected = getattr(after.weights, name)(1).AB - getattr(before.weights, name)(1).AB
        torch.testing.assert_close(getattr(change.weights, name)(1).AB, expected, atol=1e-4, rtol=1e-4)
    grain = ["layer", "head", "subhead", "weight", "rank"]
    check_tidy(change.subheads(layer=1, weight="W_O", k=2), grain, list(before.subheads(0, k=1)))


def tuned_in_one_block(tiny):
    """A lens, and one of the same model with one head of block 1 and one neuron of block 1 changed."""
    before, changed = EmbeddingLens(tiny("llama")), zoo.boot(zoo.ZOO["llama"]())
    with torch.no_grad():
        for new, old in zip(changed.parameters(), before.model.parameters(), strict=True):
            new.copy_(old)
        layer = changed.original_model.model.layers[1]
        layer.self_attn.o_proj.weight[:, 8:16] += 0.5
        layer.mlp.down_proj.weight[:, 3] += 0.5
    return EmbeddingLens(changed), before


def test_unchanged_circuits_have_a_difference_of_exactly_zero(tiny):
    after, before = tuned_in_one_block(tiny)
    change = difference(after, before)
    for name, changed_head in (("W_OV", 1), ("W_QK", None)):
        for layer in (0, 1):
            form = getattr(change.weights, name)(layer)
            for head in range(4):
                is_changed = layer == 1 and head == changed_head
                assert form.A[head].any().item() == form.B[head].any().item() == is_changed
    scores = change.ov(k=3).groupby(["layer", "head"])["score"].apply(lambda s: s.abs().max())
    assert (scores > 0).tolist() == [layer == 1 and head == 1 for layer in (0, 1) for head in range(4)]
    assert change.qk(k=3)["score"].eq(0).all()
    assert change.search(5, weight="W_OV", k=8)["score"].ne(0).sum() == 1


def test_components_and_repr_name_what_is_unchanged(tiny):
    after, before = tuned_in_one_block(tiny)
    change = difference(after, before)
    table = change.components()
    changed = {(1, "W_O"), (1, "W_out")}
    for row in table.itertuples():
        assert ("unchanged" in row.note) == ((row.layer, row.weight) not in changed)
    assert not before.components()["note"].str.contains("unchanged").any()
    assert repr(change).endswith("norms folded; 1 of 2 layers unchanged (0))")
    with torch.no_grad():
        after.model.original_model.model.layers[0].post_attention_layernorm.weight += 1
    assert repr(change).endswith("norms folded)"), "the gain of a norm is folded into W_in"


def test_models_that_are_not_a_base_and_its_fine_tune_raise_an_error(pair, tiny):
    after, before = pair
    other_lens = EmbeddingLens(tiny("gpt2" if before.model.cfg.architecture != "GPT2LMHeadModel" else "llama"))
    with pytest.raises(
        EmbspaceError, match=r"was not fine-tuned from .*: they differ in|: their embeddings differ by \d+%"
    ):
        difference(other_lens, before)
    with pytest.raises(EmbspaceError, match=r"they differ in fold_ln \(False and True\). Give the model from which"):
        difference(EmbeddingLens(after.model, fold_ln=False), before)


def test_embeddings_of_another_seed_raise_an_error_for_every_chunk_size(demo_lens):
    other_lens = EmbeddingLens.from_pretrained("reviews-small-1")
    for budget in (2**24, 8 * 192 * 40):
        with chunk_bytes(budget), pytest.raises(EmbspaceError, match=r"their embeddings differ by \d+% of their norm"):
            difference(EmbeddingLens(demo_lens.model), other_lens)


def test_arguments_that_are_not_lenses_raise_an_error(lens, unchecked_types):
    with pytest.raises(EmbspaceError, match="int is not an EmbeddingLens"):
        difference(lens, 3)
