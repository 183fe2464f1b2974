"""Saliency: planted linear codes are recovered, and only tokens that the model reads are salient."""

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, lime, saliency, top_contexts
from embspace_lens.factors.lime import _Code, _context, _lime
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.states import hidden_states

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


def test_coefficients_of_a_linear_code_are_recovered():
    weights = torch.tensor([3.0, 0.0, -1.5, 0.25, 0.0, 8.0])
    coefficients = _lime(lambda mask: mask @ weights + 7, 6, 400, 30, [0])
    np.testing.assert_allclose(coefficients, weights.numpy(), atol=2e-3)
    largest = _lime(lambda mask: mask @ weights + 7, 6, 400, 2, [0])
    assert np.flatnonzero(largest).tolist() == [0, 5]


def test_fit_equals_weighted_least_squares():
    """For a code that is not linear, the fit is that of weighted least squares, computed here in loops."""
    variants = []

    def code(mask):
        variants.append(mask.clone())
        return mask[:, 0] * mask[:, 1] * 4 + mask[:, 2]

    coefficients = _lime(code, 4, 300, 30, [5])
    mask = torch.cat(variants).double().numpy()
    rows, values, weights = [], [], []
    for variant in mask[-300:]:
        cosine = variant.sum() / np.sqrt(max(variant.sum(), 1e-300) * 4)
        weights.append(np.sqrt(np.exp(-((100 * (1 - cosine)) ** 2) / 25**2)))  # as lime's LimeTextExplainer
        rows.append([1.0, *variant])
        values.append(variant[0] * variant[1] * 4 + variant[2])
    x, y, w = np.array(rows), np.array(values), np.array(weights)
    penalty = np.diag([0.0, 1e-3, 1e-3, 1e-3, 1e-3])
    expected = np.linalg.solve(x.T @ (w[:, None] * x) + penalty, x.T @ (w * y))[1:]
    np.testing.assert_allclose(coefficients, expected, atol=1e-4)
    unweighted = np.linalg.solve(x.T @ x + penalty, x.T @ y)[1:]
    assert np.abs(unweighted - expected).max() > 0.1, "weighted and unweighted coefficients differ"


def test_code_of_a_variant_equals_the_code_of_its_text(tiny, factors):
    model = tiny("gpt2")
    batches = [next(token_batches(model, [text]), None) for text in TEXTS]
    n_prepended = int(next(token_batches(model, ["w9"])).mask[0].int().argmax())
    row = {"example": 2, "pos": n_prepended + 5}
    context = _context(model, len(TEXTS), batches.__getitem__, row, 3)
    assert context[1:] == (n_prepended + 5, n_prepended + 3, n_prepended + 6), (
        "three tokens up to the target may be replaced"
    )
    texts = ["w9 w10 w11 w12 w13 w14", "w9 w10 w11 w60 w13 w14", "w9 w10 w11 w12 w60 w60"]
    states = [next(iter(hidden_states(model, [text], [1]))).states[1][5] for text in texts]
    expected = factors.encode(torch.stack(states), gap=1e-6)
    factor = int(expected[0].argmax())
    codes = _Code(factors, model, context, 60, 1, factor)(torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 0, 0]]))
    np.testing.assert_allclose(codes, expected[:, factor], atol=5e-3)
    assert len(set(codes.tolist())) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_only_the_target_is_salient_at_the_embedding(tiny, factors, family):
    model = tiny(family)
    contexts = contexts_of(factors, model)
    frame = explain(factors, model, contexts)
    check_tidy(frame, GRAIN, COLUMNS)
    assert frame.groupby(["factor", "layer", "rank"]).ngroups == len(contexts)
    first = frame[frame["layer"] == -1]
    assert first.loc[first["offset"] != 0, "saliency"].abs().max() < 1e-3
    assert first.loc[first["offset"] == 0, "saliency"].abs().median() > 0.1
    later = frame[(frame["layer"] == 1) & (frame["offset"] != 0)]
    assert later["saliency"].abs().max() > 0.01, "after a block, other tokens are salient too"
    assert (frame["offset"] > 0).any() == (family == "bert"), "later tokens are salient only in a bidirectional model"
    target = frame[frame["offset"] == 0].merge(contexts, on=["factor", "layer", "rank"])
    assert (target["token_index_x"] == target["token_index_y"]).all()
    for row in contexts.head(3).to_dict("records"):
        rows = frame[(frame[["factor", "layer", "rank"]] == [row["factor"], row["layer"], row["rank"]]).all(axis=1)]
        n_special = int(next(token_batches(model, ["w9"])).mask[0].int().argmax())
        words = [""] * n_special + TEXTS[row["example"]].split()
        assert [s.strip() for s in rows["token_string"]] == [words[row["pos"] + i] for i in rows["offset"]]


