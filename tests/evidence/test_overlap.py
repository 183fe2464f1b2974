"""The papers' measurements: slow twins, planted answers, controls that find nothing, and every mistake as a sentence."""

import doctest
import inspect

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import brute_jaccard, brute_keep_k, brute_recall
from tables import check_tidy

import embspace_lens
from embspace_lens import EmbeddingLens, EmbspaceError, evidence
from embspace_lens.evidence import overlap as related
from embspace_lens.evidence import recall
from embspace_lens.evidence import token_lists as lists
from embspace_lens.evidence import truncation as kept
from embspace_lens.weights.effective import side_of

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "w9 w3 w11 w12 w2 w14 w15", "w16"]


def scores_of(lens, weight, layer):
    x = torch.cat(list(related.directions(lens.weights, weight, layer)))
    return lens.project(x, side_of(weight))


def of(frame, column, **keys):
    """The one value of a column in the row with these keys."""
    rows = frame.loc[np.logical_and.reduce([frame[name] == value for name, value in keys.items()])]
    assert len(rows) == 1
    return rows[column].item()


# -- lists of tokens


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**20))
def test_nobody_is_their_own_partner_and_everybody_is_somebodys(n, seed):
    order = lists.partners(n, seed)
    assert sorted(order.tolist()) == list(range(n))
    assert n == 1 or (order != torch.arange(n)).all()


@pytest.mark.parametrize("k", [1, 20, 60, 97])
def test_strongest_tokens_are_those_of_largest_absolute_score(lens, k):
    x = torch.cat([torch.randn(6, 32), torch.zeros(1, 32)])
    found = lists.strongest_tokens(lens.space, x, "write", k)
    sizes = lens.project(x).abs()
    for ids, size in zip(found.tolist(), sizes):
        assert len(set(ids)) == k and ids == sorted(ids)
        assert size[ids].sort().values.allclose(size.topk(k).values.flip(0))


@pytest.mark.parametrize("tile", [1, 7, 2**22])
def test_jaccard_of_rows_whatever_the_tile(monkeypatch, tile):
    monkeypatch.setattr(lists, "TILE", tile)
    a, b = (torch.stack([torch.randperm(30)[:8].sort().values for _ in range(11)]).int() for _ in "ab")
    slow = [len(set(x) & set(y)) / len(set(x) | set(y)) for x, y in zip(a.tolist(), b.tolist())]
    assert lists.jaccard(a, b).tolist() == pytest.approx(slow)
    assert (lists.jaccard(a, a) == 1).all()


def test_the_bootstrap_interval_is_that_of_the_mean():
    x = torch.randn(400, dtype=torch.float64)
    low, high = lists.bootstrap_interval(x)
    assert low <= x.mean() <= high
    assert (high - low) == pytest.approx(2 * 1.96 * x.std().item() / 20, rel=0.1)


def test_groups_are_resampled_as_groups():
    """100 texts of 50 equal values each tell no more than 100 values."""
    x = torch.randn(100, dtype=torch.float64)
    one, many = lists.bootstrap_interval(x), lists.bootstrap_interval(50 * x, torch.full((100,), 50))
    assert many == pytest.approx(one)
    assert np.isnan(lists.bootstrap_interval(x[:1])).all()


# -- related pairs

PAIRS_OF = {
    "gpt2": ["W_Q-W_K", "W_V-W_O", "W_in-W_out"],
    "llama": ["W_Q-W_K", "W_V-W_O", "W_gate-W_out", "W_in-W_out"],
    "mixtral": ["W_Q-W_K", "W_V-W_O", "W_gate-W_out", "W_in-W_out"],
}
COLUMNS = ["layer", "pair", "sample", "jaccard", "low", "high", "n"]


