"""`embspace-lens demo` and `models`."""

import re

import pytest
from command_line import check_refusal

from embspace_lens import demo
from embspace_lens.demo import catalog
from embspace_lens.display.tokens import width


def test_demo_prints_an_overview_and_writes_a_report(run, folder, tmp_path):
    result = run("demo", "--word", "film", "--report", "my.html", model=folder)
    assert result.exit_code == 0 and result.stderr == "", result.stderr
    for part in ("tiny", "Neurons", "Heads", "␣film", "my.html shows the same", "Next:\n  embspace-lens neurons"):
        assert part in result.stdout
    assert max(map(width, result.stdout.split("my.html")[0].splitlines())) <= 100
    page = (tmp_path / "my.html").read_text("utf-8")
    assert "<script" not in page and f"--model {folder}" in page


def test_demo_reads_all_tokens(run, folder):
    assert run("demo", "--vocabulary", "all", "--score", "dot", model=folder).exit_code == 0


def test_hint_of_demo_repeats_a_combined_vocabulary(run, folder):
    result = run("demo", "--vocabulary", "words & ascii", model=folder)
    assert f"--layer 1 --model {folder} --vocabulary 'words & ascii'" in result.stdout


def test_demo_word_of_several_tokens_raises_an_error(run, folder):
    check_refusal(
        run("demo", "--word", "antidisestablishment", model=folder), r'"antidisestablishment" is \d+ tokens .*'
    )


def test_report_that_cannot_be_written_raises_an_error(run, folder):
    check_refusal(run("demo", "--report", ".", model=folder), r"\. is a folder\. Name a file\.")


def test_models_lists_the_demo_models(run):
    result = run("models")
    assert result.exit_code == 0
    for name in demo.names():
        assert re.search(rf"^{name}\n  \w.*\n  \w", result.stdout, re.M)
    assert "4 layers, 6 heads, d_model 192" in result.stdout and "training tokens" in result.stdout
    assert "reviews-small-0 tuned to classify texts as neg or pos" in result.stdout


def test_listing_models_without_demo_models_raises_an_error(run, monkeypatch):
    monkeypatch.setattr(catalog, "names", lambda: [])
    check_refusal(run("models"), "No demo model is installed.*")


@pytest.mark.full
@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
@pytest.mark.parametrize("name", demo.names())
def test_demo_reads_every_demo_model(run, name):
    result = run("demo", model=name)
    assert result.exit_code == 0 and f"--model {name} --vocabulary frequent --score cosine" in result.stdout
