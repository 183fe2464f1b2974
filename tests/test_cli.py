"""The command line: every command and option, and every mistake as one sentence."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, EmbspaceError, demo
from embspace_lens.cli import app, numbers
from embspace_lens.demo.corpus import train_tokenizer
from embspace_lens.display.tokens import width

NASTY = ["<script>alert(1)</script>", 'say "hi", a;b', "שלום", "👩‍👧", "line\nbreak", "tab\there", "NA", "\r", "' x"]
TEXTS = ["the film was a wonderful film and the actors were good", "a bad film that nobody wants to watch twice"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model's folder, with words and with tokens that try to break out of every format."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.add_tokens(NASTY)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=3, n_head=4)
    config.architectures = ["GPT2LMHeadModel"]
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def invoke(*arguments, model=None):
        return CliRunner().invoke(app, [*arguments, *(["--model", model] if model else [])])

    return invoke


def refused(result, sentence):
    """The sentence alone on stderr, nothing on stdout, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr


# -- numbers


@pytest.mark.parametrize(
    ("text", "chosen"),
    [(None, None), ("3", [3]), ("0,2", [0, 2]), ("1-4", [1, 2, 3, 4]), ("0, 2-3", [0, 2, 3]), ("5-5", [5])],
)
def test_numbers(text, chosen):
    assert numbers("layer", text) == chosen


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1,,2", "1.5", "²", "1-2-3", "4-1", "0-99999999999"])
def test_numbers_that_select_nothing(text):
    with pytest.raises(EmbspaceError, match=f"--layer {re.escape(repr(text))} selects "):
        numbers("layer", text)


# -- help


def test_help_reads_well(run):
    result = run("--help")
    assert result.exit_code == 0
    for command in ("demo", "models", "neurons", "heads", "search", "components"):
        assert re.search(rf"^  {command} +\w.*", result.stdout, re.M)
        page = run(command, "--help").stdout
        assert max(map(len, page.splitlines())) <= 100
    assert "words" in run("neurons", "--help").stdout


