"""Tables as HTML."""

import re
import sys

import pytest
from handmade import NASTY, assert_harmless, neurons_of, pairs_of

from embspace_lens import EmbspaceError
from embspace_lens.display import html
from embspace_lens.display.tokens import display


def test_styles_apply_to_our_tables_only(lens):
    css = re.search(r"<style>(.*)</style>", lens.neurons(k=2).embspace.show()._repr_html_(), re.S).group(1)
    css = re.sub(r"@media[^{]*\{", "", css)
    selectors = [part.strip() for group in re.findall(r"([^{}]+)\{", css) for part in group.split(",")]
    assert len(selectors) > 10
    assert all(selector.startswith((".esl", ".esl-table")) for selector in selectors)


@pytest.mark.parametrize("token", NASTY)
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
