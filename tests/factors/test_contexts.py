"""Importance, measures and contexts equal those that are computed code by code."""

import math
from collections import Counter

import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Activity, Factors, activity, importance, top_contexts
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.states import hidden_states
from embspace_lens.tables.columns import GLOSSARY

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4"]


CONTEXTS = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)


def all_codes(factors, model, layers=None):
    """All codes above zero by (factor, layer), in descending order: code, text, position, token."""
    codes_of = {}
    for example, text in enumerate(TEXTS):
        for hidden in hidden_states(model, [text], layers) if text else []:
            for layer, states in hidden.states.items():
                for pos, codes in enumerate(factors.encode(states, gap=1e-6)):
                    for factor, code in enumerate(codes.tolist()):
                        if code > 0:
                            row = (code, example, pos, int(hidden.token_index[pos]))
                            codes_of.setdefault((factor, layer), []).append(row)
    return {key: sorted(rows, reverse=True) for key, rows in codes_of.items()}


@pytest.mark.parametrize("batch_tokens", [6, 8192])
def test_activity_equals_counting_every_code(factors, model, batch_tokens):
    result = activity(factors, model, TEXTS, n=4, n_contexts=3, window=2, batch_tokens=batch_tokens)
    expected = all_codes(factors, model)
    check_tidy(result.contexts, ["factor", "layer", "rank"], CONTEXTS)
    check_tidy(result.importance, ["factor", "layer"], ["factor", "layer", "importance"])
    assert len(result.importance) == 12 * 3 and set(result.importance["layer"]) == {-1, 0, 1}
    for row in result.importance.to_dict("records"):
        codes = [code for code, *_ in expected.get((row["factor"], row["layer"]), [])]
        assert row["importance"] == pytest.approx(sum(sorted(codes, reverse=True)[:4]) / 4, abs=2e-3)
    assert result.contexts["code"].min() > 0
    for (factor, layer), rows in result.contexts.groupby(["factor", "layer"]):
        top = expected[factor, layer][:3]
        assert rows["code"].tolist() == pytest.approx([code for code, *_ in top], abs=2e-3)
        assert rows["rank"].tolist() == list(range(len(top)))
        for row in rows.to_dict("records"):
            n_special = int(next(token_batches(model, [TEXTS[row["example"]]])).mask[0].int().argmax())
            words = [""] * n_special + TEXTS[row["example"]].split()
            assert words[row["pos"]] == row["token_string"].strip() == f"w{row['token_index']}"
            assert row["before"].split() == words[max(n_special, row["pos"] - 2) : row["pos"]]
            assert row["after"].split() == words[row["pos"] + 1 : row["pos"] + 3]
    assert len(result.contexts) == sum(min(3, len(codes)) for codes in expected.values())


def test_measures_equal_their_definitions(factors, model):
    result = activity(factors, model, TEXTS, layers=[0, 1], n=2, n_contexts=0)
    check_tidy(result.measures, ["layer"], ["layer", "n_vectors", "objective", "explained_variance", "n_active"])
    for layer in (0, 1):
        x = torch.cat([part.states[layer] for text in TEXTS if text for part in hidden_states(model, [text], [layer])])
        codes = factors.encode(x, gap=1e-6)
        unexplained = (x - factors.decode(codes)).square().sum()
        row = result.measures.query("layer == @layer").iloc[0]
        assert row["n_vectors"] == len(x) == 17
        assert row["explained_variance"] == pytest.approx(
            1 - (unexplained / (x - x.mean(0)).square().sum()).item(), abs=1e-3
        )
        assert row["objective"] == pytest.approx(((unexplained / 2 + 0.2 * codes.sum()) / len(x)).item(), rel=1e-3)
        assert row["n_active"] == pytest.approx((codes > 0).sum().item() / len(x), abs=0.3)
    assert result.contexts.empty and list(result.contexts) == CONTEXTS


def test_importance_and_top_contexts_are_parts_of_activity(factors, model):
    result = activity(factors, model, TEXTS, n=4, n_contexts=3)
    assert importance(factors, model, TEXTS, n=4).equals(result.importance)
    assert top_contexts(factors, model, iter(TEXTS), n=3).equals(result.contexts)
    assert repr(result) == "Activity(12 factors, 3 layers, 51 hidden states)" and isinstance(result, Activity)


def test_unusual_texts_are_read(factors, model):
    unusual = ["<script>alert(1)</script>", "مرحبا بالعالم", "🙂 w5 🙂", " ".join(["w7"] * 10_000), "", "\x00\u2028 w9"]
    result = activity(factors, model, unusual, n=3, n_contexts=2)
    assert len(result.contexts) and set(result.contexts["example"]) <= set(range(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "contain no tokens"),
        ({"texts": ["", ""]}, "contain no tokens"),
        ({"n": 0}, "n=0 is not an integer of 1 or more"),
        ({"window": -1}, "window=-1 is not an integer of 0 or more"),
        ({"layers": [5]}, "layer=5 is out of range"),
        ({"texts": "nowhere.txt"}, "is not a file"),
        ({"factors": Factors(torch.eye(7), l1=1.0)}, "width"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_invalid_arguments_are_refused(change, message, factors, model):
    arguments = {"factors": factors, "texts": TEXTS} | change
    with pytest.raises(EmbspaceError, match=message):
        activity(arguments.pop("factors"), model, **arguments)


def test_histogram_counts_every_code_once(factors, model):
    result = activity(factors, model, TEXTS, n=4, n_contexts=3, batch_tokens=6)
    expected = {}
    for (factor, layer), rows in all_codes(factors, model).items():
        for code, *_ in rows:
            if code > 0.01:  # codes near 0 depend on the duality gap
                lower = 2 ** (math.floor(2 * math.log2(code)) / 2)
                expected.setdefault((factor, layer), []).append(lower)
    check_tidy(result.histogram, ["factor", "layer", "code_from"], ["factor", "layer", "code_from", "n"])
    differences = total = 0
    for (factor, layer), rows in result.histogram.groupby(["factor", "layer"]):
        counts = {round(code, 4): n for code, n in zip(rows["code_from"].tolist(), rows["n"].tolist()) if code > 0.01}
        wanted = Counter(round(code, 4) for code in expected.get((factor, layer), []))
        differences += sum((Counter(counts) - wanted).values())
        total += sum(wanted.values())
    assert total > 50 and differences <= 0.05 * total, "codes at the edge of a bin differ by the duality gap"
    assert result.histogram["n"].sum() == pytest.approx(
        (result.measures["n_active"] * result.measures["n_vectors"]).sum(), rel=1e-5
    )


def test_columns_are_in_the_glossary():
    assert {"importance", "level", "peak", "onset", "purity", "reach", "before", "after", "code"} <= set(GLOSSARY)
