"""The files of the site: escaped, offline, and replaced atomically."""

import html
import json
import os
import re

import pytest
from browser import read_data
from hostile import HOSTILE

from embspace_lens import EmbspaceError
from embspace_lens.factors import Activity, Factors, activity
from embspace_lens.site import explore, site_files
from embspace_lens.site.site_files import script_json


def test_method_page_has_options_and_measures(site, activity_result):
    text = html.unescape((site / "about.html").read_text(encoding="utf-8"))
    assert "six <lines>" in text and "six <lines>" not in (site / "about.html").read_text(encoding="utf-8")
    assert "12 factors of width 32, λ = 0.2" in text and "torch" in text and "arXiv 2103.15949" in text
    for row in activity_result.measures.to_dict("records"):
        assert f"{row['explained_variance']:.3f}".replace("-", "−") in text and f"{row['n_active']:.1f}" in text


def test_pages_load_nothing_from_the_network(site):
    for path in [*site.glob("*.html"), *site.glob("*.css"), *site.glob("*.js")]:
        text = path.read_text(encoding="utf-8")
        addresses = set(
            re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//[^\n]*\n", "\n", text) if path.suffix == ".js" else text)
        )
        assert addresses <= {"//www.w3.org", "http://www.w3.org"}, path
        assert "fetch(" not in text and "innerHTML" not in text and "eval(" not in text


def test_data_cannot_end_a_script_element(hostile_site):
    for path in hostile_site.rglob("*.js"):
        if path.parent != hostile_site:
            assert not set("<>&\u2028\u2029\x00\x1b\u202e") & set(path.read_text(encoding="utf-8")), path
    assert json.loads(script_json(HOSTILE[0])) == HOSTILE[0]
    for page in hostile_site.glob("*.html"):
        assert "<script>document" not in page.read_text(encoding="utf-8") and "<img" not in page.read_text(
            encoding="utf-8"
        )


def test_bidirectional_overrides_in_titles_are_escaped(factors, tmp_path):
    site = explore(factors, tmp_path / "pages", title="demo \u202e model", about={"Texts": "\u202egnp.exe"})
    for page in site.glob("*.html"):
        assert "\u202e" not in page.read_text(encoding="utf-8") and r"demo \u202e model" in page.read_text(
            encoding="utf-8"
        )


def test_only_a_site_is_replaced(factors, activity_result, tmp_path):
    folder = tmp_path / "pages"
    explore(factors, folder, seen=activity_result)
    (folder / "data" / "f" / "11" / "left over.js").write_text("")
    explore(Factors(factors.directions, l1=0.3), folder, seen=activity_result)
    assert "λ = 0.3" in (folder / "about.html").read_text(encoding="utf-8")
    assert not (folder / "data" / "f" / "11" / "left over.js").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pages"], "nothing is left beside it"
    other_folder = tmp_path / "documents"
    other_folder.mkdir()
    (other_folder / "notes.txt").write_text("kept")
    with pytest.raises(EmbspaceError, match="contains files that are not a site of factors"):
        explore(factors, other_folder, seen=activity_result)
    assert (other_folder / "notes.txt").read_text() == "kept"
    with pytest.raises(EmbspaceError, match="is a file. Pass a folder"):
        explore(factors, other_folder / "notes.txt", seen=activity_result)
    with pytest.raises(EmbspaceError, match="is not a folder. Create it first"):
        explore(factors, tmp_path / "no" / "such", seen=activity_result)


def test_full_disk_leaves_the_old_site(factors, activity_result, tmp_path, monkeypatch):
    folder = explore(factors, tmp_path / "pages", seen=activity_result)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_data = site_files.write_data
    calls = []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        write_data(*arguments)

    monkeypatch.setattr(site_files, "write_data", full)
    with pytest.raises(EmbspaceError, match="cannot be written: No space left on device. Nothing was changed"):
        explore(factors, folder, seen=activity_result)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_missing_parts_are_left_out(factors, activity_result, texts, tiny, tmp_path):
    site_without_texts = explore(factors, tmp_path / "bare")
    _, head = read_data(site_without_texts / "data" / "f" / "0" / "head.js")
    assert head["curve"] == [] and head["nearest"] == [] and len(head["neighbours"]) == 8
    site_of_one_layer = explore(
        factors, tmp_path / "one", seen=activity(factors, tiny("gpt2"), texts, layers=[1], n_contexts=2)
    )
    _, head = read_data(site_of_one_layer / "data" / "f" / "0" / "head.js")
    assert head["level"] == "" and len(head["curve"]) == 1
    site_of_one_factor = explore(Factors(factors.directions[:1], l1=0.1), tmp_path / "single")
    assert read_data(site_of_one_factor / "data" / "f" / "0" / "head.js")[1]["neighbours"] == []
    partial_activity = Activity(*(table[table["factor"] < 3].reset_index(drop=True) if "factor" in table else table for table in (activity_result.importance, activity_result.measures, activity_result.contexts)))  # fmt: skip
    site_of_partial_activity = explore(factors, tmp_path / "part", seen=partial_activity)
    _, overview = read_data(site_of_partial_activity / "data" / "overview.js")
    assert [row[0] for row in overview["rows"]][3:] == [""] * 9 and all(row[0] for row in overview["rows"][:2])
    with pytest.raises(EmbspaceError, match="texts needs a model"):
        explore(factors, tmp_path / "x", texts=texts)
    with pytest.raises(EmbspaceError, match="seen has rows of factor 11, but the dictionary has 2"):
        explore(Factors(factors.directions[:2], l1=0.1), tmp_path / "x", seen=activity_result)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc on this system")
def test_folders_that_cannot_be_written_are_refused_before_the_computation():
    with pytest.raises(EmbspaceError, match=r"/proc/self/site.*"):
        site_files.check_folder("/proc/self/site")
