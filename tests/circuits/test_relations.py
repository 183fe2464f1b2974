"""Relation scores and salient operations: slow loops, a planted head, controls, every mistake as one sentence."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from reference import brute_relation_hits
from tables import check_tidy

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import read_relations, relation_scores, salient_operations
from embspace_lens.weights.first_mlp import behind_first_mlp

COLUMNS = ["relation", "layer", "head", "effect", "relation_score", "control", "p_value", "n", "n_left_out"]
GRAIN = COLUMNS[:4]
SALIENT = ["layer", "head", "src_rank", "rank", "dest_token_index", "dest_token_string", "src_token_index"]
SALIENT += ["src_token_string", "score", "amplification"]


def random_pairs(n=50, seed=0):
    chosen = torch.randint(2, 97, (n, 2), generator=torch.Generator().manual_seed(seed))
    return [tuple(pair) for pair in chosen.tolist()]


def unembedding(lens):
    """W_U as the lens scores it, of the tokens that it reads, `[d_model, n_tokens]`."""
    return torch.cat(list(lens.space.rows("write").tiles())).T


def seen_by(lens, layer, tokens, first_mlp):
    x = lens.weights.W_E[tokens]
    return behind_first_mlp(lens.weights.host, x) if first_mlp and layer else x


OPTIONS = [
    ("gpt2", {}, dict(k=5)),
    ("gpt2", dict(vocabulary=range(5, 80), score="cosine"), dict(k=3, first_mlp=False)),
    ("llama", dict(score="centered"), dict(k=1)),  # grouped key and value heads
    ("gemma2", dict(space="unembed"), dict(k=4)),
    ("mixtral", dict(fold_ln=False), dict(k=4)),
]


@pytest.mark.parametrize(("family", "made", "options"), OPTIONS)
def test_equals_slow_loops(tiny, family, made, options):
    lens = EmbeddingLens(tiny(family), **made)
    pairs = random_pairs()
    df = relation_scores(lens, {"some": pairs}, n_shuffles=5, **options)
    check_tidy(df, GRAIN, COLUMNS)
    ids = list(range(97)) if lens.space.ids is None else lens.space.ids.tolist()
    read = [(s, t) for s, t in pairs if s in ids and t in ids]
    assert (df["n"] == len(read)).all() and (df["n_left_out"] == len(pairs) - len(read)).all()
    for (layer, head, effect), row in df.set_index(["layer", "head", "effect"]).iterrows():
        form = lens.weights.W_OV(layer)
        x = seen_by(lens, layer, [s for s, _ in read], options.get("first_mlp", True))
        sign = 1 if effect == "promotion" else -1
        places = [ids.index(t) for _, t in read]
        hits = brute_relation_hits(x, form.A[head] @ form.B[head], unembedding(lens), places, options["k"], sign)
        assert row["relation_score"] == np.float32(sum(hits[i][i] for i in range(len(hits))) / len(hits))
        assert row["control"] == np.float32(sum(map(sum, hits)) / len(hits) ** 2)


def test_the_p_value_is_that_of_the_best_head_of_each_shuffle(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    pairs, n_shuffles = random_pairs(seed=3), 60
    df = relation_scores(lens, {"some": pairs}, k=9, n_shuffles=n_shuffles, seed=4)
    orders = torch.rand(n_shuffles, len(pairs), generator=torch.Generator().manual_seed(4)).argsort(dim=1)
    shuffled = [[(s, pairs[j][1]) for (s, _), j in zip(pairs, order.tolist())] for order in orders]
    scores = [relation_scores(lens, {"one": some}, k=9, n_shuffles=1) for some in shuffled]
    for effect, rows in df.groupby("effect"):
        best = [one.loc[one["effect"] == effect, "relation_score"].max() for one in scores]
        expected = [(1 + sum(b >= score for b in best)) / (1 + n_shuffles) for score in rows["relation_score"]]
        assert rows["p_value"].tolist() == [float(np.float32(p)) for p in expected]
        assert 0 < rows["p_value"].min() <= rows["p_value"].max() <= 1


def planted(sign=1.0):
    """A Llama whose head 2 of block 1 maps each of 40 sources to a target of its own; the pairs."""
    hf = zoo.ZOO["llama"]()
    order = torch.randperm(95)[:80] + 2
    sources, targets = order[:40], order[40:]
    code = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    with torch.no_grad():
        embed, unembed = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
        embed[:, :8], embed[sources, :8] = 0, code
        unembed[:, 8:16], unembed[targets, 8:16] = 0, code
        hf.model.norm.weight.fill_(1)
        attention = hf.model.layers[1].self_attn
        hf.model.layers[1].input_layernorm.weight.fill_(1)
        attention.v_proj.weight[8:16] = torch.eye(8, 32)  # key/value head 1 serves query heads 2 and 3
        attention.o_proj.weight[:, 16:24] = sign * torch.eye(32, 8).roll(8, dims=0)
    return zoo.boot(hf), list(zip(sources.tolist(), targets.tolist()))


@pytest.mark.parametrize(("sign", "effect"), [(1, "promotion"), (-1, "suppression")])
def test_a_planted_relation_is_found_in_its_head_alone(sign, effect):
    model, pairs = planted(sign)
    df = relation_scores(EmbeddingLens(model), {"planted": pairs}, k=1, first_mlp=False, n_shuffles=200)
    found = (df["layer"] == 1) & (df["head"] == 2) & (df["effect"] == effect)
    assert df.loc[found, "relation_score"].item() == 1
    assert df.loc[found, "control"].item() == np.float32(1 / 40)
    assert df.loc[found, "p_value"].item() == np.float32(1 / 201)
    assert df.loc[~found, "relation_score"].max() < 0.3 and df.loc[~found, "p_value"].min() > 0.005
    shuffled = [(s, pairs[(i + 1) % 40][1]) for i, (s, _) in enumerate(pairs)]
    control = relation_scores(EmbeddingLens(model), {"shuffled": shuffled}, k=1, first_mlp=False, n_shuffles=200)
    assert control.loc[found, "relation_score"].item() == 0 and control["p_value"].min() > 0.005


def test_p_values_of_meaningless_pairs_are_spread_out(tiny):
    lens = EmbeddingLens(tiny("llama"))
    relations = {str(i): random_pairs(seed=100 + i) for i in range(40)}
    df = relation_scores(lens, relations, n_shuffles=200)
    best = df[df["effect"] == "promotion"].groupby("relation")["p_value"].min()
    assert (best < 0.05).mean() < 0.2 and best.median() > 0.2


def test_each_relation_is_scored_as_if_alone(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    relations = {"b": random_pairs(seed=1), "a": random_pairs(33, seed=2)}
    both = relation_scores(lens, relations, n_shuffles=20)
    alone = [relation_scores(lens, {name: relations[name]}, n_shuffles=20) for name in "ab"]
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))
    one = relation_scores(lens, relations, layer=1, head=[3, 1], n_shuffles=20)
    rows = both[(both["layer"] == 1) & both["head"].isin([1, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.drop(columns="p_value"), rows.drop(columns="p_value"))
    assert (one["p_value"] <= rows["p_value"]).all()  # the best of fewer heads is lower


@pytest.mark.parametrize(
    "options", [{}, dict(layer=0), dict(layer=[]), dict(head=[3, 0], k=2, first_mlp=False)], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2_moe"])
def test_tables_keep_the_laws(tiny, family, options):
    lens = EmbeddingLens(tiny(family))
    relations = {"one": random_pairs(), "other": random_pairs(31, seed=1)}
    check_tidy(relation_scores(lens, relations, n_shuffles=3, **options), GRAIN, COLUMNS)
    found = salient_operations(lens, n=3, **options)
    check_tidy(found, SALIENT[:4], SALIENT)
    assert (len(found) == 0) == (options.get("layer") == [])


def test_too_few_pairs_have_no_score_and_a_warning(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    pairs = [(f"w{s}", f"w{t}") for s, t in random_pairs(29)] + [("two words", "w5"), ("w6", "absent")]
    with pytest.warns(UserWarning, match=r"Fewer than 30 pairs are left of few \(29 of 31\): no score\."):
        df = relation_scores(lens, {"few": pairs, "enough": random_pairs(30)}, layer=0, head=0, n_shuffles=2)
    few = df[df["relation"] == "few"]
    assert few[["relation_score", "control", "p_value"]].isna().all(axis=None)
    assert few["n"].tolist() == [29, 29] and few["n_left_out"].tolist() == [2, 2]
    assert df.loc[df["relation"] == "enough", "relation_score"].notna().all()
    check_tidy(df, GRAIN, COLUMNS)
    with pytest.warns(UserWarning, match="few"):
        check_tidy(relation_scores(lens, {"few": pairs}), GRAIN, COLUMNS)


def test_a_word_is_the_token_with_a_space_before_it(demo_lens):
    vocabulary = demo_lens.vocabulary
    assert vocabulary.strings[vocabulary.word("film")] == " film" == vocabulary.strings[vocabulary.word(" film")]
    assert vocabulary.word("film") != vocabulary.index("film") and vocabulary.word(17) == 17
    assert vocabulary.word("notasingletokenatall") is None


def test_where_no_token_has_a_space_a_word_stands_alone(tiny):
    vocabulary = EmbeddingLens(tiny("gpt2")).vocabulary
    assert vocabulary.word("w7") == 7 and vocabulary.word(" w7") is None


def test_no_forward_pass(tiny, monkeypatch):
    model = tiny("gpt2")
    expected = relation_scores(EmbeddingLens(model), {"some": random_pairs()}, n_shuffles=2)
    monkeypatch.setattr(type(model), "forward", None)
    lens = EmbeddingLens(model)
    pd.testing.assert_frame_equal(relation_scores(lens, {"some": random_pairs()}, n_shuffles=2), expected)
    assert len(salient_operations(lens, layer=1, head=0, n=2, k=2)) == 4


@pytest.mark.parametrize(("family", "made", "options"), OPTIONS)
@pytest.mark.parametrize("largest", [True, False])
def test_salient_operations_equal_slow_loops(tiny, family, made, options, largest, monkeypatch):
    monkeypatch.setattr("embspace_lens.circuits.operations.CHUNK_BYTES", 32 * 4 * 20)  # several chunks
    lens = EmbeddingLens(tiny(family), **made)
    first_mlp, k, n = options.get("first_mlp", True), options["k"], 6
    df = salient_operations(lens, n=n, k=k, largest=largest, first_mlp=first_mlp)
    check_tidy(df, SALIENT[:4], SALIENT)
    ids = torch.arange(97) if lens.space.ids is None else lens.space.ids
    for (layer, head), rows in df.groupby(["layer", "head"]):
        x = seen_by(lens, layer, ids, first_mlp).double()
        form = lens.weights.W_OV(layer)
        y = x @ form.A[head].double() @ form.B[head].double()
        ratio = [math.dist(b, [0] * 32) / math.dist(a, [0] * 32) for a, b in zip(x.tolist(), y.tolist())]
        order = sorted(range(len(ratio)), key=lambda i: -ratio[i])[:n]
        assert rows["src_token_index"].tolist() == [int(ids[i]) for i in order for _ in range(k)]
        np.testing.assert_allclose(rows["amplification"], np.repeat([ratio[i] for i in order], k), rtol=1e-5)
        scores = lens.project(y[order].float())[:, ids]
        best = scores.topk(k, largest=largest)
        assert rows["dest_token_index"].tolist() == ids[best.indices].flatten().tolist()
        np.testing.assert_allclose(rows["score"], best.values.flatten(), rtol=1e-4, atol=1e-5)


def test_a_planted_head_is_told_by_its_salient_operations():
    model, pairs = planted()
    df = salient_operations(EmbeddingLens(model), layer=1, head=2, n=40, k=1, first_mlp=False)
    found = dict(zip(df["src_token_index"], df["dest_token_index"]))
    assert all(found[source] == target for source, target in pairs if source in found)
    assert len(set(found) & {source for source, _ in pairs}) > 30


def test_relations_are_read_from_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([["hot", "cold"], ["full", "empty"]]))
    (tmp_path / "b.json").write_text(json.dumps({"x": [["a", "b"]], "y": [["c", "d"]]}))
    (tmp_path / "notes.txt").write_text("no relation")
    assert read_relations(tmp_path / "a.json") == {"a": [("hot", "cold"), ("full", "empty")]}
    assert list(read_relations(tmp_path)) == ["a", "x", "y"] == list(read_relations(*tmp_path.glob("?.json")))
    with pytest.raises(EmbspaceError, match=r"a\.json holds 'a' a second time"):
        read_relations(tmp_path, tmp_path / "a.json")


@pytest.mark.parametrize("data", ["[]", "{}x", '[["a"]]', '[["a", 1]]', '{"r": "ab"}', "3", '["ab", "cd"]'])
def test_files_that_hold_no_relation_are_told(tmp_path, data):
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(EmbspaceError, match=r"a\.json (holds no relation|cannot be read)"):
        read_relations(tmp_path / "a.json")


def test_mistakes_are_told(tiny, tmp_path):
    lens, pairs = EmbeddingLens(tiny("gpt2")), random_pairs()
    with pytest.raises(EmbspaceError, match=r"holds no \.json file"):
        read_relations(tmp_path)
    with pytest.raises(EmbspaceError, match="cannot be read"):
        read_relations(tmp_path / "absent.json")
    with pytest.raises(EmbspaceError, match="relations are a list; give them by name"):
        relation_scores(lens, pairs)  # pyright: ignore[reportArgumentType]
    for bad in ("text", [], [("a", "b", "c")], ["ab"], [1, 2]):
        with pytest.raises(EmbspaceError, match="The relation 'bad' holds no pairs"):
            relation_scores(lens, {"bad": bad})
    with pytest.raises(EmbspaceError, match="k=98 is not between 1 and 97"):
        relation_scores(lens, {"some": pairs}, k=98)
    with pytest.raises(EmbspaceError, match="n_shuffles=0 is not a positive number"):
        relation_scores(lens, {"some": pairs}, n_shuffles=0)
    with pytest.raises(EmbspaceError, match="layer=7 is out of range"):
        relation_scores(lens, {"some": pairs}, layer=7)
    with pytest.raises(EmbspaceError, match="token=200 is out of range"):
        relation_scores(lens, {"some": [(200, 3)]})
    with pytest.raises(EmbspaceError, match="n=98 is not between 1 and 97"):
        salient_operations(lens, n=98)


def test_without_a_tokenizer_pairs_are_ids():
    lens = EmbeddingLens(zoo.NATIVE["native_ln"]())
    assert len(relation_scores(lens, {"some": random_pairs()}, n_shuffles=2)) == 16
    with pytest.raises(EmbspaceError, match=r"has no tokenizer, so relation_scores\(\) cannot look up words"):
        relation_scores(lens, {"some": [("a", "b")]})


def test_heads_of_the_demo_model_stand_out(demo_lens):
    lens = EmbeddingLens.from_pretrained("reviews-medium-0")
    words = [text.strip() for text in demo_lens.vocabulary.strings[demo_lens.space.ids[::20]]]
    df = relation_scores(lens, {"copying": [(word, word) for word in words]}, n_shuffles=200)
    best = df.sort_values("relation_score").iloc[-1]
    assert best["effect"] == "promotion" and best["relation_score"] > 10 * best["control"] and best["p_value"] < 0.01