@pytest.mark.parametrize("name", PAIRS_OF)
def test_related_pairs_as_the_slow_twin_has_them(tiny, name):
    lens = EmbeddingLens(tiny(name), score="centered", vocabulary=range(5, 90))
    frame = evidence.related_pairs(lens, k=9)
    check_tidy(frame, ["layer", "pair", "sample"], COLUMNS)
    assert frame["pair"].unique().tolist() == PAIRS_OF[name]
    for (layer, pair), rows in frame.groupby(["layer", "pair"]):
        a, b = (scores_of(lens, weight, layer)[:, 5:90] for weight in pair.split("-"))
        assert rows["n"].tolist() == [len(a)] * 2
        slow = [np.mean(brute_jaccard(a, b, 9))]
        slow.append(np.mean([np.mean(brute_jaccard(a, b[lists.partners(len(b), seed)], 9)) for seed in range(2)]))
        two = evidence.related_pairs(lens, k=9, layer=layer, pairs=pair, seeds=2)
        assert two["jaccard"].tolist() == pytest.approx(slow, rel=1e-5)
        assert rows["jaccard"].iloc[0] == pytest.approx(slow[0], rel=1e-5)
    assert (frame["low"] <= frame["jaccard"]).all() and (frame["jaccard"] <= frame["high"]).all()
    assert len(rows) and frame["n"].max() == {"gpt2": 48, "llama": 48, "mixtral": 144}[name]


def test_keys_equal_to_their_values_share_everything_and_strangers_what_chance_gives():
    hf = zoo.ZOO["gpt2"]()
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.copy_(-block.mlp.c_fc.weight.T)  # of either sign: sizes count
    lens = EmbeddingLens(zoo.boot(hf), fold_ln=False, space="embed", score="centered")
    frame = evidence.related_pairs(lens, k=20)
    paired, shuffled = (frame[(frame["pair"] == "W_in-W_out") & (frame["sample"] == s)] for s in ("paired", "shuffled"))
    assert (paired[["jaccard", "low", "high"]] == 1).all(axis=None)
    shared = 20 * 20 / 97
    assert np.abs(shuffled["jaccard"] / (shared / (40 - shared)) - 1).max() < 0.25
    others = frame[frame["pair"] != "W_in-W_out"]
    one, other = (others[others["sample"] == s]["jaccard"].to_numpy() for s in ("paired", "shuffled"))
    assert np.abs(one / other - 1).max() < 0.4, "fresh weights are no pairs"


def test_a_model_without_attention_or_mlp_has_the_other_pairs(tiny):
    bridge = zoo.NATIVE["native_attn_only"]()
    lens = EmbeddingLens(bridge, tokenizer=zoo.tokenizer())
    assert evidence.related_pairs(lens, k=5)["pair"].unique().tolist() == ["W_Q-W_K", "W_V-W_O"]
    with pytest.raises(EmbspaceError, match="has no MLP|have no MLP"):
        evidence.related_pairs(lens, k=5, pairs="W_in-W_out")
    with pytest.raises(EmbspaceError, match="no attention|no MLP"):
        evidence.related_pairs(EmbeddingLens(tiny("mamba")), k=5)


def test_layers_and_pairs_are_selected(lens):
    frame = evidence.related_pairs(lens, k=5, layer=[1], pairs=["W_V-W_O", "W_in-W_out"])
    assert frame["layer"].unique().tolist() == [1] and len(frame) == 4
    assert evidence.related_pairs(lens, k=5, layer=slice(0, 1)).equals(evidence.related_pairs(lens, k=5, layer=0))
    whole = evidence.related_pairs(lens, k=97, layer=0)
    assert (whole["jaccard"] == 1).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 98}, "k=98 is not between 1 and 97, the number of tokens that this lens reads."),
        ({"pairs": "W_in-Wout", "k": 5}, "pairs='W_in-Wout' is not one of .* Did you mean 'W_in-W_out'?"),
        ({"pairs": "W_gate-W_out", "k": 5}, "is not gated: it has no W_gate"),
        ({"layer": 7, "k": 5}, "layer=7 is out of range"),
        ({"seeds": 1, "k": 5}, "seeds=1 is not a number of shuffles that has an interval. Give 2 or more"),
    ],
)
def test_what_related_pairs_refuses(lens, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        evidence.related_pairs(lens, **options)


# -- recall of hidden states

RECALL = ["target", "layer", "weight", "sample", "recall", "low", "high", "n"]


def run_alone(lens, text):
    """One text without padding: what passed the hook points, of its own tokens alone."""
    model = lens.weights.host.model
    own = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(text))
    return {name: value[0, -own:] for name, value in cache.items() if value.ndim >= 3 and len(value[0]) >= own}


