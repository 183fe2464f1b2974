"""Search by a token, several tokens or a vector, among directions and circuits."""

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.weights import latent_attention

COLUMNS = ["layer", "head", "neuron", "subhead", "weight", "rank", "token_index", "token_string"]
COLUMNS += ["dest_token_index", "dest_token_string", "src_token_index", "src_token_string", "score", "token_rank"]
OPTIONS = [
    {},
    dict(score="centered"),
    dict(score="cosine", inverse="pinv"),
    dict(vocabulary=range(3, 60), space="embed"),
]


def scores_of_directions(lens, name, token):
    """The score of a token for all directions of a weight, by `project`."""
    side = "write" if name in ("W_O", "W_out") else "read"
    rows = [lens.weights.directions(name, layer).flatten(0, -2) for layer in range(lens.weights.n_layers)]
    return lens.project(torch.cat(rows), side)[:, token]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["W_in", "W_out", "W_V", "W_O"])
def test_score_of_several_tokens_is_the_mean_of_their_scores(tiny, name, options):
    lens, tokens = EmbeddingLens(tiny("llama"), **options), [5, 17, 44]
    expected = torch.stack([scores_of_directions(lens, name, token) for token in tokens]).mean(0)
    for largest in (True, False):
        table = lens.search(tokens, weight=name, k=4, largest=largest)
        np.testing.assert_allclose(table["score"], expected.topk(4, largest=largest).values, atol=1e-5)
        assert table["token_index"].eq(-1).all() and table["token_string"].eq("w5+w17+w44").all()


@pytest.mark.parametrize(
    "tokens", ["w5", 5, ["w5"], [5], (5,), torch.tensor([5]), torch.tensor(5), np.array([5])], ids=repr
)
def test_a_list_of_one_token_is_the_token(lens, tokens):
    table, expected = lens.search(tokens, k=2), lens.search(5, k=2)
    assert table.equals(expected) and table["token_index"].eq(5).all() and table["token_string"].eq("w5").all()


@pytest.mark.parametrize(
    "tokens",
    [
        ("w5", "w7"),
        np.array(["w5", "w7"]),
        pd.Series(["w5", "w7"], [3, 4]),
        pd.Index([5, 7]),
        range(5, 9, 2),
        [torch.tensor(5), np.int32(7)],
        [np.str_("w5"), 7],
    ],
    ids=repr,
)
def test_every_kind_of_sequence_holds_tokens(lens, tokens):
    assert lens.search(tokens, k=1).equals(lens.search([5, 7], k=1))


def test_a_vector_may_hold_whole_numbers(lens):
    mixed, floats = [0, 0.5] * 16, [0.0, 0.5] * 16
    assert lens.search(mixed, k=1).equals(lens.search(floats, k=1))


@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_score_of_a_vector_is_its_inner_product_or_cosine_with_each_direction(tiny, score):
    lens, x = EmbeddingLens(tiny("llama"), score=score), torch.randn(32)
    for vector in (x, x.numpy(), x.tolist(), x.double(), list(x.numpy()), list(x), pd.Series(x.numpy(), x.tolist())):
        table = lens.search(vector, weight=["W_out", "W_Q"], k=3)
        check_tidy(table, ["weight", "rank"], COLUMNS)
        for weight, rows in table.groupby("weight", observed=True):
            directions = torch.cat([lens.weights.directions(weight, layer).flatten(0, -2) for layer in range(2)])
            scores = torch.cosine_similarity(directions, x[None]) if score == "cosine" else directions @ x
            np.testing.assert_allclose(rows["score"], scores.topk(3).values, atol=1e-5)
        assert table["token_index"].eq(-1).all() and table["token_string"].eq("vector").all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_heads_are_scored_by_their_best_pair_with_the_token(tiny, options, largest):
    """Compared with the list of all pairs of each head."""
    lens = EmbeddingLens(tiny("llama"), **options)
    n = lens.space.n_tokens**2
    for weight, read, searched, other in (("W_OV", lens.ov, "dest", "src"), ("W_QK", lens.qk, "src", "dest")):
        pairs = read(k=n, largest=largest)
        best = pairs[pairs[f"{searched}_token_index"] == 9].groupby(["layer", "head"]).first().reset_index()
        best = best.sort_values("score", ascending=not largest, kind="stable").head(5)
        table = lens.search(9, weight=weight, k=5, largest=largest)
        check_tidy(table, ["weight", "rank"], COLUMNS)
        np.testing.assert_allclose(table["score"], best["score"], atol=1e-5)
        for column in ("layer", "head", f"{other}_token_index", f"{other}_token_string"):
            assert table[column].tolist() == best[column].tolist()
        assert table[f"{searched}_token_string"].eq("w9").all() and table["neuron"].eq(-1).all()