def test_help_loads_no_model_library():
    """The command line itself; what `import embspace_lens` loads is not its doing."""
    code = """
import sys, types
from pathlib import Path
import embspace_lens.errors as errors
roots = ("torch", "transformers", "pandas", "plotly", "embspace_lens")
for name in [name for name in sys.modules if name.split(".")[0] in roots]:
    del sys.modules[name]
package = types.ModuleType("embspace_lens")
package.__path__ = [str(Path(errors.__file__).parent)]
sys.modules["embspace_lens"] = package
from embspace_lens.cli import main
sys.argv = ["embspace-lens", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "transformers", "pandas", "plotly") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# -- tables


def test_neurons_table(run, folder):
    result = run("neurons", "--layer", "0,2", "--neuron", "5", "-k", "3", model=folder)
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["L0N5", "L0N5", "L2N5", "L2N5"]
    assert max(map(width, lines[:-1])) <= 100
    assert lines[-1] == f"Next: embspace-lens search ' the' --model {folder}"


@pytest.mark.parametrize("vocabulary", ["words & trained", "ascii&words", "all & words"])
def test_vocabularies_are_joined_as_in_python(run, folder, vocabulary):
    python = {"all & words": "words"}.get(vocabulary, vocabulary)
    lens = EmbeddingLens.from_pretrained(folder, vocabulary=python)
    assert len(lens.space.ids) < len(EmbeddingLens.from_pretrained(folder, vocabulary="trained").space.ids)
    result = run("neurons", "--layer", "0", "-k", "3", "--vocabulary", vocabulary, "--format", "csv", model=folder)
    assert result.stdout == lens.neurons(0, k=3).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    shown = run("neurons", "--layer", "0", "--neuron", "0", "-k", "3", "--vocabulary", vocabulary, model=folder)
    assert shown.stdout.splitlines()[-1].endswith(f"--vocabulary '{vocabulary}'")


def test_the_demo_repeats_a_joined_vocabulary(run, folder):
    result = run("demo", "--vocabulary", "words & ascii", model=folder)
    assert f"--layer 0 --model {folder} --vocabulary 'words & ascii'" in result.stdout


def test_every_option_reaches_the_lens(run, folder):
    lens = EmbeddingLens.from_pretrained(folder, vocabulary="words", score="cosine")
    result = run(
        "neurons",
        "--layer",
        "1-2",
        "--neuron",
        "0-3",
        "--weight",
        "W_out",
        "-k",
        "4",
        "--vocabulary",
        "words",
        "--score",
        "cosine",
        "--lowest",
        "--format",
        "csv",
        model=folder,
    )
    expected = lens.neurons([1, 2], range(4), weight="W_out", k=4, largest=False)
    assert result.stdout == expected.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


@pytest.mark.parametrize("vocabulary", ["all", "ascii", "words", "trained"])
@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_vocabularies_and_scores(run, folder, vocabulary, score):
    arguments = ["neurons", "--layer", "0", "--neuron", "0", "-k", "2", "--vocabulary", vocabulary, "--score", score]
    result = run(*arguments, "--format", "csv", model=folder)
    lens = EmbeddingLens.from_pretrained(folder, vocabulary=None if vocabulary == "all" else vocabulary, score=score)
    assert result.stdout == lens.neurons(0, 0, k=2).to_csv(
        index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )


def test_heads_put_both_circuits_side_by_side(run, folder):
    result = run("heads", "--layer", "1", "--head", "0-1", "-k", "3", "--format", "csv", model=folder)
    table = pd.read_csv(io.StringIO(result.stdout), keep_default_na=False)
    assert table["weight"].tolist() == ["W_OV"] * 3 + ["W_QK"] * 3 + ["W_OV"] * 3 + ["W_QK"] * 3
    only = run("heads", "--layer", "1", "--weight", "W_QK", "-k", "1", model=folder).stdout
    assert "W_OV" not in only.split("Next")[0] and "→" in only
    subheads = run(
        "heads", "--layer", "1", "--head", "2", "--weight", "W_V", "--weight", "W_O", "-k", "2", model=folder
    ).stdout
    assert "L1H2.0  W_V" in subheads and "L1H2.7  W_O" in subheads


def test_search(run, folder):
    result = run("search", " film", "-k", "2", model=folder)
    assert result.exit_code == 0
    assert result.stdout.startswith("weight  who scores ␣film highest")
    lens = EmbeddingLens.from_pretrained(folder)
    number = lens.vocabulary.index(" film")
    by_id = run("search", f"#{number}", "-k", "2", "--layer", "1", "--weight", "W_out", "--format", "csv", model=folder)
    assert by_id.stdout == lens.search(" film", [1], weight="W_out", k=2).to_csv(
        index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    best = lens.search(" film", weight=["W_in", "W_out"], k=2).sort_values("score", ascending=False).iloc[0]
    assert f"neurons --layer {best['layer']} --neuron {best['neuron']}" in result.stdout


def test_components(run, folder):
    result = run("components", model=folder)
    assert result.exit_code == 0 and re.search(r"^L2 +W_out +128 × 32", result.stdout, re.M)


# -- formats


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_formats_keep_strings_exactly(run, folder, tmp_path, form):
    lens = EmbeddingLens.from_pretrained(folder)
    expected = lens.neurons(0, 0, weight="W_out", k=len(lens.vocabulary))
    out = tmp_path / f"table.{form}"
    result = run(
        "neurons",
        "--layer",
        "0",
        "--neuron",
        "0",
        "--weight",
        "W_out",
        "-k",
        str(len(expected)),
        "--out",
        str(out),
        model=folder,
    )
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr == f"{out}: {len(expected)} rows\n"
    if form == "csv":
        table = pd.read_csv(out, keep_default_na=False, lineterminator=None)
    elif form == "json":
        table = pd.DataFrame(json.loads(out.read_text(encoding="utf-8")))
    else:
        table = pd.read_parquet(out)
    assert set(NASTY) <= set(expected["token_string"])
    assert table["token_string"].tolist() == expected["token_string"].tolist()
    assert table["token_index"].tolist() == expected["token_index"].tolist()
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-6)
    assert os.listdir(tmp_path) == [out.name]


def test_format_wins_over_the_ending(run, folder, tmp_path):
    out = tmp_path / "table.csv"
    run("neurons", "--layer", "0", "--neuron", "0", "--format", "json", "--out", str(out), model=folder)
    assert json.loads(out.read_text(encoding="utf-8"))[0]["neuron"] == 0
    run("neurons", "--layer", "0", "--neuron", "0", "--out", str(tmp_path / "table.txt"), model=folder)
    assert (tmp_path / "table.txt").read_text("utf-8").startswith("unit  weight")


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["neurons", "--layer", "9"], r"layer=9 is out of range: tiny has 3 layers \(0 to 2\)\."),
        (["neurons", "--layer", "x"], r"--layer 'x' selects nothing\. Give a number, several \(0,2\), or a range .*"),
        (["neurons", "--layer", "0", "--neuron", "999"], r"neuron=999 is out of range: .*"),
        (
            ["neurons", "--weight", "Wout"],
            r"weight='Wout' is not one of 'W_in', 'W_gate', 'W_out'\. Did you mean 'W_out'\?",
        ),
        (["neurons", "-k", "0"], r"k=0 is not between 1 and \d+, the number of tokens that this lens reads\."),
        (["neurons", "--vocabulary", "word"], r"--vocabulary='word' is not one of .*Did you mean 'words'\?"),
        (["neurons", "--vocabulary", "ascii & word"], r"--vocabulary='word' is not one of .*Did you mean 'words'\?"),
        (
            ["neurons", "--score", "cos"],
            r"--score='cos' is not one of 'dot', 'centered', 'cosine'\.( Did you mean 'cosine'\?)?",
        ),
        (["neurons", "--format", "cvs"], r"--format='cvs' is not one of .*Did you mean 'csv'\?"),
        (
            ["neurons", "--format", "parquet"],
            r"--format parquet writes binary data\. Name a file for it: --out table\.parquet\.",
        ),
        (["neurons", "--out", "."], r"\. is a folder\. Name a file\."),
        (
            ["neurons", "--out", "no/such/table.csv"],
            r"no/such/table\.csv cannot be written: no/such is not a folder\. Make it first\.",
        ),
        (["heads", "--head", "7"], r"head=7 is out of range: tiny has 4 heads \(0 to 3\)\."),
        (["heads", "--weight", "W_X"], r"weight='W_X' is not one of .*"),
        (
            ["heads", "--weight", "W_OV", "--weight", "W_V"],
            r"W_OV and W_QK are tables of pairs, .* one kind at a time\.",
        ),
        (["search", "  film"], r'"  film" is \d tokens in this vocabulary .*Did you mean \' film\'\?'),
        (["search", "#99999"], r"token=99999 is out of range: .*"),
        (["search", "#5", "-k", "0"], r"k=0 is not a positive number of rows\."),
        (["demo", "--word", "antidisestablishment"], r'"antidisestablishment" is \d+ tokens .*'),
        (["demo", "--report", "."], r"\. is a folder\. Name a file\."),
    ],
)
def test_mistakes_are_sentences(run, folder, tmp_path, arguments, sentence):
    refused(run(*arguments, model=folder), sentence)
    assert os.listdir(tmp_path) == []


def test_models_that_are_not_there(run):
    refused(run("neurons", model="./nowhere"), r"nowhere does not exist\.")
    refused(run("neurons", model="."), r"\. holds no config\.json, so it is not a model's folder\.")


def test_a_file_that_cannot_be_written_stays_as_it_was(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    out.write_text("before")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    result = run("neurons", "--layer", "0", "--neuron", "0", "--out", str(out), model=folder)
    refused(result, r".*table\.csv cannot be written: Read-only file system\. Nothing was changed\.")
    assert out.read_text() == "before" and os.listdir(tmp_path) == ["table.csv"]


# -- demo and models


def test_demo_of_a_folder(run, folder, tmp_path):
    result = run("demo", "--word", "film", "--report", "my.html", model=folder)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    for part in (
        "tiny",
        "Neurons",
        "Heads",
        "Who writes ␣film",
        "my.html shows the same",
        "Next:\n  embspace-lens neurons",
    ):
        assert part in result.stdout
    assert max(map(width, result.stdout.split("my.html")[0].splitlines())) <= 100
    page = (tmp_path / "my.html").read_text("utf-8")
    assert "<script" not in page and f"--model {folder}" in page


def test_demo_of_all_tokens(run, folder):
    assert run("demo", "--vocabulary", "all", "--score", "dot", model=folder).exit_code == 0


def test_models_lists_the_demo_models(run):
    result = run("models")
    assert result.exit_code == 0
    for name in demo.names():
        assert re.search(rf"^{name}$", result.stdout, re.M)
    assert "4 layers, 6 heads, d_model 192" in result.stdout and "tokens seen" in result.stdout


def test_models_without_any(run, monkeypatch):
    monkeypatch.setattr(demo, "names", lambda: [])
    refused(run("models"), "No demo model is installed.*")


# -- as a program


def test_as_a_program_in_a_pipe_that_closes(folder):
    command = (
        f"{sys.executable} -W error::ResourceWarning -m embspace_lens neurons --model {folder} --format csv | head -n 1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == '"layer","neuron","weight","rank","token_index","token_string","score"\n'
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_as_a_program_says_sentences(folder):
    done = subprocess.run(
        [sys.executable, "-m", "embspace_lens", "neurons", "--model", folder, "--layer", "7"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "layer=7 is out of range: tiny has 3 layers (0 to 2).\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
def test_on_a_terminal_long_tables_are_cut(folder):
    ours, theirs = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "embspace_lens", "neurons", "--model", folder, "--vocabulary", "words", "-k", "2"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as program:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # how Linux says that the other end was closed
            pass
        program.communicate()
    os.close(ours)
    text = shown.decode("utf-8")
    assert f"… {3 * 128 * 2 - 40} more of {3 * 128 * 2}" in text
    assert "\x1b[2m␣\x1b[22m" in text
