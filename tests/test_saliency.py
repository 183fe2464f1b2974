"""Which tokens decide a code: planted linear codes, variants run by hand, and models that look one way or both."""

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, activity, level, reach_of, saliency, top_contexts
from embspace_lens.factors.lime import _lime
from embspace_lens.forward.states import hidden_states
from embspace_lens.tables.frames import tidy

pytest.importorskip("captum", reason="saliency needs captum")

TEXTS = ["w2 w3 w4 w5 w6 w7", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4"]
COLUMNS = ["factor", "layer", "rank", "token_index", "token_string", "offset", "saliency"]
GRAIN = ["factor", "layer", "rank", "offset"]


@pytest.fixture(scope="module")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)


def contexts_of(factors, model):
    df = top_contexts(factors, model, TEXTS, n=1)
    return df[(df["factor"] < 5) & (df["code"] > 0.2)].reset_index(drop=True)


def explain(factors, model, contexts, **options):
    return saliency(factors, model, TEXTS, contexts, **({"n_samples": 60, "replacement": "w60"} | options))


def test_a_linear_code_is_recovered():
    weights = torch.tensor([3.0, 0.0, -1.5, 0.25, 0.0, 8.0])
    found = _lime(lambda kept: kept @ weights + 7, 6, 400, 30, [0])
    np.testing.assert_allclose(found, weights.numpy(), atol=2e-3)
    strongest = _lime(lambda kept: kept @ weights + 7, 6, 400, 2, [0])
    assert np.flatnonzero(strongest).tolist() == [0, 5]


def test_nearer_variants_count_more():
    """Where the code is a product of two tokens, the fit is that of weighted least squares, found here in loops."""
    seen = []

    def code(kept):
        seen.append(kept.clone())
        return kept[:, 0] * kept[:, 1] * 4 + kept[:, 2]

    found = _lime(code, 4, 300, 30, [5])
    kept = torch.cat(seen).double().numpy()
    rows, values, weights = [], [], []
    for variant in kept[-300:]:
        cosine = variant.sum() / np.sqrt(max(variant.sum(), 1e-300) * 4)
        weights.append(np.exp(-((1 - cosine) ** 2) / 0.25**2))
        rows.append([1.0, *variant])
        values.append(variant[0] * variant[1] * 4 + variant[2])
    x, y, w = np.array(rows), np.array(values), np.array(weights)
    penalty = np.diag([0.0, 1e-3, 1e-3, 1e-3, 1e-3])
    expected = np.linalg.solve(x.T @ (w[:, None] * x) + penalty, x.T @ (w * y))[1:]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = np.linalg.solve(x.T @ x + penalty, x.T @ y)[1:]
    assert np.abs(plain - expected).max() > 0.1, "the weights make a difference here"


def test_the_code_of_a_variant_is_the_code_of_its_text(tiny, factors):
    from embspace_lens.factors.lime import _Code, _context

    model = tiny("gpt2")
    row = {"example": 2, "pos": 5}
    tokens, place, first, last = _context(model, TEXTS, row, 3)
    begin = len(tokens) - 6  # what the tokenizer puts in front
    assert (place, first, last) == (begin + 5, begin + 3, begin + 6), "up to the target, three may change"
    texts = ["w9 w10 w11 w12 w13 w14", "w9 w10 w11 w60 w13 w14", "w9 w10 w11 w12 w60 w60"]
    states = [next(iter(hidden_states(model, [text], [1]))).states[1][5] for text in texts]
    expected = factors.encode(torch.stack(states), gap=1e-6)
    factor = int(expected[0].argmax())
    found = _Code(factors, model, tokens, place, first, 60, 1, factor)(
        torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 0, 0]])
    )
    np.testing.assert_allclose(found, expected[:, factor], atol=5e-3)
    assert len(set(found.tolist())) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_at_the_embedding_only_the_target_matters(tiny, factors, family):
    model = tiny(family)
    contexts = contexts_of(factors, model)
    frame = explain(factors, model, contexts)
    check_tidy(frame, GRAIN, COLUMNS)
    assert frame.groupby(["factor", "layer", "rank"]).ngroups == len(contexts)
    first = frame[frame["layer"] == -1]
    assert first.loc[first["offset"] != 0, "saliency"].abs().max() < 1e-3
    assert first.loc[first["offset"] == 0, "saliency"].abs().median() > 0.1
    later = frame[(frame["layer"] == 1) & (frame["offset"] != 0)]
    assert later["saliency"].abs().max() > 0.01, "after a block others matter too"
    assert (frame["offset"] > 0).any() == (family == "bert"), "what comes later can matter to BERT alone"
    target = frame[frame["offset"] == 0].merge(contexts, on=["factor", "layer", "rank"])
    assert (target["token_index_x"] == target["token_index_y"]).all()
    for row in contexts.head(3).to_dict("records"):
        own = frame[(frame[["factor", "layer", "rank"]] == [row["factor"], row["layer"], row["rank"]]).all(axis=1)]
        words = TEXTS[row["example"]].split()
        assert [s.strip() for s in own["token_string"]] == [words[row["pos"] + i] for i in own["offset"]]


def test_it_is_decided_by_the_seed(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).tail(2)
    a, b, c = (explain(factors, model, contexts, seed=seed, n_samples=20) for seed in (1, 1, 2))
    assert a.equals(b) and not a.equals(c)
    assert explain(factors, model, contexts.tail(1), seed=1, n_samples=20).equals(
        a[a["factor"] == contexts["factor"].iloc[-1]].reset_index(drop=True)
        if contexts["factor"].nunique() == 2
        else a[a["layer"] == contexts["layer"].iloc[-1]].reset_index(drop=True)
    ), "a context's variants do not depend on what else is explained"


