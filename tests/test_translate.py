"""Translation, stitching and differences on models whose answer is known."""

import copy

import pytest
import torch
import zoo
from laws import permute_neurons, random_rotation, rotate_residual_stream
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError, PooledHead, difference, stitch, stitch_sweep, translate


@pytest.fixture(autouse=True)
def a_small_vocabulary_will_do(monkeypatch):
    for name in ("FEWEST", "FEW"):
        monkeypatch.setattr(f"embspace_lens.compare.shared.{name}", 10)


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
