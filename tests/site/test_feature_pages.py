"""A site of features: its data equals virtual weights and labels, and its pages show them."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from browser import needs_chromium, read_data, render
from hostile import HOSTILE
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.features import Activation, Features, coactivation, feature_labels, virtual_weights
from embspace_lens.site import explore, explore_features
from embspace_lens.site.feature_activity import feature_activity
from embspace_lens.site.feature_links import N_LINKS, FeatureLinks
from embspace_lens.site.ranking import legible_first
from embspace_lens.site.site_data import bucket, search_form

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4", "w3 w3 w3 w5"]


def dictionary(n, name, hook, output_hook="", seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    decoder, encoder = (torch.randn(n, zoo.D_MODEL, generator=generator) for _ in range(2))
    options = {"activation": Activation(), "layer": int(hook.split(".")[1])} | options
    return Features(decoder, encoder.T, name=name, hook=hook, output_hook=output_hook, **options)


@pytest.fixture(scope="module")
def dictionaries():
    return [
        dictionary(30, "early", "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"),
        dictionary(7, "stream", "blocks.0.hook_resid_post", seed=1),
        dictionary(25, "late", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=2),
    ]


@pytest.fixture(scope="module")
def lens(tiny):
    return EmbeddingLens(tiny("gpt2"))


@pytest.fixture(scope="module")
def site(dictionaries, lens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "pages"
    return explore_features(dictionaries, folder, model=lens.model, lens=lens, texts=TEXTS, title="tiny")


def head_of(site, feature):
    return read_data(site / "data" / "f" / str(feature) / "head.js")[1]


def all_weights(source, target, lens, **options):
    """Every virtual weight: by (source, target)."""
    tables = [
        virtual_weights(source, target, lens=lens, k=len(source) * len(target), **options),
    ]
    return {
        (row["src_feature_index"], row["dest_feature_index"]): row["score"]
        for table in tables
        for row in table.to_dict("records")
    }


# -- data


def test_links_are_the_strongest_weights_of_all_other_dictionaries(site, dictionaries, lens):
    early, stream, late = dictionaries
    of_early, of_stream = all_weights(early, late, lens), all_weights(stream, late, lens)
    for t in (0, 13):
        weights = {s: of_early[s, t] for s in range(30)} | {30 + s: of_stream[s, t] for s in range(7)}
        expected = sorted(weights, key=lambda s: -abs(weights[s]))[:N_LINKS]
        links = head_of(site, 37 + t)["in"]
        assert [link[0] for link in links] == expected
        assert [link[1] for link in links] == [pytest.approx(weights[s], rel=6e-3) for s in expected]
        assert head_of(site, 37 + t)["out"] == []
    to_stream, to_late = all_weights(early, stream, lens), of_early
    weights = {30 + t: to_stream[4, t] for t in range(7)} | {37 + t: to_late[4, t] for t in range(25)}
    expected = sorted(weights, key=lambda t: -abs(weights[t]))[:N_LINKS]
    assert [link[0] for link in head_of(site, 4)["out"]] == expected
    assert head_of(site, 4)["in"] == []


def test_few_features_are_linked_once(dictionaries, lens):
    links = FeatureLinks(dictionaries, lens)
    numbers = [number for number, _ in links.direct_out(0, k=100)[3]]
    assert sorted(numbers) == list(range(30, 62))


def test_heads_have_the_strongest_weights_through_their_circuit(site, dictionaries, lens):
    early, stream, late = dictionaries
    tables = [virtual_weights(s, late, lens=lens, circuit="ov", k=len(s) * 25) for s in (early, stream)]
    heads = {}
    for first, table in zip((0, 30), tables, strict=True):
        for row in table[table["dest_feature_index"] == 5].to_dict("records"):
            name = f"L{row['layer']}H{row['head']}"
            heads.setdefault(name, {})[first + row["src_feature_index"]] = row["score"]
    best = {name: sorted(weights, key=lambda s: -abs(weights[s]))[:3] for name, weights in heads.items()}
    expected = sorted(heads, key=lambda name: -abs(heads[name][best[name][0]]))[:5]
    shown = head_of(site, 37 + 5)["headsIn"]
    assert [name for name, _, _ in shown] == expected
    for name, is_token, others in shown:
        assert not is_token and [other[0] for other in others] == best[name]


def test_heads_read_tokens_where_no_dictionary_is_earlier(site, dictionaries, lens):
    for name, is_token, others in head_of(site, 3)["headsIn"]:
        assert name.startswith("L0") and is_token and len(others) == 3
        layer, head = map(int, re.fullmatch(r"L(\d)H(\d)", name).groups())
        left, right = lens.weights.circuits("W_OV", layer)[head]
        rows = lens.space.read[slice(0, lens.space.n_tokens)]
        encoder = FeatureLinks(dictionaries, lens).read[0][slice(3, 4)][0]
        scores = (rows @ left) @ (right.mT @ encoder)
        expected = scores.abs().topk(3).indices
        assert [other[0].replace("␣", " ") for other in others] == [lens.vocabulary.strings[i] for i in expected]


def test_tokens_are_those_of_feature_labels(site, dictionaries, lens):
    labels = feature_labels(lens, dictionaries[2], earlier=dictionaries[:2], k=10)
    for index in range(25):
        head, rows = head_of(site, 37 + index), labels[labels["feature"] == index]
        for side in ("read", "write"):
            expected = rows[(rows["side"] == side) & (rows["token_index"] >= 0)]
            assert [entry[1] for entry in head[side]] == expected["token_index"].tolist()
        names = [(entry[0], entry[0] < 30) for entry in head["earlier"]]
        earlier = rows[rows["token_index"] < 0]
        firsts = earlier["dictionary"].map({"early": 0, "stream": 30})
        assert [number for number, _ in names] == (earlier["feature_index"] + firsts).tolist()
        assert head["legible"] == rows["is_legible"].iloc[0]


def test_contexts_are_those_of_the_dictionary_at_its_hook(site, dictionaries, lens):
    activities = feature_activity(dictionaries, lens.model, TEXTS, n_contexts=100)
    for features, activity in zip(dictionaries, activities, strict=True):
        measured = coactivation(features, lens.model, TEXTS).source_features
        contexts = activity.contexts.groupby("factor")["code"]
        n_tokens = int(measured["n"].iloc[0])
        assert activity.measures["n_vectors"].tolist() == [n_tokens]
        count, total = (part.reindex(range(len(features)), fill_value=0) for part in (contexts.count(), contexts.sum()))
        assert (count / n_tokens).tolist() == pytest.approx(measured["frequency"].tolist(), abs=1e-6)
        assert (total / n_tokens).tolist() == pytest.approx(measured["mean_activation"].tolist(), abs=1e-4)
    assert head_of(site, 3)["frequency"] == pytest.approx(
        100 * coactivation(dictionaries[0], lens.model, TEXTS).source_features["frequency"][3], rel=6e-3
    )
    _, contexts = read_data(site / "data" / "f" / "0" / "0.js")
    assert len(contexts) == len(activities[0].contexts.query("factor == 0"))


def test_overview_begins_with_legible_features(site, lens):
    _, overview = read_data(site / "data" / "overview.js")
    assert sorted(overview["order"]) == list(range(62))
    order = legible_first(
        np.array([False, True, True, True]), np.array([9.0, 5.0, 7.0, 6.0]), np.ones(4), np.array([1, 2, 3, 3])
    )
    assert order == [2, 1, 3, 0], "the best feature of each token first, features that are not legible last"


def test_words_lead_to_features_that_read_or_write_them(site):
    head = head_of(site, 40)
    for side in ("read", "write"):
        word = search_form(head[side][0][0].replace("␣", " "))
        _, index = read_data(site / "data" / "w" / f"{bucket(word)}.js")
        assert 40 in index[word][::3]


# -- options and errors


def test_one_dictionary_needs_no_texts(lens, dictionaries, tmp_path):
    site = explore_features(dictionaries[0], tmp_path / "pages", lens=lens)
    head = head_of(site, 2)
    assert head["in"] == head["out"] == [] and head["frequency"] is None
    assert "early: 30 features" in html.unescape((site / "about.html").read_text(encoding="utf-8"))


def test_wrong_arguments_raise(lens, dictionaries, tmp_path):
    with pytest.raises(EmbspaceError, match=r"Pass lens=, or model="):
        explore_features(dictionaries, tmp_path / "x")
    with pytest.raises(EmbspaceError, match="Two dictionaries have the name 'early'"):
        explore_features([dictionaries[0]] * 2, tmp_path / "x", lens=lens)
    with pytest.raises(EmbspaceError, match="The list of dictionaries is empty"):
        explore_features([], tmp_path / "x", lens=lens)
    with pytest.raises(EmbspaceError, match="int is not a dictionary of features"):
        with unchecked_types():
            explore_features([3], tmp_path / "x", lens=lens)
    with pytest.raises(EmbspaceError, match="texts needs a model"):
        explore_features(dictionaries, tmp_path / "x", lens=lens, texts=TEXTS)
    with pytest.raises(EmbspaceError, match="has no hook point"):
        explore_features(replace(dictionaries[0], hook=""), tmp_path / "x", lens=lens, model=lens.model, texts=TEXTS)
    with pytest.raises(EmbspaceError, match=r"Pass it to explore_features\(\)"):
        with unchecked_types():
            explore(dictionaries[0], tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -- pages


@needs_chromium
def test_overview_is_sorted_filtered_and_searched(site):
    page = site / "index.html"
    listed = lambda text: [int(n) for n in re.findall(r'href="feature\.html#(\d+)"[^>]*><b>', text)]  # noqa: E731
    _, overview = read_data(site / "data" / "overview.js")
    text = render(page)
    assert listed(text) == overview["order"] and "62 features of tiny" in html.unescape(text)
    assert listed(render(page, "#sort=feature")) == list(range(62))
    assert set(listed(render(page, "#level=1"))) == set(range(30, 37))
    legible = [f for f in overview["order"] if overview["rows"][f][2]]
    assert listed(render(page, "#legible=1")) == legible
    assert listed(render(page, "#q=5"))[:3] == [5, 35, 42], "this number in each dictionary"


@needs_chromium
def test_page_links_the_features_of_its_virtual_weights(site):
    head = head_of(site, 42)
    text = render(site / "feature.html", "#42")
    assert "<h1>late 5</h1>" in text and 'data-ready="42/0"' in text
    links = re.search(r'<ol class="links">(.*?)</ol>', text).group(1)
    assert [int(n) for n in re.findall(r'href="feature\.html#(\d+)"', links)] == [link[0] for link in head["in"]]
    plain = html.unescape(re.sub(r"<[^>]*>", "", text))
    assert "A strong weight need not be used" in plain and "blocks.1.mlp.hook_in → blocks.1.hook_mlp_out" in plain
    assert head["headsIn"][0][0] in plain and head["neuronsIn"][0][0] in plain
    assert "There is no feature 99" in render(site / "feature.html", "#99")


@needs_chromium
def test_hostile_labels_are_shown_and_not_executed(lens, tmp_path):
    labels = list(dict.fromkeys([*HOSTILE, *"abc"]))
    early = dictionary(len(labels), HOSTILE[0], "blocks.0.hook_resid_post", labels=labels)
    late = dictionary(3, "late", "blocks.1.hook_resid_post", seed=1)
    site = explore_features([early, late], tmp_path / "pages", lens=lens, title=HOSTILE[0])
    for path in site.rglob("data/**/*.js"):
        assert not set("<>&\u2028\u2029\x00\x1b\u202e") & set(path.read_text(encoding="utf-8")), path
    for page, fragment in (
        ("index.html", ""),
        ("feature.html", "#0"),
        ("feature.html", f"#{len(labels)}"),
        ("about.html", ""),
    ):
        text = render(site / page, fragment)
        assert "data-broken" not in re.sub(r"dataset\.broken", "", text) and "<img" not in text and "\u202e" not in text
        body = html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)))
        assert "<script>document.body" in body.replace("␣", " ")
