"""Hand-made tables with tokens that can break a page or a terminal, and a check that a page is safe."""

import re
from html.parser import HTMLParser

import numpy as np

from embspace_lens.tables.frames import tidy

UNSAFE_TOKENS = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' autofocus='",
    "&lt;b&gt;",
    "{{ 7 * 7 }}",
    "</style>",
    "שלום",
    " مرحبا",
    "\u202etxt.exe",
    "👩‍👩‍👧",
    " 日本語",
    "\n",
    "\t",
    "\x00\x1b[31m",
    "",
    "\u0301",
    "  two  ",
    "<b>bold</b><br>",
    "javascript:alert(1)",
]


def neurons_of(strings, weights=("W_in", "W_out"), layer=3, neuron=120):
    """A hand-made table of one neuron."""
    k = len(strings)
    blocks = [
        {
            "layer": layer,
            "neuron": neuron,
            "weight": weight,
            "rank": np.arange(k),
            "token_index": np.arange(k),
            "token_string": list(strings),
            "score": np.linspace(0.9, -0.2, k),
        }
        for weight in weights
    ]
    return tidy(["layer", "neuron", "weight", "rank", "token_index", "token_string", "score"], blocks)


def pairs_of(strings, weight="W_OV", layer=2, head=5, score=0.5):
    k = len(strings)
    names = ["layer", "head", "weight", "rank", "score"]
    names += [f"{end}_token_{field}" for end in ("dest", "src") for field in ("index", "string")]
    block = {
        "layer": layer,
        "head": head,
        "weight": weight,
        "rank": np.arange(k),
        "score": np.linspace(score, 0.1, k),
        "src_token_index": np.arange(k),
        "src_token_string": list(strings),
        "dest_token_index": np.arange(k)[::-1].copy(),
        "dest_token_string": list(strings)[::-1],
    }
    return tidy(names, [block])


TABLES = {
    "neurons": lambda lens: lens.neurons(k=3),
    "subheads": lambda lens: lens.subheads(layer=0, k=3),
    "ov": lambda lens: lens.ov(k=3),
    "qk": lambda lens: lens.qk(k=3),
    "singular": lambda lens: lens.singular(layer=0, head=0, n_directions=2, k=3),
    "directions": lambda lens: lens.directions(lens.weights.W_out(0)[:2], names=["a", "<i>b</i>"], k=3),
    "search": lambda lens: lens.search(5, k=3),
    "components": lambda lens: lens.components(),
}


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def assert_harmless(page):
    parsed = Tags(page)
    assert not {"script", "b", "i", "img", "iframe", "link", "object"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} | ({"autofocus", "src"} & names)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"https?://arxiv\S*", "", page))
    return parsed
