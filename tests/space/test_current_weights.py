"""Results follow the model's weights as they are now."""

import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens

OPTIONS = [dict(score="centered"), dict(score="cosine"), dict(inverse="pinv"), dict(score="cosine", inverse="pinv")]


def scale_token(model):
    with torch.no_grad():
        model.model.embed_tokens.weight[5] += 3.0
        model.lm_head.weight[7] -= 3.0


def scale_data(model):
    """An edit that torch does not count as a new version of the parameter."""
    model.model.embed_tokens.weight.data[5] += 3.0
    model.lm_head.weight.data[7] -= 3.0


def permute_dimensions(model):
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.flip(1))


def change_gains(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.linspace(0.5, 2, len(parameter)))


def replace_embeddings(model):
    model.model.embed_tokens.weight = torch.nn.Parameter(2 * model.model.embed_tokens.weight.detach().flip(0))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("edit", [scale_token, scale_data, permute_dimensions, change_gains, replace_embeddings])
@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.float32)]
)
def test_a_lens_made_before_an_edit_equals_one_made_after_it(family, dtype, edit, options):
    hf_model = zoo.ZOO[family]().to(dtype)
    model = zoo.boot(hf_model)
    lens = EmbeddingLens(model, **options)

    def tables(lens):
        return [lens.neurons(k=2), lens.ov(0, k=2), lens.qk(1, k=2), lens.search(5, weight=["W_in", "W_out"], k=2)]

    before = tables(lens)
    projected = lens.project(torch.ones(32), "read")
    edit(hf_model)
    after = tables(lens)
    for table, expected in zip(after, tables(EmbeddingLens(model, **options)), strict=True):
        pd.testing.assert_frame_equal(table, expected)
    assert not any(a.equals(b) for a, b in zip(before[:3], after, strict=False))
    fresh = EmbeddingLens(model, **options)
    torch.testing.assert_close(lens.project(torch.ones(32), "read"), fresh.project(torch.ones(32), "read"))
    assert edit is change_gains or not torch.equal(projected, lens.project(torch.ones(32), "read"))


def test_the_mean_and_the_gram_matrix_are_computed_once_if_nothing_changes(tiny, monkeypatch):
    lens = EmbeddingLens(tiny("llama"), score="cosine", inverse="pinv")
    lens.neurons(k=1)
    rows = lens.space.read
    mean, gram = rows._mean, rows.gram
    lens.neurons(k=2)
    assert lens.space.read is rows and rows._mean is mean and rows.gram is gram
