"""The site of factors: what is written, and what headless Chromium makes of it."""

import html
import json
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.factors import Activity, Factors, activity
from embspace_lens.site import explore, pages
from embspace_lens.site.pages import script_json
from embspace_lens.site.site_data import Book, bucket
from embspace_lens.tables.frames import tidy

pytest.importorskip("jinja2", reason="the site needs jinja2")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open pages with")
TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4", "w3 w3 w3 w5"]


@pytest.fixture(scope="module")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)


@pytest.fixture(scope="module")
def seen(tiny, factors):
    return activity(factors, tiny("gpt2"), TEXTS, n=3, n_contexts=4)


@pytest.fixture(scope="module")
def site(tiny, factors, seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    return explore(factors, folder, model=tiny("gpt2"), seen=seen, title="tiny", about={"Texts": "six <lines>"})


def given(path):
    """What a data file gives, and its name."""
    text = path.read_text(encoding="utf-8")
    name, value = re.fullmatch(r"esl\.give\((\"[^\"]*\"),(.*)\);\n", text, re.S).groups()
    return json.loads(name), json.loads(value)


def dom(page, fragment="", script=None, tmp_path=None, width=1200):
    """The page as Chromium has it once its scripts ran; `script` is run at the end, in a copy of the folder."""
    if script is not None:
        shutil.copytree(page.parent, tmp_path / "copy", dirs_exist_ok=True)
        page = tmp_path / "copy" / page.name
        page.with_name("drive.js").write_text(script, encoding="utf-8")
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", '<script src="drive.js"></script></body>'), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={width},900",
    ]
    command += ["--virtual-time-budget=8000", "--dump-dom", f"{page.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def rows_of(text):
    return [int(n) for n in re.findall(r'href="factor\.html#(\d+)"[^>]*><b>', text)]


def test_the_data_are_the_tables(site, seen, factors, tiny):
    name, overview = given(site / "data" / "overview.js")
    assert name == "overview" and len(overview["rows"]) == 12
    curves = seen.importance.pivot(index="factor", columns="layer", values="importance")
    lens = EmbeddingLens(tiny("gpt2"))
    near = lens.directions(factors.directions, names=[str(i) for i in range(12)], k=10)
    unit = factors.directions / factors.directions.norm(dim=1, keepdim=True)
    for factor in range(12):
        name, head = given(site / "data" / "f" / str(factor) / "head.js")
        assert name == f"f/{factor}/head"
        np.testing.assert_allclose(head["curve"], curves.loc[factor], rtol=6e-3)
        peak = int(np.argmax(curves.loc[factor].to_numpy()))
        assert head["peak"] == overview["rows"][factor][2] == peak
        own = near[near["direction"] == str(factor)]
        assert [chip[1] for chip in head["nearest"][0]] == own["token_index"].tolist()
        assert [chip[0].replace("␣", " ") for chip in head["nearest"][0]] == own["token_string"].tolist()
        cosine = (unit @ unit[factor]).tolist()
        expected = sorted((i for i in range(12) if i != factor), key=lambda i: -cosine[i])[:8]
        assert [n for n, _ in head["neighbours"]] == expected
        assert [c for _, c in head["neighbours"]] == pytest.approx([cosine[i] for i in expected], abs=1e-3)
        for place, layer in enumerate([-1, 0, 1]):
            _, contexts = given(site / "data" / "f" / str(factor) / f"{place}.js")
            table = seen.contexts[(seen.contexts["factor"] == factor) & (seen.contexts["layer"] == layer)]
            assert [row[4:6] for row in contexts] == table[["example", "pos"]].to_numpy().tolist()
            assert [row[1] for row in contexts] == table["before"].tolist()
            assert [row[2].replace("␣", " ") for row in contexts] == table["token_string"].tolist()
            assert [row[0] for row in contexts] == pytest.approx(table["code"].tolist(), rel=6e-3)
            assert head["n"][place] == len(table)
            counted = Counter(table["token_string"].str.replace(" ", "␣")).most_common(12)
            assert sorted(map(tuple, head["words"][place])) == sorted(counted)
        tokens = overview["tokens"]
        common = [tokens[i] for i in overview["rows"][factor][6]]
        assert common == [word for word, _ in head["words"][peak]][:3]
        strongest = head["words"][peak]
        if strongest:
            assert overview["rows"][factor][1] == round(100 * strongest[0][1] / head["n"][peak])


def test_the_index_finds_targets_and_nearest_tokens(site, seen, factors):
    book = Book(factors, seen, None, None, None)
    for factor in range(12):
        for word, (percent, _) in book.words(factor).items():
            _, index = given(site / "data" / "w" / f"{bucket(word)}.js")
            flat = index[word]
            assert [factor, percent] in [flat[i : i + 2] for i in range(0, len(flat), 3)]
    table = seen.contexts
    for word in set(table["token_string"].str.strip()):
        _, index = given(site / "data" / "w" / f"{bucket(word)}.js")
        assert set(index[word][::3]) >= set(table.loc[table["token_string"].str.strip() == word, "factor"])


@needs_chromium
def test_the_overview_in_a_browser(site, tmp_path):
    page = site / "index.html"
    text = dom(page)
    assert 'data-ready="1"' in text and rows_of(text) == list(range(12))
    assert re.search(r'aria-label="Factor 0; [^"]*targets w', text)
    assert "12 transformer factors of tiny" in html.unescape(text) and "12 factors" in text
    _, overview = given(site / "data" / "overview.js")
    sharp = sorted(range(12), key=lambda f: (-overview["rows"][f][1], f))
    assert rows_of(dom(page, "#sort=sharp")) == sharp
    words = [f for f in range(12) if overview["rows"][f][0] == "w"]
    assert rows_of(dom(page, "#level=w")) == words
    _, index = given(site / "data" / "w" / f"{bucket('w3')}.js")
    found = rows_of(dom(page, "#q=w3"))
    assert set(found) == {f for word in index if word.startswith("w3") for f in index[word][::3]}
    assert set(found[: len(set(index["w3"][::3]))]) == set(index["w3"][::3]), "the word itself before longer ones"
    assert "best first" in dom(page, "#q=%E2%90%A3W3")
    assert rows_of(dom(page, "#q=7"))[0] == 7
    nothing = dom(page, "#q=zzzz%3Cb%3E")
    assert rows_of(nothing) == [] and "hold “zzzz&lt;b&gt;”" in nothing


@needs_chromium
def test_the_keyboard(site, tmp_path):
    press = """
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const wait = (test) => new Promise((go) => { const look = () => test() ? go() : setTimeout(look, 20); look(); });
    (async () => {
      await wait(() => document.body.dataset.ready);
      const seen = [];
      press("/"); seen.push(document.activeElement.id);
      press("ArrowDown"); seen.push(document.activeElement.hash);
      press("ArrowDown"); seen.push(document.activeElement.hash);
      press("ArrowUp"); press("ArrowUp"); seen.push(document.activeElement.id);
      document.getElementById("q").value = "5";
      document.getElementById("q").dispatchEvent(new Event("input"));
      await wait(() => document.querySelectorAll("#rows a")[0].hash === "#5");
      seen.push("found 5");
      press("Escape");
      await wait(() => document.querySelectorAll("#rows a")[0].hash === "#0");
      document.querySelector('[data-key="sort-importance"]').click();
      await wait(() => location.hash === "#sort=importance");
      seen.push(document.querySelectorAll('[aria-pressed="true"]').length);
      document.body.dataset.seen = JSON.stringify(seen);
    })();
    """
    text = dom(site / "index.html", script=press, tmp_path=tmp_path)
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', text).group(1)))
    assert seen == ["q", "#0", "#1", "q", "found 5", 2]


@needs_chromium
def test_a_factor_in_a_browser(site, seen, tmp_path):
    _, head = given(site / "data" / "f" / "3" / "head.js")
    text = dom(site / "factor.html", "#3")
    assert "<h1>Factor 3</h1>" in text and f'data-ready="3/{head["peak"]}"' in text
    plain = re.sub(r"<[^>]*>", "", text)
    word, count = head["words"][head["peak"]][0]
    share = round(100 * count / head["n"][head["peak"]])
    assert f"{share} % of its {head['n'][head['peak']]} strongest targets there are {word}." in html.unescape(plain)
    layer = [-1, 0, 1][head["peak"]]
    table = seen.contexts[(seen.contexts["factor"] == 3) & (seen.contexts["layer"] == layer)]
    assert text.count('<td class="target">') == len(table)
    assert text.count("<circle") == 3 and "Importance by layer: the embedding" in text
    other = (head["peak"] + 1) % 3
    assert f'data-ready="3/{other}"' in dom(site / "factor.html", f"#3/{other}")
    assert "There is no factor 99" in dom(site / "factor.html", "#99")
    assert "There is no factor" in dom(site / "factor.html", "#%3Cscript%3E")
    moved = """
    (async () => {
      const wait = (test) => new Promise((go) => { const look = () => test() ? go() : setTimeout(look, 20); look(); });
      const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      await wait(() => document.body.dataset.ready === "3/1");
      press("]"); await wait(() => document.body.dataset.ready === "3/2");
      press("]"); press("["); press("["); await wait(() => document.body.dataset.ready === "3/0");
      press("ArrowRight"); await wait(() => document.title.startsWith("Factor 4,"));
      press("ArrowLeft"); await wait(() => document.title.startsWith("Factor 3,"));
      document.body.dataset.seen = "all";
    })();
    """
    assert 'data-seen="all"' in dom(site / "factor.html", "#3/1", moved, tmp_path)


@needs_chromium
def test_missing_data_are_told(site, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(site, folder)
    (folder / "data" / "f" / "2" / "head.js").unlink()
    (folder / "data" / "f" / "3" / "1.js").write_text("esl.give(")
    assert "Factor 2 is missing: f/2/head.js could not be read." in dom(folder / "factor.html", "#2")
    assert "The contexts are missing: f/3/1.js could not be read." in dom(folder / "factor.html", "#3/1")
    (folder / "data" / "overview.js").unlink()
    assert "The list of factors is missing" in dom(folder / "index.html")


def test_how_it_was_made(site, seen):
    text = html.unescape((site / "about.html").read_text(encoding="utf-8"))
    assert "six <lines>" in text and "six <lines>" not in (site / "about.html").read_text(encoding="utf-8")
    assert "12 factors of width 32, λ = 0.2" in text and "torch" in text and "arXiv 2103.15949" in text
    for row in seen.measures.to_dict("records"):
        assert f"{row['explained_variance']:.3f}".replace("-", "−") in text and f"{row['n_active']:.1f}" in text


def test_nothing_is_loaded_from_elsewhere(site):
    for path in [*site.glob("*.html"), *site.glob("*.css"), *site.glob("*.js")]:
        text = path.read_text(encoding="utf-8")
        found = set(
            re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//[^\n]*\n", "\n", text) if path.suffix == ".js" else text)
        )
        assert found <= {"//www.w3.org", "http://www.w3.org"}, path
        assert "fetch(" not in text and "innerHTML" not in text and "eval(" not in text


# -- what texts can do to pages

HOSTILE = [
    "<script>document.body.dataset.broken='1'</script> </script> <img src=x onerror=document.body.dataset.broken='1'>",
    "שלום עולם مرحبا بالعالم \u202egnp.exe",
    "🏳️‍🌈 👩‍👩‍👧 é \u0301 \x00 \x1b[31m \u2028 \u2029",
    "long " * 10_000,
    "",
    " ",
    "'\"&amp;\\u003cb\\u003e\\",
]


def hostile_activity(factors, layers=(0, 1)):
    """Contexts and targets of hostile text, for every factor and layer."""
    blocks = [
        (factor, layer, rank, text)
        for factor in range(factors.n_factors)
        for layer in layers
        for rank, text in enumerate(HOSTILE)
    ]
    columns = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]
    factor, layer, rank, text = (np.array(part, dtype=object) for part in zip(*blocks))
    contexts = tidy(
        columns,
        [
            {
                "factor": factor.astype(int),
                "layer": layer.astype(int),
                "rank": rank.astype(int),
                "token_index": rank.astype(int),
                "token_string": text,
                "example": rank.astype(int),
                "pos": rank.astype(int),
                "code": 9.0 - rank.astype(float),
                "before": text,
                "after": text[::-1],
            }
        ],
    )
    n = factors.n_factors * len(layers)
    importance = tidy(
        ["factor", "layer", "importance"],
        [{"factor": np.repeat(np.arange(factors.n_factors), len(layers)), "layer": np.tile(layers, factors.n_factors), "importance": np.linspace(1, 2, n)}],
    )  # fmt: skip
    measures = tidy(
        ["layer", "n_vectors", "objective", "explained_variance", "n_active"],
        [{"layer": np.array(layers), "n_vectors": np.array([7] * len(layers)), "objective": np.ones(len(layers)), "explained_variance": np.ones(len(layers)), "n_active": np.ones(len(layers))}],
    )  # fmt: skip
    return Activity(importance, measures, contexts)


@pytest.fixture(scope="module")
def hostile(factors, tmp_path_factory):
    few = Factors(factors.directions[:3], l1=0.2)
    folder = tmp_path_factory.mktemp("hostile") / "pages"
    bad = HOSTILE[0]
    return explore(few, folder, seen=hostile_activity(few), title=bad, about={bad: bad})


def test_data_cannot_end_a_script(hostile):
    for path in hostile.rglob("*.js"):
        if path.parent != hostile:
            assert not set("<>&\u2028\u2029\x00\x1b\u202e") & set(path.read_text(encoding="utf-8")), path
    assert json.loads(script_json(HOSTILE[0])) == HOSTILE[0]
    for page in hostile.glob("*.html"):
        assert "<script>document" not in page.read_text(encoding="utf-8") and "<img" not in page.read_text(
            encoding="utf-8"
        )


@needs_chromium
@pytest.mark.parametrize("page", ["index.html", "factor.html#1/0", "about.html", "index.html#q=%3Cscript"])
def test_hostile_text_is_shown_and_does_nothing(hostile, page):
    name, _, fragment = page.partition("#")
    text = dom(hostile / name, f"#{fragment}" if fragment else "")
    assert "data-broken" not in re.sub(r"dataset\.broken", "", text) and "<img" not in text
    body = html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)))
    assert "<script>document.body.dataset.broken='1'</script>" in body.replace("␣", " ") or "#q" in page
    if name == "factor.html":
        assert 'data-ready="1/0"' in text and text.count('class="target"') >= len(HOSTILE)
        assert "שלום" in body and "\\u202e" in body and "🏳️‍🌈" in body and "\\x1b[31m" in body and "∅" in body
        assert "\u202e" not in body and len(body) < 60_000, "overrides are shown; long lines are cut"


