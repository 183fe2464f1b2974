"""Scores of pairs of tokens: cosines, and pairs that are left out."""

import itertools

import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens

SPACES = list(itertools.product(["circuit", "unembed", "embed"], ["transpose", "pinv"]))


def unit_rows(matrix):
    return torch.nn.functional.normalize(matrix - matrix.mean(0), dim=1)


@pytest.mark.parametrize(("space", "inverse"), SPACES)
@pytest.mark.parametrize("circuit", ["ov", "qk"])
def test_cosines_of_pairs_are_the_form_divided_by_its_largest_singular_value(tiny, circuit, space, inverse):
    """Computed from dense matrices: after the inverse, with unit embeddings on both sides."""
    lens = EmbeddingLens(tiny("llama"), space=space, inverse=inverse, score="cosine")
    w = lens.weights
    E, U = unit_rows(w.W_E.double()), unit_rows(w.W_U.T.double())
    read, write = (U if space == "unembed" else E), (E if space == "embed" else U)
    inverted = torch.linalg.inv(read.T @ read) if inverse == "pinv" else torch.eye(32, dtype=torch.float64)
    for head in range(4):
        if circuit == "ov":
            form = inverted @ w.W_V(1)[head].double() @ w.W_O(1)[head].double()
            expected = read @ form @ write.T
        else:
            form = inverted @ w.W_Q(1)[head].double() @ w.W_K(1)[head].double().T @ inverted
            expected = read @ form @ read.T
        expected /= torch.linalg.matrix_norm(form, 2)
        for largest in (True, False):
            best = expected.flatten().topk(5, largest=largest).values
            scores = getattr(lens, circuit)(1, head, k=5, largest=largest)["score"]
            torch.testing.assert_close(torch.tensor(scores.to_numpy()).double(), best, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inverse", ["transpose", "pinv"])
def test_cosines_of_pairs_do_not_depend_on_the_norm_of_a_head(inverse):
    plain, scaled = zoo.ZOO["llama"](), zoo.ZOO["llama"]()
    with torch.no_grad():
        scaled.model.layers[0].self_attn.q_proj.weight[8:16] *= 30
        scaled.model.layers[0].self_attn.o_proj.weight[:, 8:16] *= 30
    models = [zoo.boot(plain), zoo.boot(scaled)]
    for circuit in ("ov", "qk"):
        tables = {}
        for score in ("cosine", "centered"):
            lenses = [EmbeddingLens(model, score=score, inverse=inverse) for model in models]
            tables[score] = [getattr(lens, circuit)(0, 1) for lens in lenses]
        a, b = tables["cosine"]
        torch.testing.assert_close(torch.tensor(a["score"]), torch.tensor(b["score"]), atol=1e-5, rtol=1e-5)
        assert a["score"].abs().max() <= 1
        a, b = tables["centered"]
        torch.testing.assert_close(30 * torch.tensor(a["score"]), torch.tensor(b["score"]), atol=1e-4, rtol=1e-4)


def test_cosine_of_the_singular_directions_of_a_head_is_one():
    """A head of rank one that maps the embedding of token 11 to that of token 13."""
    model = zoo.ZOO["llama"]()
    with torch.no_grad():
        E, U = (unit_rows(m.weight.double()).float() for m in (model.model.embed_tokens, model.lm_head))
        attention = model.model.layers[0].self_attn
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        attention.v_proj.weight[8:16] = 0
        attention.v_proj.weight[8] = 7 * E[11]
        attention.o_proj.weight[:, 16:24] = 0
        attention.o_proj.weight[:, 16] = 5 * U[13]
    best = EmbeddingLens(zoo.boot(model), score="cosine").ov(0, 2, k=1).iloc[0]
    assert (best["src_token_index"], best["dest_token_index"]) == (11, 13)
    assert best["score"] == pytest.approx(1, abs=1e-6) and best["score"] <= 1


def test_pairs_of_a_head_that_is_zero_score_zero():
    model = zoo.ZOO["llama"]()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, :8] = 0
    table = EmbeddingLens(zoo.boot(model), score="cosine").ov(0, 0, k=3)
    assert table["score"].eq(0).all() and table["src_token_index"].eq(0).all()
