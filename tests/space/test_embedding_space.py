"""Projection of residual vectors onto tokens, and back."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from laws import same_tokens

from embspace_lens import EmbeddingLens


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    side=st.sampled_from(["read", "write"]),
    kind=st.sampled_from(["circuit", "unembed", "embed"]),
    n=st.integers(1, 4),
    leading=st.booleans(),
)
def test_embed_inverts_project_with_pinv(tiny, side, kind, n, leading):
    """The embeddings span the residual stream of a model with RMSNorm."""
    lens = EmbeddingLens(tiny("llama"), inverse="pinv", space=kind)
    x = torch.randn(2, n, 32) if leading else torch.randn(n, 32)
    torch.testing.assert_close(lens.embed(lens.project(x, side), side), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("kind", ["circuit", "unembed", "embed"])
def test_embed_inverts_project_of_centred_vectors_with_a_layernorm(kind, processed):
    """The scores do not depend on the direction that centring removes, so `embed` gives the centred vector."""
    model = zoo.boot(zoo.ZOO["gpt2"]())
    lens = EmbeddingLens(zoo.compat(model) if processed else model, inverse="pinv", space=kind)
    x = torch.randn(5, 32)
    x = x - x.mean(dim=1, keepdim=True)
    for side in ("read", "write"):
        torch.testing.assert_close(lens.embed(lens.project(x, side), side), x, atol=1e-3, rtol=1e-3)
        rows = lens.space.rows(side)[:].double()
        if side == "read":
            expected = x.double() @ torch.linalg.pinv(rows, rtol=1e-5)
            torch.testing.assert_close(lens.project(x, side).double(), expected, atol=1e-3, rtol=1e-3)


def test_embed_does_not_invert_project_with_transpose(tiny):
    """The control for the two tests above."""
    lens, x = EmbeddingLens(tiny("llama")), torch.randn(3, 32)
    assert not torch.allclose(lens.embed(lens.project(x)), x, atol=0.1)


def test_cosine_with_pinv_is_a_cosine(tiny):
    """The cosine of the centred embedding and x (E Eᵀ)⁻¹: computed directly, by `project`, in lists and in a search."""
    lens = EmbeddingLens(tiny("llama"), inverse="pinv", score="cosine")
    raw = lens.weights.W_E.double()
    centred = torch.nn.functional.normalize(raw - raw.mean(0), dim=1)
    x = lens.weights.directions("W_in", 0).double()
    expected = torch.cosine_similarity((x @ torch.linalg.inv(centred.T @ centred))[:, None], centred[None], dim=2)
    torch.testing.assert_close(lens.project(x.float(), "read").double(), expected, atol=1e-4, rtol=1e-4)
    best = lens.neurons(0, weight="W_in", k=1)
    np.testing.assert_allclose(best["score"], expected.max(1).values, atol=1e-4)
    token = int(best["token_index"][3])
    np.testing.assert_allclose(
        lens.search(token, 0, weight="W_in", k=5)["score"], expected[:, token].topk(5).values, atol=1e-4
    )


def test_only_selected_tokens_are_read(tiny):
    chosen = [3, 4, 50, 96]
    masked = EmbeddingLens(tiny("gpt2"), vocabulary=chosen)
    table = masked.neurons(layer=0, neuron=0, k=4)
    assert sorted(table.loc[table["weight"] == "W_in", "token_index"]) == chosen
    projected = masked.project(torch.randn(2, 32))
    assert projected.shape == (2, 97)
    assert torch.isfinite(projected[:, chosen]).all() and torch.isnan(projected).sum() == 2 * (97 - 4)
    x = torch.randn(2, 32)
    torch.testing.assert_close(masked.project(x)[:, chosen], EmbeddingLens(tiny("gpt2")).project(x)[:, chosen])


def test_centred_scores_are_invariant_under_a_shift_of_all_embeddings(tiny):
    model = zoo.ZOO["llama"]()
    shifted = zoo.ZOO["llama"]()
    with torch.no_grad():
        shifted.model.embed_tokens.weight.add_(torch.randn(32) * 5)
    for score in ("centered", "cosine"):
        same_tokens(
            EmbeddingLens(zoo.boot(zoo.ZOO["llama"]()), score=score).qk(k=3),
            EmbeddingLens(zoo.boot(shifted), score=score).qk(k=3),
            tolerance=1e-3,
        )
    plain = EmbeddingLens(zoo.boot(model)).qk(k=3), EmbeddingLens(zoo.boot(shifted)).qk(k=3)
    with pytest.raises(AssertionError):
        same_tokens(*plain)