@pytest.mark.parametrize("n_layers", [12])
def test_pages_stay_small_at_two_thousand_factors(tmp_path, n_layers):
    """2,000 factors × 12 layers × 200 contexts: every page's size depends on its own factor, so three have contexts."""
    rng = np.random.default_rng(0)
    n, k = 2000, 200
    words = np.array([f" {'abcdefghijklmnop'[i % 16]}{i * 7919 % 100_000:05d}" for i in range(5000)], dtype=object)
    factor = np.repeat([0, 1, 1999], n_layers * k)
    layer = np.tile(np.repeat(np.arange(n_layers), k), 3)
    token = rng.integers(5000, size=len(factor))
    text = np.array(["".join(words[rng.integers(5000, size=10)]) for _ in range(500)], dtype=object)
    block = {"factor": factor, "layer": layer, "rank": np.tile(np.arange(k), 3 * n_layers), "token_index": token, "token_string": words[token]}  # fmt: skip
    block |= {"example": token, "pos": token, "code": rng.random(len(factor)), "before": text[token % 500], "after": text[token % 499]}  # fmt: skip
    contexts = tidy(list(block), [block])
    curve = {"factor": np.repeat(np.arange(n), n_layers), "layer": np.tile(np.arange(n_layers), n), "importance": rng.random(n * n_layers)}  # fmt: skip
    importance = tidy(list(curve), [curve])
    numbers = np.ones(n_layers)
    measures = {"layer": np.arange(n_layers), "n_vectors": numbers.astype(int), "objective": numbers, "explained_variance": numbers, "n_active": numbers}  # fmt: skip
    seen = Activity(importance, tidy(list(measures), [measures]), contexts)
    factors = Factors(torch.randn(n, 16), l1=0.1)
    lens = FakeLens(words)
    site = explore(factors, tmp_path / "big", seen=seen, lens=lens)

    def size(*names):
        return sum((site / name).stat().st_size for name in names)

    shared = ("style.css", "common.js")
    first = size("index.html", "overview.js", "data/overview.js", *shared)
    own = size("factor.html", "factor.js", "data/f/1999/head.js", "data/f/1999/11.js", *shared)
    assert 100_000 < first < 300_000 and 30_000 < own < 100_000, (first, own)
    assert max(path.stat().st_size for path in (site / "data" / "w").iterdir()) < 100_000