@pytest.mark.parametrize(("name", "options"), [("gpt2", {}), ("llama", {"score": "cosine", "space": "unembed"})])
def test_recall_as_the_slow_twin_has_it(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    frame = evidence.hidden_state_recall(lens, TEXTS, k=6, n_active=3, batch_tokens=12)
    check_tidy(frame, ["target", "layer", "weight", "sample"], RECALL)
    assert (frame["n"] == 15).all()
    caches = [run_alone(lens, text) for text in TEXTS]
    weights = ["W_in", "W_out", "W_V", "W_O"] + (["W_gate"] if name == "llama" else [])
    assert set(frame["weight"]) == set(weights)
    for weight in weights:
        hook = "mlp.hook_post" if weight in ("W_in", "W_gate", "W_out") else "attn.hook_z"
        for layer in (0, 1):
            for target, of_layer in (("layer", layer), ("final", 1)):
                state = torch.cat([cache[f"blocks.{of_layer}.hook_resid_post"] for cache in caches])
                active = torch.cat([cache[f"blocks.{layer}.{hook}"].flatten(1) for cache in caches])
                slow = brute_recall(lens.project(state), active, scores_of(lens, weight, layer), 6, 3)
                found = of(frame, "recall", target=target, layer=layer, weight=weight, sample="aligned")
                assert found == pytest.approx(np.mean(slow), rel=1e-5)
    aligned = frame[frame["sample"] == "aligned"]
    assert (aligned["low"] <= aligned["recall"]).all() and (aligned["recall"] <= aligned["high"]).all()


def speaking_model():
    """One block whose neuron i hears token i alone, and then says a word of its own, loud."""
    hf = zoo._build("gpt2", "GPT2Config", "GPT2LMHeadModel", zoo.GPT | dict(n_inner=zoo.D_MLP, n_layer=1))
    block = hf.transformer.h[0]
    with torch.no_grad():
        hf.transformer.wpe.weight.zero_()
        for parameter in (block.attn.c_proj.weight, block.attn.c_proj.bias, block.mlp.c_proj.bias, block.ln_2.bias):
            parameter.zero_()
        block.ln_2.weight.fill_(1)
        heard = torch.nn.functional.layer_norm(hf.transformer.wte.weight[: zoo.D_MLP], (zoo.D_MODEL,))
        block.mlp.c_fc.weight.copy_(heard.T)
        block.mlp.c_fc.bias.fill_(-26)
        block.mlp.c_proj.weight.copy_(100 * torch.randn(zoo.D_MLP, zoo.D_MODEL))
    return zoo.boot(hf)


def test_what_a_block_says_is_recalled_from_the_neuron_that_said_it():
    lens = EmbeddingLens(speaking_model())
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(2, 40, 3)]
    frame = evidence.hidden_state_recall(lens, texts, weight="W_out", k=10, n_active=1)
    assert (frame[frame["sample"] == "aligned"]["recall"] > 0.9).all()
    assert (frame[frame["sample"] == "permuted"]["recall"] < 0.25).all(), "strangers: 10 of 97 tokens by chance"
    assert (frame[frame["sample"] == "permuted"]["high"] < 0.3).all()


def test_batches_are_not_seen_in_the_answer(lens):
    one = evidence.hidden_state_recall(lens, TEXTS, k=6, seeds=2)
    for tokens in (4, 16):
        other = evidence.hidden_state_recall(lens, TEXTS, k=6, seeds=2, batch_tokens=tokens)
        keep = one["sample"] == "aligned"  # the permutations are of tokens in another order
        assert np.allclose(one[keep][["recall", "low", "high"]], other[keep][["recall", "low", "high"]], atol=0.01)


