"""The data of the site equal the tables, and their size is limited."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from browser import read_data
from hostile import hostile_activity

from embspace_lens import EmbeddingLens
from embspace_lens.factors import Activity, Factors
from embspace_lens.factors.targets import sharpness, target_statistics
from embspace_lens.site import explore, site_files
from embspace_lens.site.ranking import best_first
from embspace_lens.site.site_data import AROUND, NEAREST, RARE, TARGET, SiteData, bucket
from embspace_lens.site.site_files import script_json
from embspace_lens.site.writers import head_writers, neuron_writers
from embspace_lens.tables.frames import tidy


def test_data_equal_the_tables(site, activity_result, factors, tiny):
    name, overview = read_data(site / "data" / "overview.js")
    assert name == "overview" and len(overview["rows"]) == 12
    curves = activity_result.importance.pivot(index="factor", columns="layer", values="importance")
    lens = EmbeddingLens(tiny("gpt2"))
    nearest = lens.directions(factors.directions, names=[str(i) for i in range(12)], k=10)
    unit = factors.directions / factors.directions.norm(dim=1, keepdim=True)
    for factor in range(12):
        name, head = read_data(site / "data" / "f" / str(factor) / "head.js")
        assert name == f"f/{factor}/head"
        np.testing.assert_allclose(head["curve"], curves.loc[factor], rtol=6e-3)
        peak = int(np.argmax(curves.loc[factor].to_numpy()))
        assert head["peak"] == overview["rows"][factor][2] == peak
        own_nearest = nearest[nearest["direction"] == str(factor)]
        assert [chip[1] for chip in head["nearest"][0]] == own_nearest["token_index"].tolist()
        assert [chip[0].replace("␣", " ") for chip in head["nearest"][0]] == own_nearest["token_string"].tolist()
        cosine = (unit @ unit[factor]).tolist()
        expected = sorted((i for i in range(12) if i != factor), key=lambda i: -cosine[i])[:8]
        assert [n for n, _ in head["neighbours"]] == expected
        assert [c for _, c in head["neighbours"]] == pytest.approx([cosine[i] for i in expected], abs=1e-3)
        for layer_index, layer in enumerate([-1, 0, 1]):
            _, contexts = read_data(site / "data" / "f" / str(factor) / f"{layer_index}.js")
            table = activity_result.contexts[
                (activity_result.contexts["factor"] == factor) & (activity_result.contexts["layer"] == layer)
            ]
            assert [row[4:6] for row in contexts] == table[["example", "pos"]].to_numpy().tolist()
            assert [row[1] for row in contexts] == table["before"].tolist()
            assert [row[2].replace("␣", " ") for row in contexts] == table["token_string"].tolist()
            assert [row[0] for row in contexts] == pytest.approx(table["code"].tolist(), rel=6e-3)
            assert head["n"][layer_index] == len(table)
            counted = Counter(table["token_string"].str.replace(" ", "␣")).most_common(12)
            assert sorted(map(tuple, head["words"][layer_index])) == sorted(counted)
        tokens = overview["tokens"]
        common = [tokens[i] for i in overview["rows"][factor][6]]
        assert common == [word for word, _ in head["words"][peak]][:3]
        at_peak = activity_result.contexts.query(f"factor == {factor} and layer == {peak - 1}")
        strong = at_peak[at_peak["code"] >= at_peak["code"].max() / 2]
        counts = strong["token_string"].value_counts().tolist()
        if len(strong) > 1:
            assert overview["rows"][factor][1] == round(100 * sharpness(counts))
        if len(strong):
            assert head["strong"][1:3] == [round(100 * max(counts) / len(strong)), len(strong)]


def test_search_index_contains_targets_and_nearest_tokens(site, activity_result, factors):
    site_data = SiteData(factors, activity_result, None, None, None)
    for factor in range(12):
        for word, (percent, reason) in site_data.search_words(factor).items():
            if reason != TARGET or percent < RARE:
                continue  # a nearest token may replace it
            _, index = read_data(site / "data" / "w" / f"{bucket(word)}.js")
            flat = index[word]
            assert [factor, percent] in [flat[i : i + 2] for i in range(0, len(flat), 3)]
    table = activity_result.contexts
    for word in set(table["token_string"].str.strip()):
        _, index = read_data(site / "data" / "w" / f"{bucket(word)}.js")
        assert set(index[word][::3]) >= set(table.loc[table["token_string"].str.strip() == word, "factor"])


def test_nearest_tokens_precede_rare_targets(factors, activity_result):
    """A word that is a rare target and a nearest token is found as a nearest token; a frequent target stays a target."""
    row = activity_result.contexts.iloc[0]
    factor, layer = int(row["factor"]), int(row["layer"])
    strings = [" often"] * 19 + [" seldom"]
    frame = pd.DataFrame([row] * 20).assign(rank=range(20), token_string=strings, token_index=[1] * 19 + [2], before="")
    table = Activity(activity_result.importance, activity_result.measures, frame.reset_index(drop=True))
    labels = ["␣seldom", "␣often", "␣never"]
    directions = {"direction": [str(factor)] * 3, "token_string": [label.replace("␣", " ") for label in labels]}
    nearest = pd.DataFrame(directions | {"token_index": [2, 1, 3], "score": [3.0, 2.0, 1.0]})
    words = SiteData(factors, table, (nearest, nearest), None, None).search_words(factor)
    assert words["seldom"] == (1, NEAREST) and words["never"] == (3, NEAREST)
    assert words["often"] == (95, TARGET) and RARE > 5
    assert SiteData(factors, table, None, None, None).search_words(factor)["seldom"] == (5, TARGET)
    assert AROUND not in (TARGET, NEAREST) and layer in activity_result.measures["layer"].tolist()


def test_order_is_sharpness_times_importance_with_each_target_once(site, activity_result):
    _, overview = read_data(site / "data" / "overview.js")
    curves = activity_result.importance.pivot(index="factor", columns="layer", values="importance")
    targets = target_statistics(activity_result.contexts, curves.idxmax(axis=1).to_dict())
    score = (targets["sharpness"].reindex(range(12)) * curves.max(axis=1)).fillna(0)
    tokens = targets["token_index"].reindex(range(12)).fillna(-1)
    seen, first, rest = set(), [], []
    for factor in sorted(range(12), key=lambda f: (-score[f], -curves.max(axis=1)[f])):
        is_first = tokens[factor] not in seen and score[factor] > 0
        (first if is_first else rest).append(factor)
        seen.add(tokens[factor])
    assert overview["order"] == first + rest and sorted(overview["order"]) == list(range(12))
    assert best_first(targets.head(0), np.array([1.0, 3.0, 2.0])) == [1, 2, 0], "without contexts, by importance"


def test_writers_equal_a_loop_over_neurons_and_heads(factors, tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    neurons, heads = neuron_writers(lens, factors.directions), head_writers(lens, factors.directions)
    weights = lens.weights
    for factor, direction in enumerate(factors.directions):
        unit = direction / direction.norm()
        cosines = {
            f"L{layer}N{n}": float(row @ unit / row.norm())
            for layer in range(weights.n_layers)
            for n, row in enumerate(weights.W_out(layer))
        }
        best = sorted(cosines, key=lambda name: -cosines[name])[:5]
        assert [writer[0] for writer in neurons[factor]] == best
        assert [writer[1] for writer in neurons[factor]] == pytest.approx([cosines[name] for name in best], abs=1e-3)
        layer, neuron = (int(part) for part in best[0][1:].split("N"))
        for weight, tokens in zip(("W_out", "W_in"), neurons[factor][0][2:]):
            row = lens.neurons(layer=layer, neuron=neuron, weight=weight, k=6)
            assert tokens == [token.replace(" ", "␣") for token in row["token_string"]]
        for name, cosine, written, read in heads[factor]:
            layer, head = (int(part) for part in name[1:].split("H"))
            value, output = weights.W_V(layer)[head], weights.W_O(layer)[head]
            # the output nearest to the direction
            best_input = torch.linalg.lstsq(output.T, unit[:, None]).solution[:, 0]
            projection = best_input @ output
            assert cosine == pytest.approx(float(projection @ unit / projection.norm()), abs=1e-3)
            for side, vector, tokens in (("write", projection, written), ("read", value @ (output @ unit), read)):
                row = lens.directions(vector, side=side, k=6)
                assert tokens == [token.replace(" ", "␣") for token in row["token_string"]]


def test_writers_link_to_the_other_factors_that_they_write(site):
    heads = [read_data(site / "data" / "f" / str(factor) / "head.js")[1] for factor in range(12)]
    for kind in ("neurons", "heads"):
        cosines = {(writer[0], factor): writer[1] for factor, head in enumerate(heads) for writer in head[kind]}
        for factor, head in enumerate(heads):
            for name, *_, links in head[kind]:
                others = [other for writer, other in cosines if writer == name and other != factor]
                assert links == sorted(others, key=lambda other: -cosines[name, other])[:5]
    assert any(writer[-1] for head in heads for writer in head["heads"])


def test_histogram_on_the_page_equals_the_table(site, activity_result):
    for factor in (0, 5):
        _, head = read_data(site / "data" / "f" / str(factor) / "head.js")
        for index, layer in enumerate([-1, 0, 1]):
            rows = activity_result.histogram.query(f"factor == {factor} and layer == {layer}")
            assert [n for _, n in head["codes"][index]] == rows["n"].tolist()
            assert [code for code, _ in head["codes"][index]] == pytest.approx(rows["code_from"].tolist(), rel=6e-3)


@pytest.mark.parametrize(
    ("pieces", "before", "after", "expected_tokens"),
    [
        (["the", "film", "##s", "good"], "the films", " good", ["␣the", "␣film", "s", "␣good"]),
        (["the", "␣film", "s", "␣good"], "the films", " good", ["the", "␣film", "s", "␣good"]),
        (["Ã", "©", "x", "␣y"], "é", "x y", ["Ã", "©", "x", "␣y"]),
    ],
)
def test_spaces_between_wordpiece_tokens_are_restored(factors, pieces, before, after, expected_tokens):
    table = hostile_activity(factors)
    first = table.contexts.iloc[[0]].assign(before=before, after=after)
    table = Activity(table.importance, table.measures, first.reset_index(drop=True))
    factor, layer = int(first["factor"].iloc[0]), int(first["layer"].iloc[0])
    split = 3 if before != "é" else 2
    offsets = [i - split if i < split else i - split + 1 for i in range(4)]
    rows = {"factor": factor, "layer": layer, "rank": 0, "offset": offsets, "saliency": 1.0}
    rows["token_string"] = [piece.replace("␣", " ") for piece in pieces]
    (row,) = SiteData(factors, table, None, pd.DataFrame(rows), None).contexts(factor, layer)
    assert [token[1] for token in row[6]] == expected_tokens and [token[0] for token in row[6]] == offsets


@pytest.mark.full
def test_page_size_is_independent_of_the_number_of_factors(tmp_path, monkeypatch):
    """2,000 factors, 12 layers, 200 contexts. Only three factors have contexts, because no other page depends on them."""
    rng = np.random.default_rng(0)
    n, k, n_layers = 2000, 200, 12
    words = np.array([f" {'abcdefghijklmnop'[i % 16]}{i * 7919 % 100_000:05d}" for i in range(5000)], dtype=object)
    factor = np.repeat([0, 1, 1999], n_layers * k)
    layer = np.tile(np.repeat(np.arange(n_layers), k), 3)
    token = rng.integers(5000, size=len(factor))
    text = np.array(["".join(words[rng.integers(5000, size=10)]) for _ in range(500)], dtype=object)
    block = {"factor": factor, "layer": layer, "rank": np.tile(np.arange(k), 3 * n_layers), "token_index": token, "token_string": words[token]}  # fmt: skip
    block |= {"example": token, "pos": token, "code": rng.random(len(factor)), "before": text[token % 500], "after": text[token % 499]}  # fmt: skip
    contexts = tidy(list(block), [block])
    curve = {"factor": np.repeat(np.arange(n), n_layers), "layer": np.tile(np.arange(n_layers), n), "importance": rng.random(n * n_layers)}  # fmt: skip
    importance = tidy(list(curve), [curve])
    layer_values = np.ones(n_layers)
    measures = {"layer": np.arange(n_layers), "n_vectors": layer_values.astype(int), "objective": layer_values, "explained_variance": layer_values, "n_active": layer_values}  # fmt: skip
    activity_result = Activity(importance, tidy(list(measures), [measures]), contexts)
    factors = Factors(torch.randn(n, 16), l1=0.1)
    data_sizes = {}  # the 26,000 files are measured but not written, because writing would take most of the time
    monkeypatch.setattr(
        site_files,
        "write_data",
        lambda folder, name, value: data_sizes.update({name: len(script_json(value).encode())}),
    )
    site = explore(factors, tmp_path / "large", seen=activity_result, lens=FakeLens(words))

    def size(*names):
        return sum((site / name).stat().st_size for name in names)

    shared = size("style.css", "common.js")
    overview = size("index.html", "overview.js") + data_sizes["overview"] + shared
    factor_page = size("factor.html", "factor.js") + data_sizes["f/1999/head"] + data_sizes["f/1999/11"] + shared
    assert 100_000 < overview < 300_000 and 30_000 < factor_page < 100_000, (overview, factor_page)
    assert max(size for name, size in data_sizes.items() if name.startswith("w/")) < 100_000


class FakeLens:
    """The interface of a lens that the site uses, with different tokens for every direction."""

    name = "fake"

    class space:
        n_tokens, score = 5000, "dot"

    def __init__(self, words):
        self.words = words

    def directions(self, vectors, *, names, k, largest):
        token = np.arange(len(names) * k) * 31 % 5000
        block = {"direction": np.repeat(np.array(names, dtype=object), k), "rank": np.tile(np.arange(k), len(names)), "token_index": token}  # fmt: skip
        block |= {"token_string": self.words[token], "score": np.linspace(1, 0.1, len(token))}
        return tidy(list(block), [block])