class FakeLens:
    """As much of a lens as the site asks for, with other tokens for every direction."""

    name = "made up"

    class space:
        n_tokens, score = 5000, "dot"

    def __init__(self, words):
        self.words = words

    def directions(self, vectors, *, names, k, largest):
        token = np.arange(len(names) * k) * 31 % 5000
        block = {"direction": np.repeat(np.array(names, dtype=object), k), "rank": np.tile(np.arange(k), len(names)), "token_index": token}  # fmt: skip
        block |= {"token_string": self.words[token], "score": np.linspace(1, 0.1, len(token))}
        return tidy(list(block), [block])


# -- folders


def test_a_site_is_replaced_and_nothing_else_is(factors, seen, tmp_path):
    folder = tmp_path / "pages"
    explore(factors, folder, seen=seen)
    (folder / "data" / "f" / "11" / "left over.js").write_text("")
    explore(Factors(factors.directions, l1=0.3), folder, seen=seen)
    assert "λ = 0.3" in (folder / "about.html").read_text(encoding="utf-8")
    assert not (folder / "data" / "f" / "11" / "left over.js").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pages"], "nothing is left beside it"
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("kept")
    with pytest.raises(EmbspaceError, match="holds something that is not such a site"):
        explore(factors, other, seen=seen)
    assert (other / "dear.txt").read_text() == "kept"
    with pytest.raises(EmbspaceError, match="is a file. Name a folder"):
        explore(factors, other / "dear.txt", seen=seen)
    with pytest.raises(EmbspaceError, match="is not a folder. Make it first"):
        explore(factors, tmp_path / "no" / "such", seen=seen)


