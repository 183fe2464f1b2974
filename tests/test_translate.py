"""Translation, stitching and differences on models whose answer is known."""

import copy
import doctest
import sys

import numpy as np
import pytest
import torch
import zoo
from laws import permute_neurons, random_rotation, rotate_residual_stream
from tables import check_tidy

from embspace_lens import (
    EmbeddingLens,
    EmbspaceError,
    PooledHead,
    Translation,
    demo,
    difference,
    stitch,
    stitch_sweep,
    translate,
    translate_states,
)


@pytest.fixture(autouse=True)
def a_small_vocabulary_will_do(monkeypatch):
    for name in ("FEWEST", "FEW"):
        monkeypatch.setattr(f"embspace_lens.compare.common_tokens.{name}", 10)


@pytest.fixture(scope="module")
def turned():
    """A llama and a copy whose residual stream is rotated by Q."""
    hf = zoo.ZOO["llama"]()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    other, Q = copy.deepcopy(hf), random_rotation(hf.config.hidden_size)
    rotate_residual_stream(other, Q)
    permute_neurons(other, torch.randperm(hf.config.intermediate_size))
    return EmbeddingLens(zoo.boot(hf), space="embed"), EmbeddingLens(zoo.boot(other), space="embed"), Q


@pytest.mark.parametrize("inverse", ["pinv", "least_squares", "procrustes"])
def test_a_rotation_is_found(turned, inverse):
    a, b, Q = turned
    translation = translate(a, b, inverse=inverse)
    x = torch.randn(5, a.weights.d_model)
    for side in ("write", "read"):
        torch.testing.assert_close(translation(x, side=side), x @ Q, atol=1e-3, rtol=1e-3)
    assert translation.round_trip_error < 1e-3


def test_a_low_rank_translation_loses_something(turned):
    a, b, _ = turned
    assert translate(a, b, rank=4).round_trip_error > 0.1
    assert translate(a, b, rank=4).there.A.shape == (a.weights.d_model, 4)


def test_sentences(turned):
    a, b, _ = turned
    head = PooledHead(a.weights.d_model, ["neg", "pos"])
    translation = translate(a, b)
    with pytest.raises(EmbspaceError, match="is not one of 'pinv'"):
        translate(a, b, inverse="inverse")
    with pytest.raises(EmbspaceError, match="rank=0 is not between"):
        translate(a, b, rank=0)
    with pytest.raises(EmbspaceError, match="have width 3"):
        translation(torch.ones(3))
    with pytest.raises(EmbspaceError, match="keep=9 is not between 0 and"):
        stitch(a, b, keep=9, graft=1, translation=translation, head=head)
    with pytest.raises(EmbspaceError, match="have width 7"):
        stitch(a, b, keep=1, graft=1, translation=translation, head=PooledHead(7, ["neg", "pos"]))
    with pytest.raises(EmbspaceError, match="is not a tuned"):
        difference(a, b)
    with pytest.raises(EmbspaceError, match="accuracy on one class says nothing"):
        stitch_sweep(a, {"b": (b, head)}, ["x", "y"], ["pos", "pos"], graft=1)
    with pytest.raises(EmbspaceError, match="There are no texts"):
        stitch_sweep(a, {"b": (b, head)}, [], [], graft=1)


def test_a_difference_reads_what_changed(tiny):
    before = EmbeddingLens(tiny("gpt2"))
    changed = zoo.boot(zoo.ZOO["gpt2"]())
    with torch.no_grad():
        for one, two in zip(changed.parameters(), before.weights.host.model.parameters()):
            one.copy_(two)
        changed.blocks[1].attn.o.original_component.weight[3] += 1.0
    after = EmbeddingLens(changed)
    change = difference(after, before)
    assert change.weights.W_in(1).abs().max() == 0
    for name in ("W_OV", "W_QK"):
        expected = getattr(after.weights, name)(1).AB - getattr(before.weights, name)(1).AB
        torch.testing.assert_close(getattr(change.weights, name)(1).AB, expected, atol=1e-4, rtol=1e-4)
    check_tidy(
        change.subheads(layer=1, weight="W_O", k=2),
        ["layer", "head", "subhead", "weight", "rank"],
        list(before.subheads(0, k=1)),
    )


# -- each map against its formula in plain numpy


def rows_of(lens):
    return lens.weights.W_E.double().numpy()


