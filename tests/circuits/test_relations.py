"""Relation scores: slow loops, a planted head, the permutation test, relation files, and errors."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from planted_relation import planted
from reference import brute_relation_hits
from tables import check_tidy
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import permutation_tests, read_relations, relation_scores, relations
from embspace_lens.weights.first_mlp import first_mlp_output

COLUMNS = ["relation", "layer", "head", "effect", "relation_score", "control", "p_value", "n", "n_left_out"]
KEYS = COLUMNS[:4]


def random_pairs(n=50, seed=0):
    tokens = torch.randint(2, 97, (n, 2), generator=torch.Generator().manual_seed(seed))
    return [tuple(pair) for pair in tokens.tolist()]


def unembedding(lens):
    """The lens's W_U on the tokens that it reads, `[d_model, n_tokens]`."""
    return torch.cat(list(lens.space.rows("write").tiles())).T


def source_vectors(lens, layer, tokens, first_mlp):
    x = lens.weights.W_E[tokens]
    return first_mlp_output(lens.weights, x) if first_mlp and layer else x


OPTIONS = [
    ("gpt2", {}, dict(k=5)),
    ("gpt2", dict(vocabulary=range(5, 80), score="cosine"), dict(k=3, first_mlp=False)),
    ("llama", dict(score="centered"), dict(k=1)),  # grouped key and value heads
    ("gemma2", dict(space="unembed"), dict(k=4)),
    ("mixtral", dict(fold_ln=False), dict(k=4)),
    ("gpt2", dict(fold_ln=False), dict(k=4)),
]


@pytest.mark.parametrize(("family", "lens_options", "options"), OPTIONS)
def test_scores_and_controls_equal_slow_loops(tiny, family, lens_options, options):
    lens = EmbeddingLens(tiny(family), **lens_options)
    pairs = random_pairs()
    df = relation_scores(lens, {"random": pairs}, n_shuffles=5, **options)
    check_tidy(df, KEYS, COLUMNS)
    ids = lens.space.token_ids.tolist()
    read_pairs = [(s, t) for s, t in pairs if s in ids and t in ids]
    assert (df["n"] == len(read_pairs)).all() and (df["n_left_out"] == len(pairs) - len(read_pairs)).all()
    for (layer, head, effect), row in df.set_index(["layer", "head", "effect"]).iterrows():
        form = lens.weights.W_OV(layer)
        x = source_vectors(lens, layer, [s for s, _ in read_pairs], options.get("first_mlp", True))
        sign = 1 if effect == "promotion" else -1
        targets = [ids.index(t) for _, t in read_pairs]
        hits = brute_relation_hits(x, form.A[head] @ form.B[head], unembedding(lens), targets, options["k"], sign)
        assert row["relation_score"] == np.float32(sum(hits[i][i] for i in range(len(hits))) / len(hits))
        assert row["control"] == np.float32(sum(map(sum, hits)) / len(hits) ** 2)


