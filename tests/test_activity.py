"""Where factors are active: against every code counted one by one; levels and senses on planted cases."""

from importlib import import_module

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Activity, Factors, importance, level, top_contexts
from embspace_lens.factors import contexts as activity
from embspace_lens.factors import word_senses as senses
from embspace_lens.forward.states import hidden_states
from embspace_lens.tables.columns import GLOSSARY
from embspace_lens.tables.frames import tidy

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4"]
CONTEXTS = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)


def every_code(factors, model, layers=None):
    """(factor, layer) to all its codes above zero with their places, largest first."""
    found = {}
    for text_number, text in enumerate(TEXTS):
        for part in hidden_states(model, [text], layers) if text else []:
            for layer, states in part.states.items():
                for pos, code in enumerate(factors.encode(states, gap=1e-6)):
                    for factor, value in enumerate(code.tolist()):
                        if value > 0:
                            place = (value, text_number, pos, int(part.token_index[pos]))
                            found.setdefault((factor, layer), []).append(place)
    return {key: sorted(places, reverse=True) for key, places in found.items()}


@pytest.mark.parametrize("batch_tokens", [6, 8192])
def test_it_is_what_counting_one_by_one_gives(factors, model, batch_tokens):
    found = activity(factors, model, TEXTS, n=4, n_contexts=3, window=2, batch_tokens=batch_tokens)
    expected = every_code(factors, model)
    check_tidy(found.contexts, ["factor", "layer", "rank"], CONTEXTS)
    check_tidy(found.importance, ["factor", "layer"], ["factor", "layer", "importance"])
    assert len(found.importance) == 12 * 3 and set(found.importance["layer"]) == {-1, 0, 1}
    for row in found.importance.to_dict("records"):
        codes = [place[0] for place in expected.get((row["factor"], row["layer"]), [])]
        assert row["importance"] == pytest.approx(sum(sorted(codes, reverse=True)[:4]) / 4, abs=2e-3)
    assert found.contexts["code"].min() > 0
    for (factor, layer), rows in found.contexts.groupby(["factor", "layer"]):
        places = expected[factor, layer][:3]
        assert rows["code"].tolist() == pytest.approx([place[0] for place in places], abs=2e-3)
        assert rows["rank"].tolist() == list(range(len(places)))
        for row in rows.to_dict("records"):
            words = TEXTS[row["example"]].split()
            assert words[row["pos"]] == row["token_string"].strip() == f"w{row['token_index']}"
            assert row["before"].split() == words[max(0, row["pos"] - 2) : row["pos"]]
            assert row["after"].split() == words[row["pos"] + 1 : row["pos"] + 3]
    assert len(found.contexts) == sum(min(3, len(places)) for places in expected.values())


def test_measures_by_layer(factors, model):
    found = activity(factors, model, TEXTS, layers=[0, 1], n=2, n_contexts=0)
    check_tidy(found.measures, ["layer"], ["layer", "n_vectors", "objective", "explained_variance", "n_active"])
    for layer in (0, 1):
        x = torch.cat([part.states[layer] for text in TEXTS if text for part in hidden_states(model, [text], [layer])])
        codes = factors.encode(x, gap=1e-6)
        left = (x - factors.decode(codes)).square().sum()
        row = found.measures.query("layer == @layer").iloc[0]
        assert row["n_vectors"] == len(x) == 17
        assert row["explained_variance"] == pytest.approx(1 - (left / (x - x.mean(0)).square().sum()).item(), abs=1e-3)
        assert row["objective"] == pytest.approx(((left / 2 + 0.2 * codes.sum()) / len(x)).item(), rel=1e-3)
        assert row["n_active"] == pytest.approx((codes > 0).sum().item() / len(x), abs=0.3)
    assert found.contexts.empty and list(found.contexts) == CONTEXTS


def test_the_two_functions_are_parts_of_it(factors, model):
    whole = activity(factors, model, TEXTS, n=4, n_contexts=3)
    assert importance(factors, model, TEXTS, n=4).equals(whole.importance)
    assert top_contexts(factors, model, iter(TEXTS), n=3).equals(whole.contexts)
    assert repr(whole) == "Activity(12 factors, 3 layers, 51 hidden states)" and isinstance(whole, Activity)


