"""Formats and files: exact strings, atomic writes, and the hint after the output."""

import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from command_line import HOSTILE, check_refusal

from embspace_lens import EmbeddingLens, demo
from embspace_lens.cli.options import LensOptions
from embspace_lens.cli.output import next_command, next_reading, plain_warnings, print_text

ONE_NEURON = ["neurons", "--layer", "0", "--neuron", "0"]


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_files_keep_strings_exactly(run, folder, tmp_path, format):
    lens = EmbeddingLens.from_pretrained(folder)
    expected = lens.neurons(0, 0, weight="W_out", k=len(lens.vocabulary))
    assert set(HOSTILE) <= set(expected["token_string"])
    out = tmp_path / f"table.{format}"
    result = run(*ONE_NEURON, "--weight", "W_out", "-k", len(expected), "--out", out, model=folder)
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr == f"{out}: {len(expected)} rows\n"
    if format == "csv":
        table = pd.read_csv(out, keep_default_na=False, lineterminator=None)
    elif format == "json":
        table = pd.DataFrame(json.loads(out.read_text(encoding="utf-8")))
    else:
        table = pd.read_parquet(out)
    assert table["token_string"].tolist() == expected["token_string"].tolist()
    assert table["token_index"].tolist() == expected["token_index"].tolist()
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-6)
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("name", ["table", "table.xyz"])
def test_format_is_used_for_file_endings_that_name_none(run, folder, tmp_path, name):
    run(*ONE_NEURON, "--format", "json", "--out", tmp_path / name, model=folder)
    assert json.loads((tmp_path / name).read_text(encoding="utf-8"))[0]["neuron"] == 0


@pytest.mark.parametrize("name", ["table", "table.txt", "TABLE.TXT"])
def test_text_files_contain_a_text_table(run, folder, tmp_path, name):
    run(*ONE_NEURON, "--out", tmp_path / name, model=folder)
    text = (tmp_path / name).read_text("utf-8")
    assert text.splitlines()[1].startswith("L0N0") and "Next:" not in text


def test_tables_are_written_through_links(run, folder, tmp_path):
    (tmp_path / "link.csv").symlink_to("table.csv")
    assert run(*ONE_NEURON, "--out", tmp_path / "link.csv", model=folder).exit_code == 0
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "table.csv").read_text().startswith('"layer"')


def test_figures_are_drawn_beside_the_table(run, folder, tmp_path):
    result = run(*ONE_NEURON, "--plot", tmp_path / "a.html", "--format", "csv", model=folder)
    assert result.exit_code == 0 and result.stdout.startswith('"layer"')
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "Plotly.newPlot" in page and "<script src=" not in page  # complete without a network


def test_tables_with_too_many_lists_for_a_figure_are_refused(run, folder, tmp_path):
    result = run("neurons", "--layer", "0", "--plot", tmp_path / "a.html", model=folder)
    check_refusal(result, r"plot_tokens.*")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("neurons", r"plot_tokens\(\) draws at most 6 .* Select fewer layers, heads, neurons or directions\."),
        ("singular", r"plot_tokens\(\) draws at most 6 .* Select fewer layers, heads, neurons or directions\."),
        ("heads", r"plot_pairs\(\) draws at most 9 .* Select fewer layers or heads; all heads of one weight .*"),
    ],
)
def test_tables_too_large_to_draw_are_refused_without_python(run, folder, tmp_path, command, message):
    result = run(command, "--plot", tmp_path / "a.html", model=folder)
    check_refusal(result, message)
    assert "df" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "parquet"], r"--format parquet writes binary data\. Name a file for it: --out table\.parquet\."),
        (
            ["--out", "x.xyz"],
            r"The ending of --out x\.xyz names no format\. Use one of \.txt, \.csv, \.parquet, \.json\.",
        ),
        (["--out", "x.csv", "--format", "json"], r"--format json and --out x\.csv contradict each other\. .*\.json\."),
        (["--out", "x.csv", "--format", "table"], r"--format table and --out x\.csv contradict each other\. .*\.txt\."),
        (["--plot", "x.csv"], r"The ending of --plot x\.csv names no format\. Use one of \.html, \.png\."),
        (["--plot", "no/x.html"], r"no/x\.html cannot be written: no is not a folder\. Create it first\."),
        (
            ["--out", "~nobody-at-all/x.csv"],
            r"~nobody-at-all/x\.csv names the home folder of a user who does not exist\. .*",
        ),
        (["--out", "."], r"\. is a folder\. Name a file\."),
        (
            ["--out", "no/such/table.csv"],
            r"no/such/table\.csv cannot be written: no/such is not a folder\. Create it first\.",
        ),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(run, folder, tmp_path, arguments, message):
    check_refusal(run("neurons", *arguments, model=folder), message)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_file_unchanged(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    out.write_text("before")

    def fail(self, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    result = run(*ONE_NEURON, "--out", out, model=folder)
    check_refusal(result, r".*table\.csv cannot be written: Read-only file system\. Nothing was changed\.")
    assert out.read_text() == "before" and os.listdir(tmp_path) == ["table.csv"]


def test_characters_outside_the_terminal_encoding_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print_text("a␣film → 👩")
    assert raw.getvalue().decode("ascii").splitlines() == ["a?film ? ?"]


def test_text_is_neither_wrapped_nor_parsed_as_markup(capsys):
    text = "[bold]x[/bold] :smile: " + "word " * 60 + "end"
    print_text(text)
    assert capsys.readouterr().out == text + "\n"


def test_warnings_become_plain_lines(capsys):
    import warnings

    with plain_warnings():
        warnings.warn("Few pairs are left.", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "Few pairs are left.\n"


def test_hints_repeat_the_options():
    assert next_command("neurons --layer 0") == "Next: embspace-lens neurons --layer 0"
    hint = next_reading("search ' the'", "my models/gpt2", LensOptions("words & ascii", "centered"))
    assert hint == (
        "Next: embspace-lens search ' the' --model 'my models/gpt2' --vocabulary 'words & ascii' --score centered"
    )


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_hints_of_demo_models_propose_frequent_words():
    demo_hint = "Next: embspace-lens heads --vocabulary frequent --score cosine"
    assert next_reading("heads") == demo_hint
    assert next_reading("heads", lens=LensOptions("words")) == demo_hint.replace("frequent", "words")
    assert next_reading("heads", lens=LensOptions(score="centered")) == demo_hint.replace("cosine", "centered")
    assert next_reading("heads", "gpt2") == "Next: embspace-lens heads --model gpt2"