def test_p_values_compare_with_the_best_head_of_each_shuffle(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    pairs, n_shuffles = random_pairs(seed=3), 60
    df = relation_scores(lens, {"random": pairs}, k=9, n_shuffles=n_shuffles, seed=4)
    orders = torch.rand(n_shuffles, len(pairs), generator=torch.Generator().manual_seed(4)).argsort(dim=1)
    shuffled = [[(s, pairs[j][1]) for (s, _), j in zip(pairs, order.tolist())] for order in orders]
    tables = [relation_scores(lens, {"shuffled": pairs}, k=9, n_shuffles=1) for pairs in shuffled]
    for effect, rows in df.groupby("effect"):
        best = [table.loc[table["effect"] == effect, "relation_score"].max() for table in tables]
        expected = [(1 + sum(b >= score for b in best)) / (1 + n_shuffles) for score in rows["relation_score"]]
        assert rows["p_value"].tolist() == [float(np.float32(p)) for p in expected]
        assert 0 < rows["p_value"].min() <= rows["p_value"].max() <= 1


@pytest.mark.parametrize(("sign", "effect"), [(1, "promotion"), (-1, "suppression")])
def test_only_the_planted_head_scores_high(sign, effect):
    model, pairs = planted(sign)
    df = relation_scores(EmbeddingLens(model), {"planted": pairs}, k=1, first_mlp=False, n_shuffles=200)
    is_planted = (df["layer"] == 1) & (df["head"] == 2) & (df["effect"] == effect)
    assert df.loc[is_planted, "relation_score"].item() == 1
    assert df.loc[is_planted, "control"].item() == np.float32(1 / 40)
    assert df.loc[is_planted, "p_value"].item() == np.float32(1 / 201)
    assert df.loc[~is_planted, "relation_score"].max() < 0.3 and df.loc[~is_planted, "p_value"].min() > 0.005
    shuffled = [(s, pairs[(i + 1) % 40][1]) for i, (s, _) in enumerate(pairs)]
    control = relation_scores(EmbeddingLens(model), {"shuffled": shuffled}, k=1, first_mlp=False, n_shuffles=200)
    assert control.loc[is_planted, "relation_score"].item() == 0 and control["p_value"].min() > 0.005


def test_p_values_of_random_pairs_are_not_small(tiny):
    lens = EmbeddingLens(tiny("llama"))
    relations = {str(i): random_pairs(seed=100 + i) for i in range(40)}
    df = relation_scores(lens, relations, n_shuffles=200)
    best = df[df["effect"] == "promotion"].groupby("relation")["p_value"].min()
    assert (best < 0.05).mean() < 0.2 and best.median() > 0.2


def test_scores_are_independent_of_other_relations_and_heads(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    relations = {"b": random_pairs(seed=1), "a": random_pairs(33, seed=2)}
    together = relation_scores(lens, relations, n_shuffles=20)
    alone = [relation_scores(lens, {name: relations[name]}, n_shuffles=20) for name in "ab"]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))
    selected = relation_scores(lens, relations, layer=1, head=[3, 1], n_shuffles=20)
    rows = together[(together["layer"] == 1) & together["head"].isin([1, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(selected.drop(columns="p_value"), rows.drop(columns="p_value"))
    assert (selected["p_value"] <= rows["p_value"]).all()  # the maximum over fewer heads is smaller


@pytest.mark.parametrize(
    "options", [{}, dict(layer=0), dict(layer=[]), dict(head=[3, 0], k=2, first_mlp=False)], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2_moe"])
def test_tables_are_tidy(tiny, family, options):
    lens = EmbeddingLens(tiny(family))
    relations = {"one": random_pairs(), "other": random_pairs(31, seed=1)}
    check_tidy(relation_scores(lens, relations, n_shuffles=3, **options), KEYS, COLUMNS)


def test_small_relations_have_no_score_and_warn(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    pairs = [(f"w{s}", f"w{t}") for s, t in random_pairs(29)] + [("two words", "w5"), ("w6", "absent")]
    with pytest.warns(UserWarning, match=r"Fewer than 30 pairs are left of few \(29 of 31\): no score\."):
        df = relation_scores(lens, {"few": pairs, "enough": random_pairs(30)}, layer=0, head=0, n_shuffles=2)
    small_relation = df[df["relation"] == "few"]
    assert small_relation[["relation_score", "control", "p_value"]].isna().all(axis=None)
    assert small_relation["n"].tolist() == [29, 29] and small_relation["n_left_out"].tolist() == [2, 2]
    assert df.loc[df["relation"] == "enough", "relation_score"].notna().all()
    check_tidy(df, KEYS, COLUMNS)
    with pytest.warns(UserWarning, match="few"):
        check_tidy(relation_scores(lens, {"few": pairs}), KEYS, COLUMNS)


def test_words_are_looked_up_with_a_leading_space(demo_lens):
    vocabulary = demo_lens.vocabulary
    assert vocabulary.strings[vocabulary.word("film")] == " film" == vocabulary.strings[vocabulary.word(" film")]
    assert vocabulary.word("film") != vocabulary.index("film") and vocabulary.word(17) == 17
    assert vocabulary.word("notasingletokenatall") is None


def test_words_are_looked_up_without_a_space_if_no_token_has_one(tiny):
    vocabulary = EmbeddingLens(tiny("gpt2")).vocabulary
    assert vocabulary.word("w7") == 7 and vocabulary.word(" w7") is None


def test_scores_need_no_forward_pass(tiny, monkeypatch):
    model = tiny("gpt2")
    expected = relation_scores(EmbeddingLens(model), {"random": random_pairs()}, n_shuffles=2)
    monkeypatch.setattr(type(model), "forward", None)
    lens = EmbeddingLens(model)
    pd.testing.assert_frame_equal(relation_scores(lens, {"random": random_pairs()}, n_shuffles=2), expected)


def test_relations_are_read_from_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([["hot", "cold"], ["full", "empty"]]))
    (tmp_path / "b.json").write_text(json.dumps({"x": [["a", "b"]], "y": [["c", "d"]]}))
    (tmp_path / "notes.txt").write_text("no relation")
    assert read_relations(tmp_path / "a.json") == {"a": [("hot", "cold"), ("full", "empty")]}
    assert list(read_relations(tmp_path)) == ["a", "x", "y"] == list(read_relations(*tmp_path.glob("?.json")))
    with pytest.raises(EmbspaceError, match=r"a\.json holds the relation 'a', but another file"):
        read_relations(tmp_path, tmp_path / "a.json")


@pytest.mark.parametrize("data", ["[]", "{}x", '[["a"]]', '[["a", 1]]', '{"r": "ab"}', "3", '["ab", "cd"]'])
def test_files_without_relations_raise(tmp_path, data):
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(EmbspaceError, match=r"a\.json (does not hold relations|cannot be read)"):
        read_relations(tmp_path / "a.json")


def test_one_bad_relation_leaves_the_others(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"x": [["a", "b"]], "bad": [["a"]], "worse": 3, "y": [["c", "d"]]}))
    with pytest.warns(UserWarning, match="the relation '(bad|worse)' is not a list of pairs of words") as caught:
        assert list(read_relations(tmp_path / "a.json")) == ["x", "y"]
    assert len(caught) == 2


def test_files_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([["é", "b"]], ensure_ascii=False), encoding="utf-8-sig")
    assert read_relations(tmp_path / "a.json") == {"a": [("é", "b")]}


def test_files_nested_too_deeply_raise(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(EmbspaceError, match="cannot be read: its lists are nested too deeply"):
        read_relations(tmp_path / "a.json")


def test_hits_in_blocks_equal_the_full_matrix(monkeypatch):
    n, n_targets = 37, 9
    relation = relations._Relation("r", torch.arange(n), torch.arange(n) % n_targets, 0)
    shuffled = relation.shuffled_targets(11, seed=4)
    monkeypatch.setattr(permutation_tests, "BLOCK_ENTRIES", 40)
    assert torch.equal(relation.shuffled_targets(11, seed=4), shuffled), "orders do not depend on the size of a block"
    top = torch.rand(n, n_targets + 1).argsort(1)[:, :3]  # the last index stands for tokens that are no target
    hits = permutation_tests.Hits(top, relation.target, n_targets)
    matrix = (top[:, None] == relation.target[None, :, None]).any(-1)
    assert hits.paired() == matrix.diagonal().sum()
    assert hits.mean() == pytest.approx(matrix.double().mean().item())
    expected = [sum(int(shuffled[i, s]) in top[i].tolist() for i in range(n)) for s in range(11)]
    assert hits.shuffled(shuffled).tolist() == expected


def test_relations_of_many_pairs_need_little_memory():
    n = 300_000
    relation = relations._Relation("r", torch.zeros(n, dtype=torch.long), torch.randint(5, (n,)), 0)
    hits = relation.hits(torch.zeros(1, dtype=torch.long), torch.arange(3)[None], d_vocab=97)
    assert hits.shuffled(relation.shuffled_targets(2, seed=0)).tolist() == [hits.paired()] * 2, "one source, any order"


def test_invalid_options_raise(tiny, tmp_path):
    lens, pairs = EmbeddingLens(tiny("gpt2")), random_pairs()
    with pytest.raises(EmbspaceError, match=r"contains no \.json file"):
        read_relations(tmp_path)
    with pytest.raises(EmbspaceError, match="cannot be read"):
        read_relations(tmp_path / "absent.json")
    with (
        unchecked_types(),
        pytest.raises(EmbspaceError, match="relations is a list. Give a mapping from names to pairs"),
    ):
        relation_scores(lens, pairs)  # pyright: ignore[reportArgumentType]
    for invalid_pairs in ("text", [], [("a", "b", "c")], ["ab"], [1, 2]):
        with unchecked_types(), pytest.raises(EmbspaceError, match="The relation 'bad' has no pairs"):
            relation_scores(lens, {"bad": invalid_pairs})
    with pytest.raises(EmbspaceError, match="k=98 is not an integer from 1 to 97"):
        relation_scores(lens, {"random": pairs}, k=98)
    with pytest.raises(EmbspaceError, match="n_shuffles=0 is not an integer of 1 or more"):
        relation_scores(lens, {"random": pairs}, n_shuffles=0)
    with pytest.raises(EmbspaceError, match="layer=7 is out of range"):
        relation_scores(lens, {"random": pairs}, layer=7)
    with pytest.raises(EmbspaceError, match="token=200 is out of range"):
        relation_scores(lens, {"random": [(200, 3)]})


def test_pairs_are_ids_without_a_tokenizer():
    lens = EmbeddingLens(zoo.NATIVE["native_ln"]())
    assert len(relation_scores(lens, {"random": random_pairs()}, n_shuffles=2)) == 16
    with pytest.raises(EmbspaceError, match=r"has no tokenizer, so relation_scores\(\) cannot look up words"):
        relation_scores(lens, {"random": [("a", "b")]})


def test_a_head_of_a_demo_model_has_a_significant_copying_score(demo_lens):
    lens = EmbeddingLens.from_pretrained("reviews-medium-0")
    words = [text.strip() for text in demo_lens.vocabulary.strings[demo_lens.space.token_ids[::20]]]
    df = relation_scores(lens, {"copying": [(word, word) for word in words]}, n_shuffles=200)
    best = df.sort_values("relation_score").iloc[-1]
    assert best["effect"] == "promotion" and best["relation_score"] > 10 * best["control"] and best["p_value"] < 0.01