def test_targets_and_weights_are_selected_and_one_text_has_no_interval(lens):
    frame = evidence.hidden_state_recall(lens, TEXTS[:1], weight="W_O", layer=0, target="layer", k=5, n_active=1)
    assert frame["target"].tolist() == ["layer"] * 2 and frame["weight"].tolist() == ["W_O"] * 2
    assert frame["low"].isna().tolist() == [True, False]
    last = evidence.hidden_state_recall(lens, TEXTS, layer=1, k=5)
    same = [
        last[last["target"] == target].drop(columns="target").reset_index(drop=True) for target in ("layer", "final")
    ]
    assert same[0].equals(same[1]), "the last block's output is the final state"


def test_mixtures_are_measured_where_they_have_hook_points(moe_lens):
    frame = evidence.hidden_state_recall(moe_lens, TEXTS, k=5, seeds=2)
    assert set(frame["weight"]) == {"W_V", "W_O"}
    with pytest.raises(
        EmbspaceError, match="W_out of block 0 of .* is not read: the activations of a mixture's experts"
    ):
        evidence.hidden_state_recall(moe_lens, TEXTS, weight="W_out", k=5)


def test_the_model_is_left_as_it_was(tiny):
    model = tiny("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evidence.hidden_state_recall(EmbeddingLens(model), TEXTS, k=5, seeds=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


@pytest.mark.parametrize(
    ("texts", "options", "sentence"),
    [
        ([], {}, "texts holds no token"),
        ([""], {}, "texts holds no token"),
        ("w2 w3", {}, "texts is one string"),
        (TEXTS, {"k": 98}, "k=98 is not between 1 and 97"),
        (TEXTS, {"target": "last"}, "target='last' is not one of 'final', 'layer'"),
        (TEXTS, {"weight": "W_Q"}, "weight='W_Q' is not one of"),
        (TEXTS, {"weight": "W_gate"}, "is not gated: it has no W_gate"),
        (TEXTS, {"n_active": 33}, "n_active=33 is not between 1 and 32, the units of W_V in block 0"),
        (TEXTS, {"n_active": 0}, "n_active=0 is not between 1 and"),
        (TEXTS, {"seeds": 0}, "seeds=0 is not a number of shuffles"),
        (TEXTS, {"layer": 2}, "layer=2 is out of range"),
    ],
)
def test_what_recall_refuses(lens, texts, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        evidence.hidden_state_recall(lens, texts, **{"k": 5} | options)


def test_recall_without_mlp_or_tokenizer():
    lens = EmbeddingLens(zoo.NATIVE["native_attn_only"]())
    with pytest.raises(EmbspaceError, match="has no MLP|have no MLP"):
        evidence.hidden_state_recall(lens, TEXTS, weight="W_in", k=5)
    with pytest.raises(EmbspaceError, match="has no tokenizer"):
        evidence.hidden_state_recall(lens, TEXTS, k=5)


# -- keep-k


@pytest.mark.parametrize(("name", "options"), [("gpt2", {}), ("llama", {"score": "cosine", "vocabulary": range(60)})])
def test_keep_k_as_the_slow_twin_has_it(tiny, name, options):
    lens = EmbeddingLens(tiny(name), **options)
    X = torch.randn(6, 32)
    frame = evidence.keep_k(lens, X, ks=[1, 7, 40], n=6)
    check_tidy(frame, ["source", "inverse", "k"], ["source", "inverse", "k", "similarity", "n"])
    assert frame["source"].unique().tolist() == ["W_out", "gaussian", "given"]
    E = lens.space.write[:].double()
    X = lens.space.vectors(X, "write").double()
    inverses = {"transpose": E, "pinv": torch.linalg.pinv(E, rtol=1e-5).T}
    for inverse, E_inverse in inverses.items():
        for k in (1, 7, 40):
            slow = brute_keep_k(X, E, E_inverse, k)
            assert of(frame, "similarity", source="given", inverse=inverse, k=k) == pytest.approx(slow, abs=1e-4)


def test_the_whole_vocabulary_and_the_exact_inverse_lose_nothing(tiny):
    centred = torch.randn(20, 32)
    centred = centred - centred.mean(dim=1, keepdim=True)  # what a LayerNorm lets through
    for name in ("llama", "gpt2"):
        frame = evidence.keep_k(EmbeddingLens(tiny(name)), {"span": centred}, n=20, inverses="pinv")
        assert of(frame, "similarity", source="span", inverse="pinv", k=97) == pytest.approx(1, abs=1e-5)
        curve = frame[frame["source"] == "span"]["similarity"]
        assert (curve.diff().dropna() > 0).all() and curve.iloc[0] < 0.9


def test_the_transpose_of_orthonormal_embeddings_is_their_inverse():
    hf = zoo.ZOO["llama"]()
    with torch.no_grad():
        hf.lm_head.weight.copy_(torch.linalg.qr(torch.randn(97, 32))[0])
        hf.model.norm.weight.fill_(1)
    frame = evidence.keep_k(EmbeddingLens(zoo.boot(hf)))
    both = [frame[frame["inverse"] == inverse]["similarity"].to_numpy() for inverse in ("transpose", "pinv")]
    assert np.allclose(*both, atol=1e-4)
    assert both[0][frame["k"][: len(both[0])] == 97] == pytest.approx(1, abs=1e-5)


def test_tiles_are_not_seen_in_the_answer(lens, monkeypatch):
    whole = evidence.keep_k(lens, n=20)
    monkeypatch.setattr(kept, "SCORES", 97 * 7)
    assert np.allclose(whole["similarity"], evidence.keep_k(lens, n=20)["similarity"], atol=1e-5)
    assert not np.allclose(whole["similarity"], evidence.keep_k(lens, n=20, seed=1)["similarity"], atol=1e-3)


def test_values_are_drawn_from_all_layers_and_experts(moe_lens):
    rows = torch.cat([moe_lens.weights.W_out(layer, e) for layer in (0, 1) for e in range(3)])
    drawn = kept._some_values(moe_lens, [0, 1], 10**6, torch.Generator())
    assert torch.equal(drawn, rows)
    some = kept._some_values(moe_lens, [0, 1], 40, torch.Generator().manual_seed(0))
    places = (some[:, None] == rows).all(-1).nonzero()[:, 1]
    assert len(places) == 40 and (places.diff() > 0).all()
    assert len({int(place) // 48 for place in places}) == 6, "from every expert of every layer"


def test_a_model_without_mlp_has_no_values():
    frame = evidence.keep_k(EmbeddingLens(zoo.NATIVE["native_attn_only"]()), ks=[5], n=5)
    assert frame["source"].unique().tolist() == ["gaussian"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ks": [98]}, "k=98 is not between 1 and 97, the number of tokens that this lens reads."),
        ({"inverses": "inverse"}, "inverses='inverse' is not one of 'transpose', 'pinv'"),
        ({"n": 1}, "n=1 is not a number of vectors that have inner products"),
        ({"vectors": torch.zeros(4, 31)}, "vectors have width 31"),
        ({"vectors": torch.zeros(32)}, "vectors 'given' have shape .32,.; give .n, d_model., two vectors or more."),
        ({"vectors": {"W_out": torch.zeros(4, 32)}}, "vectors may not be called 'W_out'"),
        ({"vectors": torch.full((4, 32), torch.nan)}, "NaN or infinite"),
    ],
)
def test_what_keep_k_refuses(lens, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        evidence.keep_k(lens, **options)


# -- the face


def test_the_examples_in_docstrings_run(lens):
    names = {"lens": lens, "evidence": evidence}
    for module in (related, recall, kept):
        ran = 0
        for test in doctest.DocTestFinder().find(module, globs=dict(names)):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, test.name
            ran += result.attempted
        assert ran


def test_names_are_loaded_when_asked_for():
    assert embspace_lens.evidence is evidence
    assert set(evidence.__all__) <= set(dir(evidence))
    for name in evidence.__all__:
        function = getattr(evidence, name)
        assert inspect.isfunction(function), "no module of the same name hides it"
        assert "Returns:\n        One row per (" in function.__doc__ and "Raises:" in function.__doc__
    with pytest.raises(AttributeError):
        evidence.nothing  # noqa: B018