def test_heads_are_scored_by_the_mean_over_several_tokens(tiny):
    lens, tokens = EmbeddingLens(tiny("gpt2"), score="cosine"), ["w9", "w30"]
    E, U = lens.space.read[:].double(), lens.space.write[:].double()[[9, 30]].mean(0)
    table = lens.search(tokens, weight="W_OV", k=8)
    for row in table.itertuples():
        form = lens.weights.W_OV(row.layer)[row.head].AB.double()
        scores = E @ form @ U / torch.linalg.matrix_norm(form, 2)
        assert row.score == pytest.approx(scores.max().item(), abs=1e-5) and row.src_token_index == scores.argmax()
        assert (row.dest_token_index, row.dest_token_string) == (-1, "w9+w30")


def test_all_weights_are_searched_by_default(lens, moe_lens):
    names = ["W_in", "W_out", "W_Q", "W_K", "W_V", "W_O", "W_OV", "W_QK"]
    assert lens.search(5, k=1)["weight"].tolist() == names
    assert moe_lens.search([5, 6], k=1)["weight"].tolist() == ["W_in", "W_gate", *names[1:]]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ([], "token is an empty list"),
        ([5, "W5"], "is not a token of this vocabulary"),
        (torch.ones(31), "token has width 31, but zoo's residual stream has d_model=32"),
        ([0, 0.5], "token has width 2, but zoo's residual stream has d_model=32"),
        ({5, 6}, r"token is a set\. Give a token, a list of tokens, or one vector \[d_model\]\."),
        (pd.DataFrame({"token": [5]}), r"token is a DataFrame\. Give a token, a list of tokens, or one vector"),
        (torch.full((32,), torch.nan), "NaN or infinite values in the vector given"),
        (torch.ones(2, 32), r"token has shape \(2, 32\)"),
        ([5, 200], "token=200 is out of range"),
        ([True], "token=True is neither a string nor a token id"),
    ],
)
def test_targets_that_cannot_be_searched_raise_an_error(lens, token, message):
    with pytest.raises(EmbspaceError, match=message):
        lens.search(token)


@pytest.mark.parametrize("largest", [True, False])
def test_the_rank_of_the_token_is_its_place_in_the_components_list(tiny, largest):
    lens = EmbeddingLens(tiny("llama"), score="cosine", vocabulary=range(5, 60))
    found = lens.search(9, weight=["W_in", "W_out", "W_V", "W_O"], k=6, largest=largest)
    lists = lens.read(found, k=lens.space.n_tokens, largest=largest)
    places = lists[lists["token_index"] == 9].sort_values("row")["rank"]
    assert found["token_rank"].tolist() == places.tolist()


def test_the_rank_is_unknown_for_several_tokens_and_for_heads(lens):
    assert lens.search([5, 6], weight="W_out", k=2)["token_rank"].eq(-1).all()
    assert lens.search(5, weight=["W_OV", "W_QK"], k=2)["token_rank"].eq(-1).all()


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_unsupported_weights_are_left_out_with_one_warning(tiny, name, monkeypatch):
    monkeypatch.setattr(latent_attention, "LATENT_ATTENTION", set())  # as for a layout that was not checked
    lens = EmbeddingLens(tiny(name))
    reason = r"the layout of its multi-head latent attention \(\w+\) is unknown"
    message = f"search leaves out W_Q, W_K, W_V, W_O, W_OV, W_QK of zoo, which are not supported: {reason}\\."
    with pytest.warns(UserWarning, match=f"^{message}$") as caught:
        table = lens.search(5, k=2)
    assert len(caught) == 1
    assert table.equals(lens.search(5, weight=["W_in", "W_gate", "W_out"], k=2))
    for weight in ("W_Q", "W_QK"):  # a weight that is asked for raises
        with pytest.raises(EmbspaceError, match=f"is not supported: {reason}"):
            lens.search(5, weight=weight)


def test_a_model_without_a_supported_weight_raises(tiny):
    lens = EmbeddingLens(tiny("jetmoe"))
    message = "^The experts of block 0 of zoo are not supported: the way in which JetMoeMoE stores them is unknown.$"
    for weight in (None, "W_in"):
        with pytest.raises(EmbspaceError, match=message):
            lens.search(5, weight=weight)


def test_a_damaged_weight_is_not_left_out():
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]()))
    with torch.no_grad():
        lens.model.blocks[1].mlp.W_in.fill_(torch.nan)
    with pytest.raises(EmbspaceError, match="NaN or infinite values in W_in of block 1"):
        lens.search(5)
