"""Contexts and saliency as the terminal and a notebook show them."""

import re

import pytest
import torch
import zoo

from embspace_lens.display.html import table
from embspace_lens.display.terminal import render
from embspace_lens.display.tokens import width
from embspace_lens.factors import Factors, saliency, top_contexts
from embspace_lens.tables.frames import tidy

pytest.importorskip("captum", reason="saliency needs captum")

TEXTS = ["w2 w3 w4 w5 w6 w7", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4"]


def test_contexts_and_saliency_are_shown_in_terminal_and_notebook(tiny):
    model = tiny("gpt2")
    torch.manual_seed(0)
    factors = Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)
    contexts = top_contexts(factors, model, TEXTS, n=1)
    contexts = contexts[(contexts["factor"] < 5) & (contexts["code"] > 0.2)].reset_index(drop=True)
    lines = render(contexts).splitlines()
    column = lines[0].index("target")
    assert len(lines) == len(contexts) + 1 and max(map(width, lines)) <= 100
    for text, row in zip(lines[1:], contexts.to_dict("records"), strict=True):
        assert text.startswith(f"L{row['layer']}F{row['factor']} ")
        assert text[column:].lstrip("␣").startswith(row["token_string"].strip()), "targets are aligned"
        assert row["before"].strip() in text[:column] and text.endswith((row["after"] or row["token_string"]).strip())
    long_context = contexts.head(1).assign(before="x " * 300, after="y " * 300, token_string="z" * 300)
    assert max(map(width, render(long_context, columns=60).splitlines())) <= 60
    explained = saliency(factors, model, TEXTS, contexts, n_samples=10, replacement="w60")
    lines = render(explained, n=2).splitlines()
    assert len(lines) == 4 and max(map(width, lines)) <= 100 and "more of" in lines[-1]
    best = explained[explained["rank"] == 0].groupby(["factor", "layer"], sort=False).first().reset_index().iloc[0]
    first = explained[(explained["factor"] == best["factor"]) & (explained["layer"] == best["layer"])]
    top = first.loc[first["saliency"].idxmax()]
    assert f"{top['token_string'].strip()}({top['offset']})" in lines[1].replace("␣", "")
    for df in (contexts, explained):
        assert df.iloc[0]["token_string"].strip() in table(df, n=3)
        assert df.embspace.show(3) is not None


def explained_contexts():
    """The saliency of two contexts, one of them of a negative token."""
    names = ["factor", "layer", "rank", "offset", "token_index", "token_string", "saliency"]
    block = {
        "factor": 3,
        "layer": 2,
        "rank": [0, 0, 0, 1, 1],
        "offset": [-1, 0, 1, -1, 0],
        "token_index": [1, 2, 3, 4, 2],
        "token_string": [" a", " <b>film", " ends", " not", " film"],
        "saliency": [0.5, 1.0, 0.25, -0.5, 0.25],
    }
    return tidy(names, [block], kind="saliency")


def test_saliency_is_a_concordance_with_tints():
    page = table(explained_contexts())
    rows = re.findall(r"<tr>(.*?)</tr>", page)[1:]
    assert len(rows) == 2, "one line for each context"
    before, target, after = re.findall(r'<td class="\w+">(.*?)</td>', rows[0])
    assert "> a</span>" in before and "--s:0.50" in before and "offset -1, saliency 0.500" in before
    assert "> &lt;b&gt;film</span>" in target and "--s:1.00" in target and "> ends</span>" in after
    assert "esl-negative" in rows[1] and "--s:1.00" in rows[1], "tints are relative to the context's strongest token"
    assert "1 more of 2; show(n=2) shows all." in table(explained_contexts(), n=1)


def test_contexts_are_a_concordance_with_targets_in_one_column():
    block = {"factor": 3, "layer": 2, "rank": [0, 1], "token_index": [1, 2], "token_string": [" film", " plot"]}
    block |= {"code": [2.0, 1.0], "before": ["a very " * 30, "the"], "after": ["was good", ""]}
    df = tidy(list(block), [block], kind="contexts")
    page = table(df)
    rows = re.findall(r"<tr>(.*?)</tr>", page)[1:]
    code, before, target, after = re.findall(r'<td class="\w+">(.*?)</td>', rows[0])
    assert code == "2.00" and before.startswith("…") and before.endswith("a very") and after == "was good"
    assert "<bdi>film</bdi>" in target and "--s:1.00" in target and "--s:0.12" in rows[1]
    assert "1 more of 2; show(n=2) shows all." in table(df, n=1)
