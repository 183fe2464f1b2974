"""Contexts and saliency as the terminal and a notebook show them."""

import pytest
import torch
import zoo

from embspace_lens.display.html import table
from embspace_lens.display.terminal import render
from embspace_lens.display.tokens import width
from embspace_lens.factors import Factors, saliency, top_contexts

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
