"""What readers see: tokens, terminal tables, HTML, labels, plots and the report."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from embspace_lens.show import plot_heads, plot_pairs, plot_plane, plot_tokens, write_report

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.display import html, terminal
from embspace_lens.display import theme as look
from embspace_lens.display.table_groups import count, head, units
from embspace_lens.display.tokens import chip, display, figures, for_terminal, pad, pair, pair_chip, width
from embspace_lens.files import write_whole
from embspace_lens.report import legible as choose
from embspace_lens.report.model_summary import find, find_word
from embspace_lens.tables.frames import tidy

NASTY = [
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
    names += [f"{end}_token_{what}" for end in ("dest", "src") for what in ("index", "string")]
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


# -- tokens


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" film", "␣film"),
        ("film", "film"),
        ("\n", "⏎"),
        ("a\n b\t", "a⏎␣b⇥"),
        ("\x00", "\\x00"),
        ("\u202ea", "\\u202ea"),
        ("Ġ", "Ġ"),
        ("<0xE2>", "<0xE2>"),
        ("", "∅"),
        ("\u0301", "◌\u0301"),
        ("\u200d", "\\u200d"),
        ("\xa0", "\\xa0"),
        ("👩‍👧", "👩‍👧"),
    ],
)
def test_display(token, shown):
    assert display(token) == shown


def test_figures():
    assert [figures(x) for x in (0.3932, 12.34, 1230.4, -0.05, 0.0, 1.0, 1.5e-7, float("nan"), -1e9)] == [
        "0.393",
        "12.3",
        "1,230",
        "−0.050",
        "0.000",
        "1.00",
        "1.50e-07",
        "n/a",
        "−1.00e+09",
    ]


def test_pair():
    assert pair(" not", " bad") == "␣not→␣bad"


def test_wide_and_rtl_tokens_take_their_columns():
    assert width(" 日本") == 5
    assert width(for_terminal("שלום")) == 4
    assert width(pad("日本", 6)) == 6
    assert for_terminal("film") == "film"


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


@pytest.mark.parametrize("token", NASTY)
def test_chips_are_escaped_and_say_all(token):
    parsed = assert_harmless(chip(token, 7, -0.5, 0.3) + pair_chip(token, token, 1, 2, 0.5, 1.0))
    titles = [value for name, value in parsed.attributes if name == "title"]
    assert titles[0] == f"{display(token)}, id 7, score −0.500"
    assert "".join(parsed.text) == f"{display(token)}{display(token)}→{display(token)}"
    assert ("class", "esl-chip esl-negative") in parsed.attributes or (
        "class",
        "esl-chip esl-muted esl-negative",
    ) in parsed.attributes


# -- units


def test_names_of_units(lens, moe_lens):
    assert [unit.name for unit in units(lens.neurons(1, 3, k=1))] == ["L1N3", "L1N3"]
    assert next(units(lens.ov(1, 2, k=1))).name == "L1H2"
    assert next(units(lens.subheads(1, 2, weight="W_V", k=1))).name == "L1H2.0"
    assert next(units(moe_lens.neurons(0, 5, weight="W_out", k=1))).name == "L0E0N5"
    assert [unit.weight for unit in units(lens.singular(0, 0, n_directions=1, k=1))] == ["W_OV 0 read", "W_OV 0 write"]
    assert next(units(lens.directions(torch.ones(lens.weights.d_model), names="mine", k=1))).name == "mine"


def test_head_keeps_whole_units(lens):
    df = lens.neurons(k=3)
    assert head(df, 2).equals(df.head(6))
    assert count(df) == len(df) // 3


# -- terminal


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("columns", [100, 60])
def test_terminal_tables_are_lines_that_fit(lens, name, columns):
    text = terminal.render(TABLES[name](lens), columns=columns)
    assert max(map(width, text.splitlines())) <= columns
    assert not set("│─┌┐└┘") & set(text)


def test_terminal_line():
    lines = terminal.render(neurons_of([" film", " films", " movies"], ["W_out"]), hint="Next: x").splitlines()
    assert lines == [
        "unit    weight   best  tokens, best first",
        "L3N120  W_out   0.900  ␣film ␣films ␣movies",
        "",
        "Next: x",
    ]


def test_terminal_says_what_is_left_out():
    df = pd.concat([neurons_of([" a"], ["W_out"], neuron=n) for n in range(5)], ignore_index=True)
    assert terminal.render(df, n=2).splitlines()[-1] == "… 3 more of 5"
    assert terminal.render(df, n=5).splitlines()[-1].startswith("L3N4")
    assert "nothing was selected" in terminal.render(df.head(0))


def test_terminal_stays_in_columns_with_nasty_tokens():
    df = pd.concat(
        [neurons_of([t, *NASTY], ["W_out"], neuron=n) for n, t in enumerate([*NASTY, "x" * 300])], ignore_index=True
    )
    lines = terminal.render(df).splitlines()
    assert len(lines) == len(NASTY) + 2
    assert max(map(width, lines)) <= 100
    assert lines[-1].endswith("x…")
    assert "\x1b" not in "".join(lines) and "\u202e" not in "".join(lines)


def test_terminal_pairs_point_the_right_way():
    ov, qk = pairs_of([" a", " b"]), pairs_of([" a", " b"], "W_QK")
    assert terminal.render(ov).splitlines()[1] == "L2H5  W_OV    0.500  ␣a→␣b ␣b→␣a"
    assert terminal.render(qk).splitlines()[1] == "L2H5  W_QK    0.500  ␣b→␣a ␣a→␣b"


def test_terminal_search_by_weight(lens):
    df = lens.search(5, weight=["W_out", "W_V"], k=2)
    lines = terminal.render(df).splitlines()
    assert lines[0] == "weight  who scores w5 highest"
    assert re.fullmatch(r"W_out   L\dN\d+ \d\.\d\d\d?  L\dN\d+ \d\.\d\d\d?", lines[1])
    assert re.fullmatch(r"W_V     L\dH\d\.\d \d\.\d\d\d?  L\dH\d\.\d \d\.\d\d\d?", lines[2])


# -- the accessor


@pytest.mark.parametrize("name", TABLES)
def test_show_of_every_table(lens, name):
    df = TABLES[name](lens)
    shown = df.embspace.show(n=2)
    assert repr(shown) == terminal.render(df, n=2)
    parsed = assert_harmless(shown._repr_html_())
    assert parsed.tags.count("tr") == 3
    assert "prefers-color-scheme: dark" in shown._repr_html_()
    if name == "directions":
        assert "<i>b</i>" in parsed.text


def test_html_styles_are_scoped(lens):
    css = re.search(r"<style>(.*)</style>", lens.neurons(k=2).embspace.show()._repr_html_(), re.S).group(1)
    css = re.sub(r"@media[^{]*\{", "", css)
    selectors = [part.strip() for group in re.findall(r"([^{}]+)\{", css) for part in group.split(",")]
    assert len(selectors) > 10
    assert all(selector.startswith((".esl", ".esl-table")) for selector in selectors)


@pytest.mark.parametrize("token", NASTY)
def test_html_of_nasty_tokens(token):
    for df in (neurons_of([token, " x"]), pairs_of([token, " x"])):
        parsed = assert_harmless(df.embspace.show()._repr_html_())
        assert display(token) in "".join(parsed.text)


@pytest.mark.parametrize("name", [name for name in TABLES if name != "components"])
def test_label_has_one_row_a_unit(lens, name):
    df = TABLES[name](lens)
    labels = df.embspace.label(k=2)
    assert len(labels) == count(df)
    assert labels.columns[-1] == "label" and isinstance(labels.index, pd.RangeIndex)
    assert not {"rank", "score"} & set(labels.columns)
    merged = df.merge(labels, on=list(labels.columns[:-1]))
    assert len(merged) == len(df)


def test_label_reads():
    assert neurons_of([" a", " b", "c"]).embspace.label(k=2)["label"].tolist() == ["␣a ␣b", "␣a ␣b"]
    assert pairs_of([" a", " b"]).embspace.label()["label"].tolist() == ["␣a→␣b ␣b→␣a"]
    assert pairs_of([" a", " b"], "W_QK").embspace.label()["label"].tolist() == ["␣b→␣a ␣a→␣b"]
    shuffled = neurons_of([" a", " b"], ["W_out"]).iloc[::-1]
    assert shuffled.embspace.label()["label"].tolist() == ["␣a ␣b"]
    assert neurons_of([]).embspace.label().columns.tolist() == ["layer", "neuron", "weight", "label"]


def test_accessor_refuses_what_is_not_ours(lens):
    other = pd.DataFrame({"a": [1]})
    for call in (other.embspace.show, other.embspace.label, other.embspace.plot):
        with pytest.raises(EmbspaceError, match=r"not one of EmbeddingLens's tables.*'a'"):
            call()
    with pytest.raises(EmbspaceError, match=r"label\(\) takes a table of .*; this one is of components\(\)"):
        lens.components().embspace.label()
    with pytest.raises(EmbspaceError, match="plot"):
        lens.components().embspace.plot()
    for n in (0, -1, True, 2.5):
        with pytest.raises(EmbspaceError, match=f"n={n!r} is not a positive number"):
            lens.neurons(k=1).embspace.show(n=n)
        with pytest.raises(EmbspaceError, match=f"k={n!r} is not a positive number"):
            lens.neurons(k=1).embspace.label(k=n)


# -- plots


def texts(figure):
    return figure.to_json()


def test_plot_dispatches(lens):
    assert len(lens.neurons(0, 3, k=4).embspace.plot().data) == 2
    assert lens.ov(0, [0, 1], k=4).embspace.plot().data[0].mode == "lines"
    many = pd.concat([pairs_of([" a", " b"], head=h) for h in range(12)], ignore_index=True)
    assert many.embspace.plot().data[0].type == "heatmap"
    assert len(lens.search(5, k=2).embspace.plot().data) == 6
    assert len(lens.singular(0, 0, n_directions=1, k=3).embspace.plot().data) == 2


def test_plot_tokens_draws_both_weights_side_by_side(lens):
    df = lens.neurons(1, 7, k=5)
    figure = plot_tokens(df, k=4)
    assert figure.layout.title.text == "What neuron L1N7 reads, and what it writes"
    assert [len(bar.y) for bar in figure.data] == [4, 4]
    np.testing.assert_array_equal(figure.data[1].x, df[df["weight"] == "W_out"]["score"].head(4))
    assert list(figure.layout.yaxis2.ticktext) == df[df["weight"] == "W_out"]["token_string"].head(4).tolist()
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # best on top


def test_plots_refuse_too_many(lens):
    with pytest.raises(EmbspaceError, match=r"plot_tokens\(\) draws at most .* this table holds 192"):
        plot_tokens(lens.neurons(k=1))
    with pytest.raises(EmbspaceError, match=r"plot_tokens\(\) draws at most 6 at a time, and this table holds 7"):
        plot_tokens(lens.neurons(0, range(7), weight="W_out", k=1))
    many = pd.concat([pairs_of([" a", " b"], head=h) for h in range(10)], ignore_index=True)
    with pytest.raises(EmbspaceError, match=r"plot_pairs\(\) draws at most 9.*holds 10.*plot_heads"):
        plot_pairs(many)
    with pytest.raises(EmbspaceError, match="at most 6"):
        plot_plane(lens, lens.weights.W_out(0)[:7])
    for draw in (plot_tokens, plot_pairs):
        with pytest.raises(EmbspaceError, match="nothing to draw"):
            draw(neurons_of([]) if draw is plot_tokens else pairs_of([" a"]).head(0))
    with pytest.raises(EmbspaceError, match=r"plot_pairs\(\) takes a table of ov\(\) or qk\(\)"):
        plot_pairs(neurons_of([" a"]))


def test_plot_pairs_has_a_line_for_each_pair():
    df = pairs_of([" a", " b", " c"])
    figure = plot_pairs(df)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 3
    assert "What head L2H5 moves" in figure.layout.title.text
    assert {line.hovertext.split("<br>")[1] for line in lines} == {"␣a→␣c", "␣b→␣b", "␣c→␣a"}


def test_plot_heads_puts_layer_0_on_top(lens):
    df = lens.ov(k=3)
    figure = plot_heads(df)
    best = df[df["rank"] == 0].pivot(index="layer", columns="head", values="score").to_numpy()
    np.testing.assert_array_equal(figure.data[0].z, best)
    assert figure.layout.yaxis.autorange == "reversed" and figure.layout.yaxis.scaleanchor == "x"
    assert "layer 1, head 2" in figure.data[0].hovertext[1][2] and "→" in figure.data[0].hovertext[1][2]


def test_plot_heads_of_any_number():
    effects = pd.DataFrame({"layer": [0, 0, 2], "head": [0, 2, 1], "value": [0.5, -0.25, 0.1]})
    figure = plot_heads(effects, "value")
    assert figure.data[0].zmin == -0.5 and figure.data[0].zmax == 0.5  # zero in the middle of blue and orange
    assert np.isnan(figure.data[0].z).sum() == 6
    with pytest.raises(EmbspaceError, match=r"needs 'layer', 'head' and 'score'; 'score' is not there"):
        plot_heads(effects)
    with pytest.raises(EmbspaceError, match="several values of 'value'"):
        plot_heads(pd.concat([effects, effects]), "value")
    with pytest.raises(EmbspaceError, match="draws one weight, and this table holds W_OV, W_QK"):
        plot_heads(pd.concat([pairs_of([" a"]), pairs_of([" a"], "W_QK")]))
    with pytest.raises(EmbspaceError, match="holds none"):
        plot_heads(effects.assign(value="a"), "value")
    with pytest.raises(EmbspaceError, match="no finite number"):
        plot_heads(effects.assign(value=np.nan), "value")


def test_plot_plane_is_the_same_each_time(lens):
    vector = lens.weights.W_out(0)[3]
    one, two = plot_plane(lens, vector, k=20), plot_plane(lens, vector, k=20)
    np.testing.assert_array_equal(one.data[0].x, two.data[0].x)
    assert len(one.data[0].x) == 20 and "t-SNE" in one.layout.title.subtitle.text
    few = plot_plane(lens, lens.neurons(0, [1, 2], weight="W_out", k=4))
    assert "principal components" in few.layout.title.subtitle.text and len(few.data) == 2
    with pytest.raises(EmbspaceError, match="three tokens or more, and was given 2"):
        plot_plane(lens, vector, k=2)
    with pytest.raises(EmbspaceError, match="takes a table of neurons"):
        plot_plane(lens, lens.ov(0, 0, k=3))


def test_plots_show_tokens_as_text():
    bars = plot_tokens(neurons_of(NASTY))
    lines = plot_pairs(pairs_of(NASTY))
    shown = [*bars.layout.yaxis.ticktext, *bars.data[0].hovertext]
    shown += [text for trace in lines.data for text in (trace.text or ())]
    for text in shown:
        assert not re.search(r"<(?!br>score|br>[^<]*\(id)", text), text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bars.layout.yaxis.ticktext[0]


def test_missing_plotly_is_a_sentence(monkeypatch, lens):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(EmbspaceError, match=r"needs plotly, .* pip install 'embspace-lens\[plots\]'"):
        lens.neurons(0, 0, k=2).embspace.plot()


def test_missing_jinja_is_a_sentence(monkeypatch, lens):
    html.environment.cache_clear()
    html.stylesheet.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EmbspaceError, match=r"needs jinja2, .* pip install 'embspace-lens\[plots\]'"):
        lens.neurons(0, 0, k=2).embspace.show()._repr_html_()


# -- colours


@pytest.mark.parametrize("palette", [look.LIGHT, look.DARK])
def test_contrast(palette):
    for ground in (palette.page, palette.card):
        assert look.contrast(palette.text, ground) >= 7
        assert look.contrast(palette.quiet, ground) >= 4.5
        for tint in (palette.tint, palette.tint_negative):
            assert look.contrast(palette.text, look.blend(ground, tint, look.TINT)) >= 4.5


def test_numbers_in_cells_can_be_read():
    for share in np.linspace(0, 1, 101):
        for ground in (look.sequential(share), look.diverging(share)):
            assert look.contrast(look.readable_on(ground), ground) >= 4.5
    for colour in (*look.SERIES, look.BLUE, look.ORANGE, look.LIGHT.quiet):
        assert look.contrast(colour, "#ffffff") >= 4.5


# -- choosing


def test_alike_is_the_mean_cosine(lens):
    df = lens.neurons(0, range(4), weight="W_out", k=5)
    judge = choose._Judge(lens)
    found = choose.alike(lens, df, judge)
    assert found.columns.tolist() == ["layer", "neuron", "weight", "similarity"]
    for row in found.to_dict("records"):
        tokens = df[df["neuron"] == row["neuron"]]["token_index"].to_numpy().copy()
        rows = judge.sides["write"][torch.from_numpy(tokens)] * torch.from_numpy(judge.words[tokens])[:, None]
        cosines = (rows @ rows.T).fill_diagonal_(0).sum() / 20
        assert row["similarity"] == pytest.approx(cosines.item(), abs=1e-5)


def test_alike_of_pairs_wants_several_tokens(lens):
    df = lens.ov(0, 0, k=4)
    one_source = df.assign(src_token_index=df["src_token_index"].iloc[0])
    one_each = one_source.assign(dest_token_index=df["dest_token_index"].iloc[0])
    assert choose.alike(lens, one_each)["similarity"].tolist() == [0.0]
    assert choose.alike(lens, df.head(0)).empty


def test_chosen_neurons_are_spread_and_different(lens, moe_lens, tiny):
    df = choose.legible_neurons(lens, 6, k=4)
    chosen = df[["layer", "neuron"]].drop_duplicates()
    assert len(chosen) == 6
    assert chosen["layer"].value_counts().max() <= 3
    written = df[df["weight"] == "W_out"].groupby(["layer", "neuron"])["token_index"].agg(set).tolist()
    assert all(len(a & b) <= 0.2 * 4 for i, a in enumerate(written) for b in written[:i])
    everything = lens.neurons(k=4)
    assert len(df.merge(everything)) == len(df)
    uneven = EmbeddingLens(tiny("qwen2_moe"))  # experts of 16 neurons, a shared one of 24, a dense layer of 48
    found = find(uneven)
    assert len(found.neurons[["layer", "expert", "neuron"]].drop_duplicates()) == 6
    assert found.word.groupby(["layer", "expert", "neuron", "weight"], observed=True).ngroups == 6
    experts = choose.legible_neurons(moe_lens, 3, k=4)
    assert len(experts[["layer", "expert", "neuron"]].drop_duplicates()) == 3


def test_chosen_neurons_on_the_demo_model(demo_lens):
    df = choose.legible_neurons(demo_lens, 6)
    alike = choose.alike(demo_lens, df[df["weight"] == "W_out"])["similarity"]
    every = choose.alike(demo_lens, demo_lens.neurons(weight="W_out", k=10))["similarity"]
    assert alike.min() > every.quantile(0.95)  # the control: what neurons reach that were not chosen


# -- the report


def test_report_is_one_harmless_file(lens, tmp_path):
    path = write_report(lens, tmp_path / "report.html", word="w7")
    page = path.read_text(encoding="utf-8")
    parsed = assert_harmless(page)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert page.count("<h2") == 4 and page.startswith("<!doctype html>")
    assert len(page) < 200_000
    assert parsed.tags.count("code") == 4
    cells = [name for name, _ in parsed.attributes if name == "tabindex"]
    assert len(cells) == 2 * lens.weights.n_layers * lens.weights.n_heads  # every head, by keyboard too


def test_report_escapes_what_models_and_tokens_are_called(lens, tmp_path):
    strings = lens.vocabulary.strings.copy()
    strings[: len(NASTY)] = NASTY
    named = EmbeddingLens.__new__(EmbeddingLens)
    for field in ("weights", "space", "mask", "_reader"):
        object.__setattr__(named, field, getattr(lens, field))
    vocabulary = type(lens.vocabulary)(lens.vocabulary.tokenizer, len(lens.vocabulary), "x")
    vocabulary.__dict__["_decoded"] = strings, lens.vocabulary.whole
    object.__setattr__(named, "vocabulary", vocabulary)
    object.__setattr__(named, "_reader", type(lens._reader)(lens.weights, lens.space, vocabulary))
    object.__setattr__(named, "name", "<script>evil</script>")
    page = write_report(named, tmp_path / "r.html", word=NASTY[0], model="x; rm -rf ~ <script>").read_text("utf-8")
    parsed = assert_harmless(page)
    assert "<script>evil</script>" in parsed.text
    assert "--model 'x; rm -rf ~ <script>'" in "".join(parsed.text)


def test_report_of_models_without_mlp_or_attention(tmp_path):
    import zoo

    page = write_report(EmbeddingLens(zoo.NATIVE["native_attn_only"]()), tmp_path / "r.html").read_text("utf-8")
    assert "Heads" in page and "Who writes" not in page


def test_word_is_found_with_and_without_its_space(lens, demo_lens):
    assert demo_lens.vocabulary.strings[find_word(demo_lens, "film")] == " film"
    assert find_word(demo_lens, " film") == find_word(demo_lens, "film")
    assert demo_lens.vocabulary.strings[find_word(demo_lens, None)].startswith(" ")
    assert find_word(lens, None) == 0
    with pytest.raises(EmbspaceError, match="tokens in this vocabulary"):
        find_word(demo_lens, "antidisestablishment")
    with pytest.raises(EmbspaceError, match="not among the"):
        find_word(demo_lens, "!")


def test_report_of_the_demo_model(demo_lens, tmp_path):
    found = find(demo_lens, word="film")
    assert found.text == " film" and found.neurons["weight"].iloc[0] == "W_out"
    page = write_report(demo_lens, tmp_path / "r.html", word="film").read_text("utf-8")
    assert "Large Movie Review Dataset" in page and "film" in page


# -- files


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(EmbspaceError, match=r"cannot be written: No space left. Nothing was changed"):
        write_whole(path, b"after")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    assert write_whole(path, b"after").read_bytes() == b"after"
    with pytest.raises(EmbspaceError, match=r"is a folder. Name a file"):
        write_whole(tmp_path, b"")
    with pytest.raises(EmbspaceError, match=r"is not a folder. Make it first"):
        write_whole(tmp_path / "no" / "a.txt", b"")