def test_a_full_disk_leaves_the_old_site(factors, seen, tmp_path, monkeypatch):
    folder = explore(factors, tmp_path / "pages", seen=seen)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    module = pages
    given_before = module._give
    calls = []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        given_before(*arguments)

    monkeypatch.setattr(module, "_give", full)
    with pytest.raises(EmbspaceError, match="cannot be written: No space left on device. Nothing was changed"):
        explore(factors, folder, seen=seen)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_what_is_missing_is_left_out(factors, seen, tiny, tmp_path):
    bare = explore(factors, tmp_path / "bare")
    _, head = given(bare / "data" / "f" / "0" / "head.js")
    assert head["curve"] == [] and head["nearest"] == [] and len(head["neighbours"]) == 8
    one = explore(factors, tmp_path / "one", seen=activity(factors, tiny("gpt2"), TEXTS, layers=[1], n_contexts=2))
    _, head = given(one / "data" / "f" / "0" / "head.js")
    assert head["level"] == "" and len(head["curve"]) == 1
    single = explore(Factors(factors.directions[:1], l1=0.1), tmp_path / "single")
    assert given(single / "data" / "f" / "0" / "head.js")[1]["neighbours"] == []
    few = Activity(*(table[table["factor"] < 3].reset_index(drop=True) if "factor" in table else table for table in (seen.importance, seen.measures, seen.contexts)))  # fmt: skip
    part = explore(factors, tmp_path / "part", seen=few)
    _, overview = given(part / "data" / "overview.js")
    assert [row[0] for row in overview["rows"]][3:] == [""] * 9 and all(row[0] for row in overview["rows"][:2])
    with pytest.raises(EmbspaceError, match="texts are read by a model"):
        explore(factors, tmp_path / "x", texts=TEXTS)
    with pytest.raises(EmbspaceError, match="seen speaks of factor 11, and there are 2"):
        explore(Factors(factors.directions[:2], l1=0.1), tmp_path / "x", seen=seen)
    assert not (tmp_path / "x").exists()


