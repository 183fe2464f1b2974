"""The pages in headless Chromium: their content, the keyboard, and hostile text."""

import html
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from browser import listed_factors, needs_chromium, read_data, render
from hostile import HOSTILE

from embspace_lens.site import explore
from embspace_lens.site.site_data import bucket
from embspace_lens.tables.frames import tidy

pytestmark = needs_chromium


def test_overview_can_be_sorted_filtered_and_searched(site, tmp_path):
    page = site / "index.html"
    text = render(page)
    _, overview = read_data(site / "data" / "overview.js")
    assert 'data-ready="1"' in text and listed_factors(text) == overview["order"]
    assert listed_factors(render(page, "#sort=factor")) == list(range(12))
    assert re.search(r'aria-label="Factor 0; [^"]*targets w', text)
    assert "12 transformer factors of tiny" in html.unescape(text) and "12 factors" in text
    sharp = sorted(range(12), key=lambda f: (-overview["rows"][f][1], f))
    assert listed_factors(render(page, "#sort=sharpness")) == sharp
    code = next(row[0] for row in overview["rows"] if row[0])
    of_level = [f for f in overview["order"] if overview["rows"][f][0] == code]
    assert listed_factors(render(page, f"#level={code}")) == of_level
    _, index = read_data(site / "data" / "w" / f"{bucket('w3')}.js")
    matches = listed_factors(render(page, "#q=w3"))
    assert set(matches) == {f for word in index if word.startswith("w3") for f in index[word][::3]}
    assert set(matches[: len(set(index["w3"][::3]))]) == set(index["w3"][::3]), "the word itself before longer ones"
    assert "for “W3”" in html.unescape(render(page, "#q=W3")) and set(
        listed_factors(render(page, "#q=%E2%90%A3W3"))
    ) == set(matches)
    assert listed_factors(render(page, "#q=7"))[0] == 7
    page_without_matches = render(page, "#q=zzzz%3Cb%3E")
    assert (
        listed_factors(page_without_matches) == [] and "has “zzzz&lt;b&gt;” in its top contexts" in page_without_matches
    )


def test_overview_can_be_used_with_the_keyboard(site, tmp_path):
    press = """
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const wait = (test) => new Promise((go) => { const look = () => test() ? go() : setTimeout(look, 20); look(); });
    (async () => {
      await wait(() => document.body.dataset.ready);
      const log = [], hashes = [...document.querySelectorAll("#rows a")].map((link) => link.hash);
      const name = (hash) => (hash === hashes[0] ? "first" : hash === hashes[1] ? "second" : hash);
      press("/"); log.push(document.activeElement.id);
      press("ArrowDown"); log.push(name(document.activeElement.hash));
      press("ArrowDown"); log.push(name(document.activeElement.hash));
      press("ArrowUp"); press("ArrowUp"); log.push(document.activeElement.id);
      document.getElementById("q").value = "5";
      document.getElementById("q").dispatchEvent(new Event("input"));
      await wait(() => document.querySelectorAll("#rows a")[0].hash === "#5");
      log.push("factor 5");
      press("Escape");
      await wait(() => document.querySelectorAll("#rows a")[0].hash === hashes[0]);
      document.querySelector('[data-key="sort-importance"]').click();
      await wait(() => location.hash === "#sort=importance");
      log.push(document.querySelectorAll('[aria-pressed="true"]').length);
      document.body.dataset.log = JSON.stringify(log);
    })();
    """
    text = render(site / "index.html", script=press, tmp_path=tmp_path)
    log = json.loads(html.unescape(re.search(r'data-log="([^"]*)"', text).group(1)))
    assert log == ["q", "first", "second", "q", "factor 5", 2]


def test_factor_page_shows_its_data(site, activity_result, tmp_path):
    _, head = read_data(site / "data" / "f" / "3" / "head.js")
    text = render(site / "factor.html", "#3")
    assert "<h1>Factor 3</h1>" in text and f'data-ready="3/{head["peak"]}"' in text
    plain = re.sub(r"<[^>]*>", "", text)
    word, percent, n, _ = head["strong"]
    expected = "one strong context" if n == 1 else f"{percent} % of its {n} strong contexts there"
    assert expected in html.unescape(plain) and f"the target {word}." in html.unescape(plain)
    assert head["neurons"][0][0] in plain and head["heads"][0][0] in plain and "Codes after" in text
    layer = [-1, 0, 1][head["peak"]]
    table = activity_result.contexts[
        (activity_result.contexts["factor"] == 3) & (activity_result.contexts["layer"] == layer)
    ]
    assert text.count('<td class="target">') == len(table)
    assert (
        text.count("<circle") == 3
        and text.count("<rect") == len(head["codes"][head["peak"]])
        and "Importance by layer: the embedding" in text
    )
    other_layer = (head["peak"] + 1) % 3
    assert f'data-ready="3/{other_layer}"' in render(site / "factor.html", f"#3/{other_layer}")
    assert "There is no factor 99" in render(site / "factor.html", "#99")
    assert "There is no factor" in render(site / "factor.html", "#%3Cscript%3E")
    moved = """
    (async () => {
      const wait = (test) => new Promise((go) => { const look = () => test() ? go() : setTimeout(look, 20); look(); });
      const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      await wait(() => document.body.dataset.ready === "3/1");
      press("]"); await wait(() => document.body.dataset.ready === "3/2");
      press("]"); press("["); press("["); await wait(() => document.body.dataset.ready === "3/0");
      press("ArrowRight"); await wait(() => document.title.startsWith("Factor 4,"));
      press("ArrowLeft"); await wait(() => document.title.startsWith("Factor 3,"));
      document.body.dataset.log = "all";
    })();
    """
    assert 'data-log="all"' in render(site / "factor.html", "#3/1", moved, tmp_path)


