"""Properties of all readings, and their scores compared with slow loops."""

import numpy as np
import pytest
import torch
import zoo
from laws import permute_neurons, random_rotation, rotate_residual_stream, same_tokens
from reference import brute_normalized_scores

from embspace_lens import EmbeddingLens
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.parameter_names import CIRCUITS, MLP

READINGS = {
    "neurons": lambda lens, **o: lens.neurons(**o),
    "subheads": lambda lens, **o: lens.subheads(**o),
    "ov": lambda lens, **o: lens.ov(**o),
    "qk": lambda lens, **o: lens.qk(**o),
}
DIRECTION_KEYS = ["layer", "head", "neuron", "subhead", "weight"]


def plain_llama():
    """A Llama whose norm gains are all 1, so that its residual stream has no preferred basis."""
    model = zoo.ZOO["llama"]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    return model


@pytest.mark.parametrize(
    "options", [{}, dict(inverse="pinv"), dict(score="cosine"), dict(score="centered", space="unembed")]
)
@pytest.mark.parametrize("name", READINGS)
def test_tables_are_invariant_under_rotation_of_the_residual_stream(name, options):
    rotated = plain_llama()
    rotate_residual_stream(rotated, random_rotation(32))
    before = READINGS[name](EmbeddingLens(zoo.boot(plain_llama()), **options), k=3)
    after = READINGS[name](EmbeddingLens(zoo.boot(rotated), **options), k=3)
    same_tokens(before, after, tolerance=2e-3 if options.get("inverse") else 1e-4)


def test_rotation_changes_tables_if_a_norm_gain_is_not_one():
    """The control for the test above: the tables differ."""
    rotated = plain_llama()
    rotate_residual_stream(rotated, random_rotation(32))
    rotated.model.layers[0].post_attention_layernorm.weight.data.uniform_(0.2, 2.0)
    before = EmbeddingLens(zoo.boot(plain_llama())).neurons(layer=0, k=3, weight="W_in")
    after = EmbeddingLens(zoo.boot(rotated)).neurons(layer=0, k=3, weight="W_in")
    with pytest.raises(AssertionError):
        same_tokens(before, after)