@needs_chromium
def test_without_texts_pages_still_read(factors, tmp_path, tiny):
    site = explore(factors, tmp_path / "bare", model=tiny("gpt2"))
    assert rows_of(dom(site / "index.html")) == list(range(12))
    text = dom(site / "factor.html", "#5")
    assert "No text was read for this site." in text and "Nearest tokens" in text and 'data-ready="5"' in text


@pytest.mark.parametrize(
    ("pieces", "before", "after", "wanted"),
    [
        (["the", "film", "##s", "good"], "the films", " good", ["␣the", "␣film", "s", "␣good"]),
        (["the", "␣film", "s", "␣good"], "the films", " good", ["the", "␣film", "s", "␣good"]),
        (["Ã", "©", "x", "␣y"], "é", "x y", ["Ã", "©", "x", "␣y"]),
    ],
)
def test_pieces_without_spaces_are_parted_as_the_text_is(factors, pieces, before, after, wanted):
    table = hostile_activity(factors)
    first = table.contexts.iloc[[0]].assign(before=before, after=after)
    table = Activity(table.importance, table.measures, first.reset_index(drop=True))
    factor, layer = int(first["factor"].iloc[0]), int(first["layer"].iloc[0])
    split = 3 if before != "é" else 2
    offsets = [i - split if i < split else i - split + 1 for i in range(4)]
    rows = {"factor": factor, "layer": layer, "rank": 0, "offset": offsets, "saliency": 1.0}
    rows["token_string"] = [piece.replace("␣", " ") for piece in pieces]
    (row,) = Book(factors, table, None, pd.DataFrame(rows), None).contexts(factor, layer)
    assert [token[1] for token in row[6]] == wanted and [token[0] for token in row[6]] == offsets


