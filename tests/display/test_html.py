"""Tables as HTML."""

import re
import sys

import pytest
from handmade import UNSAFE_TOKENS, assert_harmless, neurons_of, pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.display import html
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


def test_a_search_names_its_token_once(lens):
    page = lens.search(5, k=3).embspace.show(4)._repr_html_()
    assert page.count("w5") == 1 and "score of w5" in page and "reads (W_in)" in page and "14 more of 18" in page


def test_numbers_are_aligned_to_the_right(lens):
    page = lens.components().embspace.show(2)._repr_html_()
    assert page.count('<td class="number">') == 2 and '<th scope="col" class="number">norm</th>' in page