def test_reach_by_hand():
    frame = tidy(
        ["factor", "layer", "rank", "offset", "saliency"],
        [
            {
                "factor": np.array([0, 0, 0, 0, 0, 1]),
                "layer": np.zeros(6, dtype=int),
                "rank": np.array([0, 0, 0, 1, 1, 0]),
                "offset": np.array([-9, -4, 0, -2, -1, 0]),
                "saliency": np.array([0.2, 1.0, 3.0, 2.0, -5.0, -1.0]),
            }
        ],
    )
    found = reach_of(frame)
    check_tidy(found, ["factor"], ["factor", "reach"])
    with pytest.raises(EmbspaceError, match="another table: it has no 'offset'"):
        reach_of(frame.drop(columns="offset"))
    assert found["reach"][0] == pytest.approx((1 + 2) / 2) and np.isnan(found["reach"][1])


def test_level_takes_it(tiny, factors):
    model = tiny("gpt2")
    seen = activity(factors, model, TEXTS, n=2, n_contexts=1)
    reach = reach_of(explain(factors, model, seen.contexts, n_samples=20))
    found = level(seen.importance, seen.contexts, reach=reach)
    assert found.set_index("factor")["reach"].dropna().round(5).isin(reach["reach"].round(5)).all()


def test_as_the_terminal_and_a_notebook_show_them(tiny, factors):
    from embspace_lens.display.html import table
    from embspace_lens.display.terminal import render
    from embspace_lens.display.tokens import width

    model = tiny("gpt2")
    contexts = contexts_of(factors, model)
    lines = render(contexts).splitlines()
    place = lines[0].index("target")
    assert len(lines) == len(contexts) + 1 and max(map(width, lines)) <= 100
    for text, row in zip(lines[1:], contexts.to_dict("records"), strict=True):
        assert text.startswith(f"L{row['layer']}F{row['factor']} ")
        assert text[place:].lstrip("␣").startswith(row["token_string"].strip()), "targets stand under one another"
        assert row["before"].strip() in text[:place] and text.endswith((row["after"] or row["token_string"]).strip())
    long = contexts.head(1).assign(before="x " * 300, after="y " * 300, token_string="z" * 300)
    assert max(map(width, render(long, columns=60).splitlines())) <= 60
    found = explain(factors, model, contexts, n_samples=10)
    lines = render(found, n=2).splitlines()
    assert len(lines) == 4 and max(map(width, lines)) <= 100 and "more of" in lines[-1]
    best = found[found["rank"] == 0].groupby(["factor", "layer"], sort=False).first().reset_index().iloc[0]
    one = found[(found["factor"] == best["factor"]) & (found["layer"] == best["layer"])]
    top = one.loc[one["saliency"].idxmax()]
    assert f"{top['token_string'].strip()}({top['offset']})" in lines[1].replace("␣", "")
    for df in (contexts, found):
        assert df.iloc[0]["token_string"].strip() in table(df, n=3)
        assert df.embspace.show(3) is not None


def test_what_is_refused(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).head(1)
    with pytest.raises(EmbspaceError, match="contexts is another table: it has no 'example'"):
        explain(factors, model, contexts.drop(columns="example"))
    for name in ("n_samples", "n_features", "max_tokens"):
        for value in (0, True, 2.5):
            with pytest.raises(EmbspaceError, match=f"{name}={value} is not a positive number"):
                explain(factors, model, contexts, **{name: value})
    with pytest.raises(EmbspaceError, match="contexts speaks of text 9, and there are 4"):
        explain(factors, model, contexts.assign(example=9))
    with pytest.raises(EmbspaceError, match="Text 3 has 2 tokens and no token 5"):
        explain(factors, model, contexts.assign(example=3, pos=5))
    with pytest.raises(EmbspaceError, match="Text 1 has 0 tokens"):
        explain(factors, model, contexts.assign(example=1, pos=0))
    with pytest.raises(EmbspaceError, match="no token -1"):
        explain(factors, model, contexts.assign(pos=-1))
    with pytest.raises(EmbspaceError, match="contexts speaks of factor 99, and there are"):
        explain(factors, model, contexts.assign(factor=99))
    for texts, sentence in (
        (["w50 " * 40] * 4, "is not the one that contexts names"),
        (["  "] * 4, "has 0 tokens"),
    ):
        with pytest.raises(EmbspaceError, match=sentence):
            saliency(factors, model, texts, contexts, n_samples=9)
    empty = explain(factors, model, contexts.head(0))
    check_tidy(empty, GRAIN, COLUMNS)
    assert empty.empty


def test_texts_as_users_have_them(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).head(1)
    first = saliency(factors, model, TEXTS, contexts, n_samples=20)
    for given in (pd.DataFrame({"review": TEXTS}), iter(TEXTS)):
        assert saliency(factors, model, given, contexts, n_samples=20, column="review").equals(first)


def test_tokens_that_hold_a_code_down_are_among_the_strongest():
    weights = np.array([0.5, -3.0, 1.0, 0.1])
    found = _lime(lambda kept: kept @ torch.tensor(weights, dtype=torch.float32), 4, 300, 2, [0])
    assert (found != 0).tolist() == [False, True, True, False] and found[1] < -2.5
