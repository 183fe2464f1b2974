"""Sparse autoencoders, transcoders and factors read by what they hold, whatever their library calls it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from embspace_lens import EmbeddingLens, EmbspaceError, Factors

N, D = 50, 32


def saelens(n=N, dtype=torch.float32):
    """As SAELens holds them: W_enc [d_in, d_sae], W_dec [d_sae, d_out], parameters with gradients."""
    sae = nn.Module()
    sae.W_enc, sae.W_dec = (nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((D, n), (n, D)))
    return sae


def linear():
    """As dictionary_learning holds them: two linear layers."""
    sae = nn.Module()
    sae.encoder, sae.decoder = nn.Linear(D, N), nn.Linear(N, D)
    return sae


def same(df, lens, vectors, **options):
    pd.testing.assert_frame_equal(df, lens.directions(vectors, **options))
    assert df["direction"].nunique() == len(vectors)


@pytest.mark.parametrize("n", [N, D, 7])  # as wide as the stream, and narrower
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saelens(lens, n, dtype):
    sae = saelens(n, dtype)
    same(lens.directions(sae), lens, sae.W_dec.detach())
    same(lens.directions(sae, side="read", k=3), lens, sae.W_enc.detach().T, side="read", k=3)
    same(lens.directions(sae, largest=False), lens, sae.W_dec.detach(), largest=False)


def test_linear_layers(lens):
    sae = linear()
    same(lens.directions(sae), lens, sae.decoder.weight.detach().T)
    same(lens.directions(sae, side="read"), lens, sae.encoder.weight.detach(), side="read")


def test_a_row_a_feature_on_both_sides(lens):
    transcoder = SimpleNamespace(W_enc=torch.randn(N, D), W_dec=torch.randn(N, D))
    same(lens.directions(transcoder, side="read"), lens, transcoder.W_enc, side="read")
    mixed = SimpleNamespace(encoder=nn.Linear(D, N), W_dec=torch.randn(N, D))
    same(lens.directions(mixed, side="read"), lens, mixed.encoder.weight.detach(), side="read")
    same(lens.directions(mixed), lens, mixed.W_dec)


def test_factors(lens):
    factors = Factors(torch.nn.functional.normalize(torch.randn(N, D), dim=1), l1=0.5)
    same(lens.directions(factors), lens, factors.directions)
    same(lens.directions(factors, side="read"), lens, factors.directions, side="read")


def test_names_and_arrays_are_as_before(lens):
    sae = saelens(2)
    assert lens.directions(sae, names=["b", "a"], k=1)["direction"].tolist() == ["a", "b"]
    same(lens.directions(np.eye(3, D)), lens, torch.eye(3, D))


@pytest.mark.parametrize("where", ["metadata", "cfg"])
def test_what_is_trained_inside_a_component_is_refused(lens, where):
    sae = saelens()
    inner = SimpleNamespace(hook_name="blocks.1.attn.hook_z")
    sae.cfg = SimpleNamespace(metadata=inner) if where == "metadata" else inner
    with pytest.raises(
        EmbspaceError, match=r"Module was trained on blocks\.1\.attn\.hook_z, which is no residual vector"
    ):
        lens.directions(sae)
    inner.hook_name = "blocks.1.hook_resid_post"
    assert len(lens.directions(sae, k=1)) == N


def test_mistakes_are_told(lens):
    with pytest.raises(EmbspaceError, match="SimpleNamespace has no W_enc, so side='read' has nothing to read"):
        lens.directions(SimpleNamespace(W_dec=torch.randn(N, D)), side="read")
    with pytest.raises(EmbspaceError, match="side='both' is not one of 'read', 'write'"):
        lens.directions(saelens(), side="both")
    with pytest.raises(EmbspaceError, match="width 31, but zoo's residual stream has d_model=32"):
        lens.directions(SimpleNamespace(W_dec=torch.randn(N, 31)))
    with pytest.raises(EmbspaceError, match="vectors cannot be made a tensor"):
        lens.directions(SimpleNamespace())


def test_a_planted_feature_is_read_as_its_token():
    from embspace_lens import demo

    if "reviews-small-0" not in demo.names():
        pytest.skip("the demo models are not in this checkout")
    lens = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary=demo.frequent_words, score="cosine")
    tokens = [lens.vocabulary.word(word) for word in ("film", "great", "terrible")]
    rows = torch.stack([lens.space.of_token(token, "write") for token in tokens])
    found = lens.directions(SimpleNamespace(W_dec=5 * rows, W_enc=rows.T), k=1)
    assert found["token_string"].tolist() == [" film", " great", " terrible"]