def test_names_that_would_turn_the_page_around_are_shown(factors, tmp_path):
    site = explore(factors, tmp_path / "pages", title="demo \u202e model", about={"Texts": "\u202egnp.exe"})
    for page in site.glob("*.html"):
        assert "\u202e" not in page.read_text(encoding="utf-8") and r"demo \u202e model" in page.read_text(
            encoding="utf-8"
        )


@needs_chromium
def test_keys_where_there_is_no_curve(factors, tmp_path):
    site = explore(factors, tmp_path / "bare")
    script = """
    addEventListener("error", (event) => { document.body.dataset.broken = event.message; });
    setTimeout(() => { for (const key of ["[", "]", "ArrowRight"]) document.dispatchEvent(new KeyboardEvent("keydown", { key })); }, 500);
    """
    text = dom(site / "factor.html", "#5", script, tmp_path)
    assert "data-broken" not in text and "Factor 6" in text


@needs_chromium
def test_saliency_tints_its_contexts(factors, seen, tmp_path):
    row = seen.contexts[(seen.contexts["code"] > 0.1) & (seen.contexts["pos"] > 1)].iloc[0]
    offsets = np.array([-2, -1, 0])
    block = {name: np.full(3, row[name]) for name in ("factor", "layer", "rank")}
    block |= {"offset": offsets, "token_index": np.arange(3), "token_string": np.array([" far", " near", " me"], dtype=object)}  # fmt: skip
    table = tidy([*block, "saliency"], [block | {"saliency": np.array([-0.2, 0.9, 1.0])}])
    site = explore(
        factors, tmp_path / "pages", seen=seen, saliency=pd.concat([table, table])
    )  # what is said twice is shown once
    place = [-1, 0, 1].index(row["layer"])
    text = dom(site / "factor.html", f"#{row['factor']}/{place}")
    assert 'class="tok minus" style="--s:0.20" title="saliency −0.2"> far</span>' in text
    assert 'class="tok strong" style="--s:0.90" title="saliency 0.9"> near</span>' in text
    assert text.count("> far</span>") == 1
    assert "Where it was computed, the tint is saliency" in text