def test_texts_as_they_come(factors, model):
    nasty = ["<script>alert(1)</script>", "مرحبا بالعالم", "🙂 w5 🙂", " ".join(["w7"] * 10_000), "", "\x00\u2028 w9"]
    found = activity(factors, model, nasty, n=3, n_contexts=2)
    assert len(found.contexts) and set(found.contexts["example"]) <= set(range(6))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"texts": []}, "hold no token"),
        ({"texts": ["", ""]}, "hold no token"),
        ({"n": 0}, "n=0 is not a number of 1 or more"),
        ({"window": -1}, "window=-1 is not"),
        ({"layers": [5]}, "layer=5 is out of range"),
        ({"texts": "nowhere.txt"}, "is not a file"),
        ({"factors": Factors(torch.eye(7), l1=1.0)}, "width"),
    ],
)
def test_what_cannot_be_read(change, sentence, factors, model):
    arguments = {"factors": factors, "texts": TEXTS} | change
    with pytest.raises(EmbspaceError, match=sentence):
        activity(arguments.pop("factors"), model, **arguments)


# -- levels


def curves(*rows):
    return tidy(
        ["factor", "layer", "importance"],
        [{"factor": f, "layer": at, "importance": v} for f, row in enumerate(rows) for at, v in enumerate(row)],
    )


def targets(*rows):
    """Targets by factor, all in every layer."""
    blocks = [
        {"factor": f, "layer": layer, "rank": r, "code": 1.0, "example": 0, "pos": r, "token_index": t, "token_string": f"w{t}", "before": "", "after": ""}
        for f, row in enumerate(rows)
        for layer in range(4)
        for r, t in enumerate(row)
    ]  # fmt: skip
    return tidy(CONTEXTS, blocks)


def test_levels_are_where_factors_set_in():
    strong = curves([4, 3, 2, 1], [1, 1, 4, 3], [0, 0, 1, 4], [1, 2, 3, 4], [0, 0, 0, 0])
    df = level(strong, targets([5, 5, 5, 6], [7, 8], [9], [9]))
    check_tidy(df, ["factor"], list(df))
    assert df["level"].tolist() == ["word", "pattern", "long range", "word", ""], "a dead factor is no word"
    assert df["onset"].tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3, np.nan], nan_ok=True)
    assert df["peak"].tolist() == pytest.approx([0, 2 / 3, 1, 1, np.nan], nan_ok=True)
    assert df["purity"].tolist()[:3] == [0.75, 0.5, 1.0] and df["token_string"].tolist() == ["w5", "w7", "w9", "w9", ""]
    assert np.isnan(df["purity"].iloc[4]) and df["token_index"].iloc[4] == -1


def test_reach_moves_a_factor_by_one_level():
    strong = curves([4, 3, 2, 1], [0, 0, 1, 4], [4, 3, 2, 1])
    reach = tidy(["factor", "reach"], [{"factor": f, "reach": r} for f, r in ((0, 5.0), (1, 1.0), (2, 1.0))])
    df = level(strong, targets([5], [6], [7]), reach)
    assert df["level"].tolist() == ["pattern", "pattern", "word"] and df["reach"].tolist() == [5, 1, 1]


def test_tables_without_a_curve_are_refused():
    with pytest.raises(EmbspaceError, match="two layers or more"):
        level(curves([1]), targets([5]))
    with pytest.raises(EmbspaceError, match="contexts is another table: it has no 'token_index'"):
        level(curves([1, 2]), curves([1, 2]))


# -- senses


def tagged(n=80):
    """`w5` is a verb behind `w2` and a noun behind `w3`; `w9` is one thing always."""
    return [[("w2" if i % 3 else "w3", "x"), ("W5", "vb" if i % 3 else "nn"), ("w9", "nn")] for i in range(n)]


