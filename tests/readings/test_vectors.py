"""Sparse autoencoders, transcoders and factors of several libraries are read by their attributes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError, Factors

N, D = 50, 32


def saelens(n=N, dtype=torch.float32):
    """As in SAELens: W_enc [d_in, d_sae], W_dec [d_sae, d_out], parameters with gradients."""
    sae = nn.Module()
    sae.W_enc, sae.W_dec = (nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((D, n), (n, D)))
    return sae


def linear():
    """As in dictionary_learning: two linear layers."""
    sae = nn.Module()
    sae.encoder, sae.decoder = nn.Linear(D, N), nn.Linear(N, D)
    return sae


def check_directions(table, lens, vectors, **options):
    """The table of an object equals that of its vectors."""
    pd.testing.assert_frame_equal(table, lens.directions(vectors, **options))
    assert table["direction"].nunique() == len(vectors)


@pytest.mark.parametrize("n", [N, D, 7])  # also as many as d_model, and fewer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saelens_objects_are_read_as_their_rows(lens, n, dtype):
    sae = saelens(n, dtype)
    check_directions(lens.directions(sae), lens, sae.W_dec.detach())
    check_directions(lens.directions(sae, side="read", k=3), lens, sae.W_enc.detach().T, side="read", k=3)
    check_directions(lens.directions(sae, largest=False), lens, sae.W_dec.detach(), largest=False)


def test_linear_layers_are_read_as_their_weights(lens):
    sae = linear()
    check_directions(lens.directions(sae), lens, sae.decoder.weight.detach().T)
    check_directions(lens.directions(sae, side="read"), lens, sae.encoder.weight.detach(), side="read")


def test_encoders_with_one_feature_per_row_are_read(lens):
    transcoder = SimpleNamespace(W_enc=torch.randn(N, D), W_dec=torch.randn(N, D))
    check_directions(lens.directions(transcoder, side="read"), lens, transcoder.W_enc, side="read")
    mixed = SimpleNamespace(encoder=nn.Linear(D, N), W_dec=torch.randn(N, D))
    check_directions(lens.directions(mixed, side="read"), lens, mixed.encoder.weight.detach(), side="read")
    check_directions(lens.directions(mixed), lens, mixed.W_dec)


def test_factors_are_read_as_their_directions(lens):
    factors = Factors(torch.nn.functional.normalize(torch.randn(N, D), dim=1), l1=0.5)
    check_directions(lens.directions(factors), lens, factors.directions)
    check_directions(lens.directions(factors, side="read"), lens, factors.directions, side="read")


def test_names_and_arrays_are_accepted(lens):
    sae = saelens(2)
    assert lens.directions(sae, names=["b", "a"], k=1)["direction"].tolist() == ["b", "a"]
    check_directions(lens.directions(np.eye(3, D)), lens, torch.eye(3, D))


@pytest.mark.parametrize("config_field", ["metadata", "cfg"])
def test_dictionaries_of_activations_inside_a_component_raise(lens, config_field):
    sae = saelens()
    inner = SimpleNamespace(hook_name="blocks.1.attn.hook_z")
    sae.cfg = SimpleNamespace(metadata=inner) if config_field == "metadata" else inner
    with pytest.raises(
        EmbspaceError,
        match=r"Module was trained on blocks\.1\.attn\.hook_z, whose activations are not residual vectors\.",
    ):
        lens.directions(sae)
    inner.hook_name = "blocks.1.hook_resid_post"
    assert len(lens.directions(sae, k=1)) == N


def test_invalid_vectors_raise(lens):
    with pytest.raises(EmbspaceError, match="SimpleNamespace has no W_enc, which side='read' reads. Use side='write'"):
        lens.directions(SimpleNamespace(W_dec=torch.randn(N, D)), side="read")
    with unchecked_types(), pytest.raises(EmbspaceError, match="side='both' is not one of 'read', 'write'"):
        lens.directions(saelens(), side="both")
    with pytest.raises(EmbspaceError, match="width 31, but zoo's residual stream has d_model=32"):
        lens.directions(SimpleNamespace(W_dec=torch.randn(N, 31)))
    with pytest.raises(EmbspaceError, match="vectors cannot be made a tensor"):
        lens.directions(SimpleNamespace())


def test_a_planted_feature_is_read_as_its_token():
    lens = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="frequent", score="cosine")
    tokens = [lens.vocabulary.word(word) for word in ("film", "great", "terrible")]
    rows = torch.stack([lens.space.embedding_of(token, "write") for token in tokens])
    table = lens.directions(SimpleNamespace(W_dec=5 * rows, W_enc=rows.T), k=1)
    assert table["token_string"].tolist() == [" film", " great", " terrible"]
