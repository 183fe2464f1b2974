"""The lens: its options, its immutability, and models in every state."""

import copy
import pickle

import pandas as pd
import pytest
import torch
import zoo
from laws import same_tokens

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.weights.parameter_names import ATTENTION


def test_without_folding_weights_are_the_stored_ones(tiny):
    lens = EmbeddingLens(tiny("gpt2"), fold_ln=False)
    block = tiny("gpt2").blocks[0]
    assert torch.equal(lens.weights.W_in(0), block.mlp.W_in.float())
    assert torch.equal(lens.weights.W_U, tiny("gpt2").W_U.float())
    assert lens.components()["folded"].eq("").all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "gpt_neox"])
def test_compatibility_mode_gives_the_same_tokens(tiny, family):
    """Weight processing moves gains and means between weights; scores change by one constant per vector."""
    raw, processed = EmbeddingLens(tiny(family)), EmbeddingLens(zoo.compat(zoo.boot(zoo.ZOO[family]())))
    for weight in ("W_in", "W_out"):
        a, b = (each_lens.neurons(layer=1, weight=weight, k=5) for each_lens in (raw, processed))
        assert (a["token_index"] == b["token_index"]).mean() > 0.99
    same_tokens(raw.qk(k=3), processed.qk(k=3), tolerance=1e-3)


def test_readings_never_run_or_change_the_model(tiny):
    model = zoo.boot(zoo.ZOO["gpt2"]())
    before = {name: p.clone() for name, p in model.named_parameters()}

    def refuse(*_, **__):
        raise RuntimeError("no forward pass")

    for module in model.modules():
        module.forward = refuse
    lens = EmbeddingLens(model)
    for read in (lens.neurons, lens.subheads, lens.ov, lens.qk, lens.singular, lens.components):
        assert len(read())
    lens.search(4), lens.directions(torch.randn(2, 32))
    assert lens.embed(lens.project(torch.randn(2, 32))).shape == (2, 32)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_readings_are_independent_of_the_precision(dtype):
    model = zoo.ZOO["llama"]().to(dtype)
    exact = EmbeddingLens(zoo.boot(zoo.ZOO["llama"]().to(dtype).float()))
    lens = EmbeddingLens(zoo.boot(model))
    same_tokens(lens.neurons(k=3), exact.neurons(k=3), tolerance=1e-2)
    same_tokens(lens.ov(k=3), exact.ov(k=3), tolerance=1e-2)
    assert str(dtype).removeprefix("torch.") in set(lens.components()["dtype"])


def test_heads_of_a_group_share_keys_and_values(tiny):
    lens = EmbeddingLens(tiny("llama"))
    W_V, W_Q = lens.weights.W_V(0), lens.weights.W_Q(0)
    assert W_V.shape[0] == W_Q.shape[0] == 4
    assert torch.equal(W_V[0], W_V[1]) and not torch.equal(W_V[1], W_V[2]) and not torch.equal(W_Q[0], W_Q[1])


def test_repr_describes_the_lens(lens, tiny):
    assert (
        repr(lens)
        == "EmbeddingLens(zoo: 2 layers, 4 heads, 48 neurons, 97 tokens; reads W_E, writes W_U; norms folded)"
    )
    other = EmbeddingLens(tiny("gpt2"), vocabulary=[1, 2], score="cosine", space="embed", inverse="pinv", fold_ln=False)
    assert repr(other).endswith("2 of 97 tokens (given); reads W_E (pinv), writes W_E; cosine; as stored)")


def test_weights_of_the_lens_have_the_expected_shapes(lens):
    for name in ATTENTION:
        assert getattr(lens.weights, name)(0).ndim == 3
    for name in ("W_OV", "W_QK"):
        form = getattr(lens.weights, name)(0)
        assert type(form).__name__ == "FactoredMatrix" and tuple(form.shape) == (4, 32, 32)
    assert lens.weights.W_pos.shape[1] == 32


def test_the_lens_is_immutable(lens):
    for name in ("model", "weights", "space", "vocabulary", "name", "mask"):
        with pytest.raises(AttributeError):
            setattr(lens, name, "other")
        with pytest.raises(AttributeError):
            delattr(lens, name)
    assert lens.name == "zoo"


def test_model_is_the_given_model(tiny):
    assert EmbeddingLens(tiny("gpt2")).model is tiny("gpt2")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_gives_the_same_tables(copied):
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]()), vocabulary=range(40), score="cosine")
    copied_lens = copied(lens)
    assert copied_lens is not lens and repr(copied_lens) == repr(lens)
    assert (copied_lens.model is lens.model) == (copied is copy.copy)
    pd.testing.assert_frame_equal(copied_lens.neurons(k=2), lens.neurons(k=2))


def test_an_embedding_space_can_be_given(tiny):
    lens = EmbeddingLens(tiny("gpt2"), vocabulary=[3, 5, 7], score="cosine")
    other = EmbeddingLens(tiny("gpt2"), space=lens.space)
    pd.testing.assert_frame_equal(other.ov(k=2), lens.ov(k=2))
    assert other.mask == "given"


def test_a_lens_has_the_name_that_is_given(tiny):
    lens = EmbeddingLens(tiny("gpt2"), name="before tuning")
    assert lens.name == lens.weights.name == lens.space.name == "before tuning"
    assert repr(lens).startswith("EmbeddingLens(before tuning: 2 layers")
    assert EmbeddingLens(lens.weights, name="after").name == "after" and lens.name == "before tuning"
    assert EmbeddingLens(tiny("gpt2")).name == "zoo"
    with pytest.raises(EmbspaceError, match="before tuning has 2 layers"):
        lens.neurons(layer=9)


def test_a_pickled_lens_raises_an_error_that_says_what_to_do(lens):
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        with pytest.raises(
            EmbspaceError, match=r"lens of zoo cannot be serialised or sent .*from_pretrained\(name, …\)"
        ):
            pickle.dumps(lens, protocol)


def test_options_of_torch_do_not_change_tables():
    """The default dtype is for new tensors of the user; scores are computed in float32 or more."""
    model = zoo.boot(zoo.ZOO["llama"]())

    def tables():
        lens = EmbeddingLens(model, score="cosine", inverse="pinv", vocabulary="trained")
        vectors = [[0.1 * i for i in range(32)], [1.0] * 32]
        return [
            lens.neurons(k=2),
            lens.subheads(k=2),
            lens.ov(k=2),
            lens.qk(k=2, distance=1, exclude_same="exact"),
            lens.singular(k=2),
            lens.directions(vectors, k=2),
            lens.search(int(lens.space.token_ids[5]), k=2),
            lens.search(vectors[0], k=2),
            lens.read(lens.neurons(k=1), k=1),
            lens.components(),
        ]

    expected = tables()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            actual = tables()
        finally:
            torch.set_default_dtype(torch.float32)
        for table, other in zip(actual, expected, strict=True):
            pd.testing.assert_frame_equal(table, other)