@pytest.mark.parametrize("inverse", ["pinv", "least_squares", "ridge", "procrustes", "transpose"])
def test_every_inverse_is_its_formula(tiny, inverse):
    a, b = (EmbeddingLens(tiny(name), space="embed") for name in ("gpt2", "llama"))
    S, T = rows_of(a), rows_of(b)
    if inverse == "pinv":
        K = S.T @ np.linalg.pinv(T).T
    elif inverse == "least_squares":
        K = np.linalg.lstsq(S, T, rcond=None)[0]
    elif inverse == "ridge":
        K = np.linalg.solve(S.T @ S + 0.01 * np.trace(S.T @ S) / S.shape[1] * np.eye(S.shape[1]), S.T @ T)
    else:
        u, _, v = np.linalg.svd(S.T @ T)
        K = u @ v if inverse == "procrustes" else S.T @ T
        K = K * (S @ K * T).sum() / (S @ K * (S @ K)).sum()
    translation = translate(a, b, inverse=inverse)
    np.testing.assert_allclose(translation.there.AB.numpy(), K, atol=2e-4 * np.abs(K).max())
    x = torch.randn(3, 5, S.shape[1])
    np.testing.assert_allclose(translation(x).numpy(), x.numpy() @ K, atol=1e-3)
    back = translate(b, a, inverse=inverse).there.AB.numpy()
    np.testing.assert_allclose(translation.back.AB.numpy(), back, atol=2e-4 * np.abs(back).max())
    np.testing.assert_allclose(translation(x, side="read").numpy(), x.numpy() @ back.T, atol=1e-3)
    lost = np.linalg.norm(S - S @ K @ back) / np.linalg.norm(S)
    assert translation.round_trip_error == pytest.approx(lost, rel=1e-3)


def test_a_probe_gives_the_same_on_a_translated_state(turned):
    a, b, _ = turned
    translation, probe, state = translate(a, b), torch.randn(32), torch.randn(7, 32)
    there = translation.state(state) @ translation(probe, side="read")
    torch.testing.assert_close(there, state @ probe, atol=1e-3, rtol=1e-3)


def test_facts_and_tensors_put_a_translation_together_again(turned):
    translation = translate(*turned[:2], rank=6)
    again = Translation.of(translation.facts(), translation.tensors())
    x = torch.randn(4, 32)
    torch.testing.assert_close(again(x), translation(x), atol=0, rtol=0)
    torch.testing.assert_close(again.state(x), translation.state(x), atol=0, rtol=0)
    assert repr(again) == repr(translation) and again.there.A.shape == (32, 6)


def test_states_go_from_mean_to_mean(turned):
    a, b, Q = turned
    translation = translate_states(a, b, 0, 0, n_rows=40, n_tokens=12, inverse="least_squares")
    mean = translation.mean_source
    torch.testing.assert_close(translation.state(mean), translation.mean_target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(translation.mean_source @ Q, translation.mean_target, atol=1e-3, rtol=1e-3)
    x = mean + 0.1 * torch.randn(5, 32)
    # states of a rotated model are rotated, and no other map takes all of them there
    torch.testing.assert_close(translation.state(x), x @ Q, atol=5e-2, rtol=5e-2)
    assert translation.inverse == "least_squares on states, block 0 → 0" and translation.round_trip_error < 0.05


def test_states_of_strangers_are_refused(turned, tiny):
    a, b, _ = turned
    for layers, sentence in (((2, 0), "layer_source=2 is out of range"), ((0, -2), "layer_target=-2 is out of range")):
        with pytest.raises(EmbspaceError, match=sentence):
            translate_states(a, b, *layers)
    with pytest.raises(EmbspaceError, match="inverse='pinv' is not one of"):
        translate_states(a, b, 0, 0, inverse="pinv")
    with pytest.raises(EmbspaceError, match="make no text"):
        translate_states(a, b, 0, 0, n_rows=0)


def test_vocabularies_that_share_too_little(turned, monkeypatch):
    a, b, _ = turned
    monkeypatch.setattr("embspace_lens.compare.common_tokens.FEWEST", 1000)
    with pytest.raises(EmbspaceError, match="share 97 of the 97 and 97 tokens .* fewer than 1000"):
        translate(a, b)


def test_the_examples_in_docstrings_run():
    names = ["reviews-small-0", "reviews-small-0-sentiment"]
    if not set(names) <= set(demo.names()):
        pytest.skip("the demo models are not in this checkout")
    lens, tuned = map(EmbeddingLens.from_pretrained, names)
    words = sorted({text.strip() for text in lens.vocabulary.array if text.strip().isalpha()})
    known = {"lens": lens, "tuned": tuned, "head": demo.head(names[1]), "model": lens.weights.host.model}
    known |= {"positive": words[:40], "negative": words[50:90], "translate": translate}
    ran = 0
    for module in ("compare.translate", "compare.states", "compare.stitch", "compare.difference", "forward"):
        found = sys.modules[f"embspace_lens.{module}"]
        for test in doctest.DocTestFinder().find(found, globs=vars(found) | known):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, test.name
            ran += result.attempted
    assert ran == 9