def test_permuting_neurons_permutes_rows():
    order = torch.randperm(48)
    permuted = plain_llama()
    permute_neurons(permuted, order)
    before = EmbeddingLens(zoo.boot(plain_llama())).neurons(layer=1, k=2)
    after = EmbeddingLens(zoo.boot(permuted)).neurons(layer=1, k=2)
    for new, old in enumerate(order.tolist()):
        columns = ["weight", "rank", "token_index", "score"]
        a = after.loc[after["neuron"] == new, columns].reset_index(drop=True)
        b = before.loc[before["neuron"] == old, columns].reset_index(drop=True)
        assert a[["weight", "rank", "token_index"]].equals(b[["weight", "rank", "token_index"]])
        np.testing.assert_allclose(a["score"], b["score"], rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral", "gptj", "olmo2"])
def test_scores_equal_slow_loops(tiny, family):
    """Every score of every reading is the inner product that its docstring names."""
    lens = EmbeddingLens(tiny(family))
    w = lens.weights
    E, U = w.W_E.double(), w.W_U.double()
    for row in lens.neurons(k=2).itertuples():
        expert = getattr(row, "expert", -1)
        matrix = getattr(w, row.weight)(row.layer, expert).double()
        expected = (
            matrix[row.neuron] @ U[:, row.token_index]
            if row.weight == "W_out"
            else E[row.token_index] @ matrix[:, row.neuron]
        )
        assert row.score == pytest.approx(expected.item(), abs=1e-5)
    for row in lens.subheads(k=1).itertuples():
        matrix = getattr(w, row.weight)(row.layer)[row.head].double()
        expected = (
            matrix[row.subhead] @ U[:, row.token_index]
            if row.weight == "W_O"
            else E[row.token_index] @ matrix[:, row.subhead]
        )
        assert row.score == pytest.approx(expected.item(), abs=1e-5)
    for row in lens.ov(k=3).itertuples():
        form = w.W_V(row.layer)[row.head].double() @ w.W_O(row.layer)[row.head].double()
        assert row.score == pytest.approx((E[row.src_token_index] @ form @ U[:, row.dest_token_index]).item(), abs=1e-5)
    for row in lens.qk(k=3).itertuples():
        if family == "olmo2":  # queries and keys are normalised
            pair = w.W_E[[row.dest_token_index, row.src_token_index]]
            expected = brute_normalized_scores(tiny(family), row.layer, pair, "dot")[row.head, 0, 1]
            assert row.score == pytest.approx(expected.item(), rel=1e-5)
            continue
        form = w.W_Q(row.layer)[row.head].double() @ w.W_K(row.layer)[row.head].double().T
        assert row.score == pytest.approx((E[row.dest_token_index] @ form @ E[row.src_token_index]).item(), abs=1e-5)
    names = [name for name in lens.search(7, k=3)["weight"].unique() if name not in CIRCUITS]
    for row in lens.search(7, weight=names, k=3).itertuples():
        if row.weight in MLP:
            vector = getattr(w, row.weight)(row.layer, getattr(row, "expert", -1))
            vector = vector[row.neuron] if row.weight == "W_out" else vector[:, row.neuron]
        else:
            vector = getattr(w, row.weight)(row.layer)[row.head]
            vector = vector[row.subhead] if row.weight == "W_O" else vector[:, row.subhead]
        side = U[:, 7] if row.weight in ("W_out", "W_O") else E[7]
        assert row.score == pytest.approx((vector.double() @ side).item(), abs=1e-5)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", READINGS)
def test_listed_scores_are_the_best_of_all(lens, name, largest):
    """No token (or pair) outside the table scores better than the last one in it."""
    table = READINGS[name](lens, layer=0, k=5, largest=largest)
    sign = 1 if largest else -1
    E, U, w = lens.weights.W_E.double(), lens.weights.W_U.double(), lens.weights
    for keys, rows_of_group in table.groupby([c for c in DIRECTION_KEYS if c in table], observed=True):
        key = dict(zip([c for c in DIRECTION_KEYS if c in table], keys))
        if name in ("ov", "qk"):
            left, right = (w.W_V(0), w.W_O(0)) if name == "ov" else (w.W_Q(0), w.W_K(0).transpose(1, 2))
            form = left[key["head"]].double() @ right[key["head"]].double()
            all_scores = E @ form @ (U if name == "ov" else E.T)
        else:
            rows = w.directions(key["weight"], 0).double()
            x = rows[key["neuron"]] if name == "neurons" else rows[key["head"], key["subhead"]]
            all_scores = x @ U if key["weight"] in ("W_out", "W_O") else E @ x
        expected = (sign * all_scores).flatten().sort(descending=True).values[:5] * sign
        np.testing.assert_allclose(rows_of_group["score"], expected, atol=1e-5)


def test_lowest_scores_of_a_vector_are_the_highest_of_its_negative(lens):
    x = torch.randn(7, 32)
    low, high = lens.directions(x, k=4, largest=False), lens.directions(-x, k=4)
    assert low["token_index"].equals(high["token_index"])
    np.testing.assert_allclose(low["score"], -high["score"], atol=1e-6)


@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_result_is_independent_of_chunk_size(tiny, score):
    lens = EmbeddingLens(tiny("gpt2"), score=score)
    x = torch.randn(9, 32)
    tables, projected = [lens.neurons(0, k=3), lens.ov(0, 1, k=3)], lens.project(x)
    with chunk_bytes(4 * 32 * 7):
        chunked = EmbeddingLens(tiny("gpt2"), score=score)
        same_tokens(tables[0], chunked.neurons(0, k=3))
        same_tokens(tables[1], chunked.ov(0, 1, k=3))
        torch.testing.assert_close(projected, chunked.project(x), atol=1e-5, rtol=1e-5)


def planted():
    """Neuron 3 of layer 1 reads token 5 and writes token 7; head 2 of layer 0 maps token 11 to 13; all other weights are small."""
    model = plain_llama()
    with torch.no_grad():
        E, U = model.model.embed_tokens.weight, model.lm_head.weight
        mlp = model.model.layers[1].mlp
        mlp.up_proj.weight[3] = 10 * E[5]
        mlp.down_proj.weight[:, 3] = 10 * U[7]
        attn = model.model.layers[0].self_attn
        v, o = attn.v_proj.weight, attn.o_proj.weight  # head 2 uses the second key-value head, rows 8 to 15
        v[8:16] = 0
        v[8] = 10 * E[11]
        o[:, 16:24] = 0
        o[:, 16] = 10 * U[13]
    return EmbeddingLens(zoo.boot(model))


def test_planted_neuron_and_head_are_recovered():
    lens = planted()
    table = lens.neurons(layer=1, neuron=3, k=1).set_index("weight")["token_index"]
    assert table["W_in"] == 5 and table["W_out"] == 7
    pair = lens.ov(layer=0, head=2, k=1).iloc[0]
    assert (pair["src_token_index"], pair["dest_token_index"]) == (11, 13)
    best = lens.search(7, weight="W_out", k=1).iloc[0]
    assert (best["layer"], best["neuron"], best["head"]) == (1, 3, -1)
    singular = lens.singular(layer=0, head=2, n_directions=2, k=1)
    assert singular.loc[singular["component"] == 0, "token_index"].tolist() == [11, 13]
    assert singular.loc[singular["component"] == 1, "singular_value"].max() < 1e-3, "the head has rank one"