def test_factor_page_links_to_the_tokens_and_factors_of_its_writers(site):
    _, head = read_data(site / "data" / "f" / "3" / "head.js")
    text = render(site / "factor.html", "#3")
    for name, cosine, written, read, others in [*head["neurons"], *head["heads"]]:
        details = re.search(rf'<details class="writer" id="{name}">.*?</details>', text).group()
        summary, unfolded = details.split("</summary>")
        layer, kind, index = re.fullmatch(r"L(\d)([NH])(\d+)", name).groups()
        label = f"{'neuron' if kind == 'N' else 'head'} {index} of layer {layer}"
        assert f'title="{label}"' in summary and f"{cosine:.2f}" in summary
        for part, tokens in ((summary, written), (unfolded, read)):
            chips = re.findall(r'class="esl-chip"[^>]*>(.*?)</bdi>', part)
            assert [html.unescape(re.sub(r"<[^>]*>", "", chip)) for chip in chips] == tokens
        assert re.findall(r'href="factor\.html#(\d+)"', unfolded) == [str(other) for other in others]
    assert "lens.neurons(" not in text


def test_missing_data_files_are_reported(site, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(site, folder)
    (folder / "data" / "f" / "2" / "head.js").unlink()
    (folder / "data" / "f" / "3" / "1.js").write_text("esl.give(")
    assert "Factor 2 cannot be shown: f/2/head.js could not be read." in render(folder / "factor.html", "#2")
    assert "The contexts cannot be shown: f/3/1.js could not be read." in render(folder / "factor.html", "#3/1")
    (folder / "data" / "overview.js").unlink()
    assert "The list of factors cannot be shown" in render(folder / "index.html")


@pytest.mark.parametrize("page", ["index.html", "factor.html#1/0", "about.html", "index.html#q=%3Cscript"])
def test_hostile_text_is_shown_and_not_executed(hostile_site, page):
    name, _, fragment = page.partition("#")
    text = render(hostile_site / name, f"#{fragment}" if fragment else "")
    assert "data-broken" not in re.sub(r"dataset\.broken", "", text) and "<img" not in text
    body = html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)))
    assert "<script>document.body.dataset.broken='1'</script>" in body.replace("␣", " ") or "#q" in page
    if name == "factor.html":
        assert 'data-ready="1/0"' in text and text.count('class="target"') >= len(HOSTILE)
        assert "שלום" in body and "\\u202e" in body and "🏳️‍🌈" in body and "\\x1b[31m" in body and "∅" in body
        assert "\u202e" not in body and len(body) < 60_000, "overrides are shown; long lines are cut"


def test_pages_work_without_texts(factors, tmp_path, tiny):
    site = explore(factors, tmp_path / "bare", model=tiny("gpt2"))
    assert listed_factors(render(site / "index.html")) == list(range(12))
    text = render(site / "factor.html", "#5")
    assert "This site was made without texts." in text and "Nearest tokens" in text and 'data-ready="5"' in text


def test_layer_keys_without_texts_do_nothing(factors, tmp_path):
    site = explore(factors, tmp_path / "bare")
    script = """
    addEventListener("error", (event) => { document.body.dataset.broken = event.message; });
    setTimeout(() => { for (const key of ["[", "]", "ArrowRight"]) document.dispatchEvent(new KeyboardEvent("keydown", { key })); }, 500);
    """
    text = render(site / "factor.html", "#5", script, tmp_path)
    assert "data-broken" not in text and "Factor 6" in text


def test_tokens_are_tinted_by_saliency(factors, activity_result, tmp_path):
    row = activity_result.contexts[
        (activity_result.contexts["code"] > 0.1) & (activity_result.contexts["pos"] > 2)
    ].iloc[0]
    offsets = np.array([-2, -1, 0])
    block = {name: np.full(3, row[name]) for name in ("factor", "layer", "rank")}
    block |= {"offset": offsets, "token_index": np.arange(3), "token_string": np.array([" far", " near", " me"], dtype=object)}  # fmt: skip
    table = tidy([*block, "saliency"], [block | {"saliency": np.array([-0.2, 0.9, 1.0])}])
    site = explore(
        factors, tmp_path / "pages", seen=activity_result, saliency=pd.concat([table, table])
    )  # repeated rows are shown once
    layer_index = [-1, 0, 1].index(row["layer"])
    text = render(site / "factor.html", f"#{row['factor']}/{layer_index}")
    assert 'class="tok minus" style="--s:0.20" title="saliency −0.2"> far</span>' in text
    assert 'class="tok strong" style="--s:0.90" title="saliency 0.9"> near</span>' in text
    assert text.count("> far</span>") == 1
    assert "The tint is saliency, where it was computed" in text