def test_a_planted_sense_is_found_and_a_factor_of_noise_finds_none(model):
    pytest.importorskip("sklearn")
    sentences = tagged()
    by_tag = {"vb": [], "nn": []}
    for sentence in sentences[:12]:
        text = " ".join(w for w, _ in sentence).lower()
        (part,) = hidden_states(model, [text], [0])
        by_tag[sentence[1][1]].append(part.states[0][1])
    means = [torch.stack(by_tag[tag]).mean(0) for tag in ("vb", "nn")]
    apart = torch.nn.functional.normalize(means[0] - means[1], dim=0)
    sentences = [[(w.lower(), t) for w, t in s] for s in sentences]
    directions = torch.nn.functional.normalize(torch.stack([apart, -apart, *torch.randn(3, zoo.D_MODEL)]), dim=1)
    df = senses(Factors(directions, l1=0.01), model, sentences, layers=[0], at_least=20)
    check_tidy(
        df,
        ["word", "tag", "method"],
        ["word", "tag", "method", "factor", "layer", "recall", "precision", "f1", "accuracy", "n"],
    )
    rows = df.set_index("method")
    assert set(df["word"]) == {"w5"} and set(df["tag"]) == {"vb"} and set(df["n"]) == {40}
    assert rows.loc["factor", "f1"] == 1.0 and rows.loc["logistic", "f1"] == 1.0
    share = rows.loc["majority", "precision"]
    assert 0.5 < share < 0.8 and rows.loc["majority", "f1"] == pytest.approx(2 * share / (1 + share))
    rng = np.random.default_rng(0)
    mixed = [[s[0], (s[1][0], ("vb", "nn")[int(rng.integers(2))]), s[2]] for s in sentences]
    noise = senses(Factors(directions, l1=0.01), model, mixed, layers=[0], at_least=20).set_index("method")
    assert noise.loc["factor", "accuracy"] < 0.75 and noise.loc["logistic", "accuracy"] < 0.75


def test_senses_named_by_the_user_and_words_without_any(model):
    pytest.importorskip("sklearn")
    factors = Factors(torch.eye(zoo.D_MODEL), l1=0.01)
    sentences = [[(w.lower(), t) for w, t in s] for s in tagged()]
    df = senses(factors, model, sentences, words={"w5": ["nn"]}, layers=[0, 1])
    assert set(df["tag"]) == {"nn"} and senses(factors, model, sentences, words={"w5": ["nn"]}, layers=[0, 1]).equals(
        df
    )
    assert senses(factors, model, sentences, words={"w5": "nn"}, layers=[0, 1]).equals(df), "one tag as it is"
    assert set(senses(factors, model, sentences, words="w5", layers=[0], at_least=9)["word"]) == {"w5"}
    with pytest.raises(EmbspaceError, match="seed=-1 is not a whole number"):
        senses(factors, model, sentences, seed=-1)
    with pytest.raises(EmbspaceError, match="No word has two tags that occur 60 times"):
        senses(factors, model, sentences)
    with pytest.raises(EmbspaceError, match="'w50' does not occur"):
        senses(factors, model, sentences, words={"w50": ["nn"]})
    with pytest.raises(EmbspaceError, match="enough occurrences of two senses"):
        senses(factors, model, sentences, words={"w9": ["nn"]})


def test_every_column_is_in_the_glossary():
    assert {"importance", "level", "peak", "onset", "purity", "reach", "before", "after", "code"} <= set(GLOSSARY)


def test_curves_of_importance_are_drawn():
    pytest.importorskip("plotly", reason="plots need plotly")
    from embspace_lens.show import plot_importance

    curve = {
        "factor": np.repeat([3, 7], 3),
        "layer": np.tile([-1, 0, 1], 2),
        "importance": np.array([0, 1, 4, 2, 8, 6.0]),
    }
    df = tidy(["factor", "layer", "importance"], [curve])
    words = {"factor": np.array([3, 7]), "token_string": np.array([" <b>", ""], dtype=object)}
    figure = plot_importance(df, tidy(["factor", "token_string"], [words]))
    assert [list(trace.x) for trace in figure.data] == [[-1, 0, 1]] * 2
    assert [list(trace.y) for trace in figure.data] == [[0, 0.25, 1], [0.25, 1, 0.75]]
    said = [a.text for a in figure.layout.annotations]
    assert any("3 ␣&lt;b&gt;" in text for text in said) and any(text == "7" for text in said)
    assert len({trace.line.color for trace in figure.data}) == 2
    assert len(df.embspace.plot().data) == 2
    many = tidy(
        ["factor", "layer", "importance"], [{"factor": np.arange(9), "layer": np.zeros(9), "importance": np.ones(9)}]
    )
    with pytest.raises(EmbspaceError, match="9 factors are more than a picture can hold; choose up to 6"):
        plot_importance(many)
    with pytest.raises(EmbspaceError, match="draws another table: 'layer', 'importance' is not there"):
        plot_importance(tidy(["factor", "token_string"], [words]))


def test_a_threshold_does_not_part_equal_codes():
    truth = np.array([True, False, False])
    score, factor, threshold = import_module("embspace_lens.factors.word_senses")._threshold(
        np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), truth
    )
    assert (score, factor, threshold) == (pytest.approx(2 / 3), 1, 0.5)
