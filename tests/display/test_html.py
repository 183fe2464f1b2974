"""Tables as HTML."""

import re
import sys

import pandas as pd
import pytest
from handmade import UNSAFE_TOKENS, assert_harmless, neurons_of, pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.display import html, terminal
from embspace_lens.display.line_counts import score_and_rank
from embspace_lens.display.table_groups import name_of
from embspace_lens.display.tokens import display


def test_styles_apply_to_our_tables_only(lens):
    css = re.search(r"<style>(.*)</style>", lens.neurons(k=2).embspace.show()._repr_html_(), re.S).group(1)
    css = re.sub(r"@media[^{]*\{", "", css)
    selectors = [part.strip() for group in re.findall(r"([^{}]+)\{", css) for part in group.split(",")]
    assert len(selectors) > 10
    assert all(selector.startswith((".esl", ".esl-table")) for selector in selectors)


@pytest.mark.parametrize("token", UNSAFE_TOKENS)
def test_tokens_are_escaped(token):
    for df in (neurons_of([token, " x"]), pairs_of([token, " x"])):
        parsed = assert_harmless(df.embspace.show()._repr_html_())
        assert display(token) in "".join(parsed.text)


def test_error_names_the_extra_if_jinja_is_missing(monkeypatch, lens):
    html.environment.cache_clear()
    html.stylesheet.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EmbspaceError, match=r"needs jinja2, .* pip install 'embspace-lens\[plots\]'"):
        lens.neurons(0, 0, k=2).embspace.show()._repr_html_()


def test_names_with_control_characters_are_visible():
    df = neurons_of([" x"], ["W_out"]).drop(columns=["layer", "neuron", "weight"]).assign(direction="b\x1b[31m")
    page = df.embspace.show()._repr_html_()
    assert "\x1b" not in page and "b\\x1b[31m" in page


def test_a_search_has_one_line_per_weight_with_the_token_marked_and_scores(lens):
    df = lens.search(5, weight=["W_in", "W_out", "W_Q", "W_K", "W_V", "W_O"], k=3)
    page = df.embspace.show(2)._repr_html_()
    assert page.count("w5") == 2 and page.count("esl-marked") == 2, "once in its chip and once in its title; one rule"
    assert page.count("<tr>") == 7 and "reads (W_in)" in page and "6 more of 18; show(n=3) shows all." in page
    for row in df[df["rank"] < 2].to_dict("records"):
        name = name_of(row)
        assert f'<bdi>{name}</bdi></span><span class="esl-score">{score_and_rank(row)}</span>' in page
    assert "more of" not in df.embspace.show(3)._repr_html_()


def test_searches_for_several_tokens_have_a_line_for_each(lens):
    df = pd.concat([lens.search(5, weight="W_out", k=2), lens.search(6, weight="W_out", k=2)], ignore_index=True)
    page = df.embspace.show()._repr_html_()
    assert page.count("<tr>") == 3 and "w5" in page and "w6" in page
    lines = terminal.render(df).splitlines()
    assert lines[0].startswith("search  weight") and lines[1].startswith("w5") and lines[2].startswith("w6")


def test_footer_says_what_shows_the_rest(lens):
    df = lens.neurons(weight="W_out", k=1)
    assert "86 more of 96; show(n=50) shows more." in df.embspace.show()._repr_html_()
    assert "76 more of 96; show(n=96) shows all." in df.embspace.show(20)._repr_html_()
    assert "nothing was selected" in df.head(0).embspace.show()._repr_html_()


def test_numbers_are_aligned_to_the_right(lens):
    page = lens.components().embspace.show(2)._repr_html_()
    assert page.count('<td class="number">') == 2 and '<th scope="col" class="number">norm</th>' in page