def test_saliency_depends_only_on_the_seed_and_the_context(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).tail(2)
    a, b, c = (explain(factors, model, contexts, seed=seed, n_samples=20) for seed in (1, 1, 2))
    assert a.equals(b) and not a.equals(c)
    assert explain(factors, model, contexts.tail(1), seed=1, n_samples=20).equals(
        a[a["factor"] == contexts["factor"].iloc[-1]].reset_index(drop=True)
        if contexts["factor"].nunique() == 2
        else a[a["layer"] == contexts["layer"].iloc[-1]].reset_index(drop=True)
    ), "the result of a context is independent of the other contexts"


def test_interrupted_saliency_resumes_from_finished_contexts(tiny, factors, tmp_path, monkeypatch):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).head(4)
    expected, path, n_calls = explain(factors, model, contexts), tmp_path / "saliency.safetensors", []

    def interrupt(*arguments):
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        n_calls.append(1)
        return _lime(*arguments)

    with monkeypatch.context() as m:
        m.setattr(lime, "_lime", interrupt)
        with pytest.raises(KeyboardInterrupt, match="contains the finished contexts"):
            explain(factors, model, contexts, checkpoint=path)
    assert len(explain(factors, model, contexts, checkpoint=path, saved_only=True).groupby(GRAIN[:3])) == 2
    with monkeypatch.context() as m:
        m.setattr(lime, "_lime", lambda *arguments: n_calls.append(1) or _lime(*arguments))
        assert explain(factors, model, contexts, checkpoint=path).equals(expected)
        assert len(n_calls) == 4, "finished contexts are not computed again"
        assert explain(factors, model, contexts, checkpoint=path).equals(expected) and len(n_calls) == 4
        for options in ({"n_samples": 61}, {"seed": 1}, {"n_features": 2}, {"replacement": "w59"}):
            explain(factors, model, contexts.head(1), checkpoint=path, **options)
        explain(Factors(factors.directions, l1=0.3), model, contexts.head(1), checkpoint=path)
        assert len(n_calls) == 9, "results of other options are not used"
    assert explain(factors, model, contexts, checkpoint=path, saved_only=True).equals(expected)
    path.write_bytes(b"text")
    with pytest.raises(EmbspaceError, match="is not a checkpoint of saliency, or is damaged"):
        explain(factors, model, contexts, checkpoint=path)


@pytest.mark.usefixtures("unchecked_types")
def test_invalid_contexts_and_texts_are_refused(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).head(1)
    with pytest.raises(EmbspaceError, match="contexts has no column 'example'"):
        explain(factors, model, contexts.drop(columns="example"))
    for name in ("n_samples", "n_features", "max_tokens"):
        for value in (0, True, 2.5):
            with pytest.raises(EmbspaceError, match=f"{name}={value} is not an integer of 1 or more"):
                explain(factors, model, contexts, **{name: value})
    with pytest.raises(EmbspaceError, match="contexts refers to text 9, but there are 4 texts"):
        explain(factors, model, contexts.assign(example=9))
    with pytest.raises(EmbspaceError, match="position 9 of text 3, whose tokens have the positions . to ."):
        explain(factors, model, contexts.assign(example=3, pos=9))
    with pytest.raises(EmbspaceError, match="text 1, which has no tokens"):
        explain(factors, model, contexts.assign(example=1, pos=0))
    with pytest.raises(EmbspaceError, match="refers to position -1"):
        explain(factors, model, contexts.assign(pos=-1))
    with pytest.raises(EmbspaceError, match="contexts has rows of factor 99, but the dictionary has 12"):
        explain(factors, model, contexts.assign(factor=99))
    for texts, message in (
        (["w50 " * 40] * 4, "is not the target token in contexts"),
        (["  "] * 4, "which has no tokens"),
    ):
        with pytest.raises(EmbspaceError, match=message):
            saliency(factors, model, texts, contexts, n_samples=9)
    empty = explain(factors, model, contexts.head(0))
    check_tidy(empty, GRAIN, COLUMNS)
    assert empty.empty


def test_texts_may_be_a_list_a_table_or_an_iterator(tiny, factors):
    model = tiny("gpt2")
    contexts = contexts_of(factors, model).head(1)
    first = saliency(factors, model, TEXTS, contexts, n_samples=20)
    for texts in (pd.DataFrame({"review": TEXTS}), iter(TEXTS)):
        assert saliency(factors, model, texts, contexts, n_samples=20, column="review").equals(first)


def test_negative_coefficients_are_selected_by_absolute_value():
    weights = np.array([0.5, -3.0, 1.0, 0.1])
    coefficients = _lime(lambda mask: mask @ torch.tensor(weights, dtype=torch.float32), 4, 300, 2, [0])
    assert (coefficients != 0).tolist() == [False, True, True, False] and coefficients[1] < -2.5
