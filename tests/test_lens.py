"""What a reading means: laws, planted truths, slow twins, controls."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from laws import permute_neurons, random_rotation, rotate_residual_stream, same_tokens

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.readings import reader as readings
from embspace_lens.space import embedding_space as space
from embspace_lens.weights.effective import ATTENTION, MLP

READINGS = {
    "neurons": lambda lens, **o: lens.neurons(**o),
    "subheads": lambda lens, **o: lens.subheads(**o),
    "ov": lambda lens, **o: lens.ov(**o),
    "qk": lambda lens, **o: lens.qk(**o),
}
UNIT = ["layer", "head", "neuron", "subhead", "weight"]


def plain_llama():
    """A Llama whose norm gains are all 1, so that its residual stream has no preferred axes."""
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
def test_turning_the_residual_stream_changes_no_table(name, options):
    turned = plain_llama()
    rotate_residual_stream(turned, random_rotation(32))
    before = READINGS[name](EmbeddingLens(zoo.boot(plain_llama()), **options), k=3)
    after = READINGS[name](EmbeddingLens(zoo.boot(turned), **options), k=3)
    same_tokens(before, after, tolerance=2e-3 if options.get("inverse") else 1e-4)


def test_without_its_gain_of_one_the_turned_stream_reads_differently():
    """The control for the law above: it can fail."""
    turned = plain_llama()
    rotate_residual_stream(turned, random_rotation(32))
    turned.model.layers[0].post_attention_layernorm.weight.data.uniform_(0.2, 2.0)
    before = EmbeddingLens(zoo.boot(plain_llama())).neurons(layer=0, k=3, weight="W_in")
    after = EmbeddingLens(zoo.boot(turned)).neurons(layer=0, k=3, weight="W_in")
    with pytest.raises(AssertionError):
        same_tokens(before, after)


def test_permuted_neurons_are_permuted_rows():
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
        expert = getattr(row, "expert", None)
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
        form = w.W_Q(row.layer)[row.head].double() @ w.W_K(row.layer)[row.head].double().T
        assert row.score == pytest.approx((E[row.dest_token_index] @ form @ E[row.src_token_index]).item(), abs=1e-5)
    for row in lens.search(7, k=3).itertuples():
        if row.weight in MLP:
            vector = getattr(w, row.weight)(row.layer, getattr(row, "expert", None))
            vector = vector[row.neuron] if row.weight == "W_out" else vector[:, row.neuron]
        else:
            vector = getattr(w, row.weight)(row.layer)[row.head]
            vector = vector[row.subhead] if row.weight == "W_O" else vector[:, row.subhead]
        side = U[:, 7] if row.weight in ("W_out", "W_O") else E[7]
        assert row.score == pytest.approx((vector.double() @ side).item(), abs=1e-5)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", READINGS)
def test_the_best_are_the_best_of_all(lens, name, largest):
    """No token (or pair) outside the table scores better than the last one in it."""
    table = READINGS[name](lens, layer=0, k=5, largest=largest)
    sign = 1 if largest else -1
    E, U, w = lens.weights.W_E.double(), lens.weights.W_U.double(), lens.weights
    for keys, unit in table.groupby([c for c in UNIT if c in table], observed=True):
        key = dict(zip([c for c in UNIT if c in table], keys))
        if name in ("ov", "qk"):
            left, right = (w.W_V(0), w.W_O(0)) if name == "ov" else (w.W_Q(0), w.W_K(0).transpose(1, 2))
            form = left[key["head"]].double() @ right[key["head"]].double()
            everything = E @ form @ (U if name == "ov" else E.T)
        else:
            rows = w.directions(key["weight"], 0).double()
            x = rows[key["neuron"]] if name == "neurons" else rows[key["head"], key["subhead"]]
            everything = x @ U if key["weight"] in ("W_out", "W_O") else E @ x
        expected = (sign * everything).flatten().sort(descending=True).values[:5] * sign
        np.testing.assert_allclose(unit["score"], expected, atol=1e-5)


def test_lowest_of_a_weight_is_highest_of_its_negative(lens):
    x = torch.randn(7, 32)
    low, high = lens.directions(x, k=4, largest=False), lens.directions(-x, k=4)
    assert low["token_index"].equals(high["token_index"])
    np.testing.assert_allclose(low["score"], -high["score"], atol=1e-6)


@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_tile_size_is_invisible(tiny, monkeypatch, score):
    whole = EmbeddingLens(tiny("gpt2"), score=score)
    x = torch.randn(9, 32)
    tables = [whole.neurons(k=3), whole.ov(k=3)]
    projected = whole.project(x)
    monkeypatch.setattr(space, "TILE", 7)
    tiled = EmbeddingLens(tiny("gpt2"), score=score)
    same_tokens(tables[0], tiled.neurons(k=3))
    same_tokens(tables[1], tiled.ov(k=3))
    torch.testing.assert_close(projected, tiled.project(x), atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    side=st.sampled_from(["read", "write"]),
    kind=st.sampled_from(["circuit", "unembed", "embed"]),
    n=st.integers(1, 4),
    leading=st.booleans(),
)
def test_there_and_back_through_the_exact_inverse(tiny, side, kind, n, leading):
    """embed ∘ project is the identity with inverse="pinv" where the embeddings span the stream (an RMSNorm's do)."""
    lens = EmbeddingLens(tiny("llama"), inverse="pinv", space=kind)
    x = torch.randn(2, n, 32) if leading else torch.randn(n, 32)
    torch.testing.assert_close(lens.embed(lens.project(x, side), side), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("kind", ["circuit", "unembed", "embed"])
def test_the_exact_inverse_behind_a_layernorm(kind, processed):
    """No token reads the direction that centring removes, so the way back ends at the centred vector."""
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


def test_a_cosine_behind_the_exact_inverse_is_a_cosine(tiny):
    """Between the centred embedding and what meets it, x (E Eᵀ)⁻¹: by hand, by `project`, in lists and in a search."""
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


def test_transposed_inverse_is_no_inverse(tiny):
    """The control: with Eᵀ for an inverse, the way back ends elsewhere."""
    lens, x = EmbeddingLens(tiny("llama")), torch.randn(3, 32)
    assert not torch.allclose(lens.embed(lens.project(x)), x, atol=0.1)


def test_a_mask_reads_the_chosen_tokens_and_no_others(tiny):
    chosen = [3, 4, 50, 96]
    masked = EmbeddingLens(tiny("gpt2"), vocabulary=chosen)
    table = masked.neurons(layer=0, neuron=0, k=4)
    assert sorted(table.loc[table["weight"] == "W_in", "token_index"]) == chosen
    projected = masked.project(torch.randn(2, 32))
    assert projected.shape == (2, 97)
    assert torch.isfinite(projected[:, chosen]).all() and torch.isnan(projected).sum() == 2 * (97 - 4)
    x = torch.randn(2, 32)
    torch.testing.assert_close(masked.project(x)[:, chosen], EmbeddingLens(tiny("gpt2")).project(x)[:, chosen])


def test_centred_scores_ignore_a_direction_that_all_tokens_share(tiny):
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


def planted():
    """Neuron 3 of layer 1 listens to token 5 and writes token 7; head 2 of layer 0 copies; nothing else is strong."""
    model = plain_llama()
    with torch.no_grad():
        E, U = model.model.embed_tokens.weight, model.lm_head.weight
        mlp = model.model.layers[1].mlp
        mlp.up_proj.weight[3] = 10 * E[5]
        mlp.down_proj.weight[:, 3] = 10 * U[7]
        attn = model.model.layers[0].self_attn
        v, o = attn.v_proj.weight, attn.o_proj.weight  # head 2 reads the second key/value head's rows 8 to 15
        v[8:16] = 0
        v[8] = 10 * E[11]
        o[:, 16:24] = 0
        o[:, 16] = 10 * U[13]
    return EmbeddingLens(zoo.boot(model))


def test_planted_neuron_and_head_are_found():
    lens = planted()
    table = lens.neurons(layer=1, neuron=3, k=1).set_index("weight")["token_index"]
    assert table["W_in"] == 5 and table["W_out"] == 7
    pair = lens.ov(layer=0, head=2, k=1).iloc[0]
    assert (pair["src_token_index"], pair["dest_token_index"]) == (11, 13)
    found = lens.search(7, weight="W_out", k=1).iloc[0]
    assert (found["layer"], found["neuron"], found["head"]) == (1, 3, -1)
    first = lens.singular(layer=0, head=2, n_directions=2, k=1)
    assert first.loc[first["component"] == 0, "token_index"].tolist() == [11, 13]
    assert first.loc[first["component"] == 1, "singular_value"].max() < 1e-3, "the head has rank one"


def test_singular_directions_rebuild_the_circuit(lens):
    for name in ("W_OV", "W_QK"):
        form = getattr(lens.weights, name)(0)
        dense = form.A[1].double() @ form.B[1].double()
        expected = torch.linalg.svdvals(dense)[:8]
        table = lens.singular(layer=0, head=1, weight=name, n_directions=8, k=1)
        np.testing.assert_allclose(table["singular_value"].unique(), expected, rtol=1e-3)
        assert (table.loc[table["side"] == {"W_OV": "write", "W_QK": "key"}[name], "score"] > 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "gpt_neox"])
def test_compatibility_mode_reads_the_same_tokens(tiny, family):
    """Processing moves gains and means about; what a lens reads stays (scores up to a constant for each vector)."""
    raw, processed = EmbeddingLens(tiny(family)), EmbeddingLens(zoo.compat(zoo.boot(zoo.ZOO[family]())))
    for weight in ("W_in", "W_out"):
        a, b = (each.neurons(layer=1, weight=weight, k=5) for each in (raw, processed))
        assert (a["token_index"] == b["token_index"]).mean() > 0.99
    same_tokens(raw.qk(k=3), processed.qk(k=3), tolerance=1e-3)


def test_raw_reading_is_the_stored_weight(tiny):
    lens = EmbeddingLens(tiny("gpt2"), fold_ln=False)
    block = tiny("gpt2").blocks[0]
    assert torch.equal(lens.weights.W_in(0), block.mlp.W_in.float())
    assert torch.equal(lens.weights.W_U, tiny("gpt2").W_U.float())
    assert lens.components()["folded"].eq("").all()


def test_a_model_that_cannot_run_is_read_and_left_as_it_was(tiny):
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
def test_other_precisions(dtype):
    model = zoo.ZOO["llama"]().to(dtype)
    exact = EmbeddingLens(zoo.boot(zoo.ZOO["llama"]().to(dtype).float()))
    lens = EmbeddingLens(zoo.boot(model))
    same_tokens(lens.neurons(k=3), exact.neurons(k=3), tolerance=1e-2)
    same_tokens(lens.ov(k=3), exact.ov(k=3), tolerance=1e-2)
    assert str(dtype).removeprefix("torch.") in set(lens.components()["dtype"])


def test_grouped_heads_share_their_keys_and_values(tiny):
    lens = EmbeddingLens(tiny("llama"))
    W_V, W_Q = lens.weights.W_V(0), lens.weights.W_Q(0)
    assert W_V.shape[0] == W_Q.shape[0] == 4
    assert torch.equal(W_V[0], W_V[1]) and not torch.equal(W_V[1], W_V[2]) and not torch.equal(W_Q[0], W_Q[1])


def test_repr_is_a_sentence(lens, tiny):
    assert (
        repr(lens)
        == "EmbeddingLens(zoo: 2 layers, 4 heads, 48 neurons, 97 tokens; reads W_E, writes W_U; norms folded)"
    )
    other = EmbeddingLens(tiny("gpt2"), vocabulary=[1, 2], score="cosine", space="embed", inverse="pinv", fold_ln=False)
    assert repr(other).endswith("2 of 97 tokens (given); reads W_E (pinv), writes W_E; cosine; as stored)")
    with pytest.raises(AttributeError):
        lens.name = "other"


def test_every_weight_of_the_card_is_served(lens):
    for name in ATTENTION:
        assert getattr(lens.weights, name)(0).ndim == 3
    for name in ("W_OV", "W_QK"):
        form = getattr(lens.weights, name)(0)
        assert type(form).__name__ == "FactoredMatrix" and tuple(form.shape) == (4, 32, 32)
    assert lens.weights.W_pos.shape[1] == 32


def test_neurons_of_some_experts(moe_lens, tiny, lens):
    every = moe_lens.neurons(k=2)
    for expert in (1, [0, 2], range(2)):
        wanted = [expert] if isinstance(expert, int) else list(expert)
        expected = every[every["expert"].isin(wanted)].reset_index(drop=True)
        pd.testing.assert_frame_equal(moe_lens.neurons(expert=expert, k=2), expected)
    shared = EmbeddingLens(tiny("qwen2_moe"))
    found = shared.neurons(expert=-1, weight="W_out", k=1)
    assert set(found["expert"]) == {-1} and set(found["layer"]) == set(range(shared.weights.n_layers))
    with pytest.raises(EmbspaceError, match=r"expert=3 is out of range: .* has 3 experts in a block \(0 to 2\)\."):
        moe_lens.neurons(expert=3)
    with pytest.raises(EmbspaceError, match=r"expert=0 selects nothing: .* has no mixture of experts\."):
        lens.neurons(expert=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2_moe"])
def test_how_many_layers_are_searched_together_is_invisible(tiny, architecture, monkeypatch):
    """One layer at a time, some together, all together: the same table; embeddings' rows are made once a batch."""
    lens = EmbeddingLens(tiny(architecture), score="cosine")
    d_model = lens.weights.d_model
    searches, tables = [], []
    top = space.EmbeddingSpace.top
    monkeypatch.setattr(
        space.EmbeddingSpace,
        "top",
        lambda self, x, *args, **options: (searches.append(len(x)), top(self, x, *args, **options))[1],
    )
    for size in (0, 4 * d_model * 200, 2**26):
        monkeypatch.setattr(readings, "BATCH_BYTES", size)
        searches.clear()
        tables.append((lens.neurons(k=3), lens.neurons([0, 1], [3, 1], k=2)))
        if size == 2**26:
            assert len(searches) == 2 * len(lens.neurons(0, 0, k=1)["weight"].unique())
    for some in tables[1:]:
        for one, other in zip(tables[0], some, strict=True):
            pd.testing.assert_frame_equal(one, other)
