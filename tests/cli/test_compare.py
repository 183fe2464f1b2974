"""The command line's comparisons: the tables of `compare`, and every mistake as one sentence."""

import io
import re
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, align, demo, difference, displacement, stitch_sweep
from embspace_lens.cli import app

SMALL = ["reviews-small-0", "reviews-small-1"]

pytestmark = pytest.mark.skipif(not set(SMALL) <= set(demo.names()), reason="the demo models are not in this checkout")


def run(*arguments):
    return CliRunner().invoke(app, ["align", *arguments])


@pytest.fixture(scope="module")
def found():
    return align(*map(EmbeddingLens.from_pretrained, SMALL), weights="W_V")


@pytest.mark.parametrize("table", ["matches", "correlation", "diagonal"])
def test_every_table_is_the_librarys(found, table):
    result = run(*SMALL, "--weight", "W_V", "--table", table, "--format", "csv")
    assert result.exit_code == 0, result.output
    expected = {"matches": found.matches, "correlation": found.correlation, "diagonal": found.on_diagonal()}[table]
    expected = expected.assign(weight=expected["weight"].astype("str"))
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(result.stdout)), expected, check_dtype=False, rtol=1e-4)


def test_options_reach_the_comparison(tmp_path):
    path = tmp_path / "found.parquet"
    result = run(*SMALL, "--weight", "W_K", "--weight", "W_O", "--space", "residual", "--out", str(path))
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == f"{path}: 8 rows\n"
    expected = align(*map(EmbeddingLens.from_pretrained, SMALL), weights=["W_K", "W_O"], space="residual").matches
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=False, rtol=1e-4)


def test_on_a_terminal_it_says_what_was_found(monkeypatch):
    result = run(*SMALL, "--weight", "W_V", "--vocabulary", "frequent")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 160 and lines[0].split() == ["weight", "layer_a", "layer_b", "correlation"]
    assert re.search(
        r"Alignment\(reviews-small-0 × reviews-small-1: 4 × 4 layers, 4,371 shared tokens; W_V 4 of 4 ", result.stdout
    )
    assert lines[-1] == "Next: embspace-lens neurons --layer 0 --model reviews-small-1 --vocabulary frequent"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SMALL, "--space", "raw"], r"--space='raw' is not one of 'embedding', 'residual'\..*"),
        ([*SMALL, "--table", "plot"], r"--table='plot' is not one of 'matches', 'correlation', 'diagonal'\..*"),
        ([*SMALL, "--weight", "W_gate"], r"reviews-small-0's MLP in block 0 is not gated: it has no W_gate\."),
        (
            ["reviews-small-0", "reviews-medium-0", "--space", "residual"],
            r".*d_model=192 and reviews-medium-0 d_model=.*",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr


# -- stitch

TUNED = "reviews-small-0-sentiment"
REVIEWS = {
    "text": [
        "A wonderful film, superb from beginning to end.",
        "Awful. A waste of time.",
        "I loved it.",
        "Dull, boring, bad.",
    ],
    "label": ["pos", "neg", "pos", "neg"],
}


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    pd.DataFrame(REVIEWS).assign(split=["a", "a", "a", "b"]).to_csv(path, index=False)
    return str(path)


def stitch(*arguments):
    return CliRunner().invoke(app, ["stitch", *arguments])


def test_stitch_gives_the_librarys_sweep(reviews, tmp_path):
    held = tmp_path / "sweep.json"
    options = ["--kernel", "pinv", "--kernel", "random", "--keep", "1-2", "--seed", "3", "--checkpoint", str(held)]
    result = stitch("reviews-small-1", TUNED, "--texts", reviews, *options, "--format", "csv")
    assert result.exit_code == 0, result.output
    recipient, donor = (EmbeddingLens.from_pretrained(name, space="embed") for name in ("reviews-small-1", TUNED))
    expected = stitch_sweep(
        recipient, {TUNED: (donor, demo.head(TUNED))}, REVIEWS["text"], REVIEWS["label"],
        graft=2, keep=[1, 2], kernels=["pinv", "random"], max_tokens=128, seed=3,
    )  # fmt: skip
    got = pd.read_csv(io.StringIO(result.stdout))
    pd.testing.assert_frame_equal(got, expected.astype({"kernel": "str"}), check_dtype=False, rtol=1e-4)
    assert held.exists()


def test_stitch_takes_the_folder_of_a_classifier_and_some_rows(reviews, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    options = ["--where", "split == 'a'", "--kernel", "untranslated", "--keep", "0", "--graft", "1"]
    result = stitch("reviews-small-1", TUNED, str(folder), "--texts", reviews, *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:7]] == ["3"] * 6 and sum("mine" in line for line in lines[1:7]) == 3
    assert lines[-1] == f"Next: embspace-lens difference {TUNED}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reviews-small-1", "reviews-small-0"], r"classifier='reviews-small-0' is not one of 'reviews-small-0-sentiment'\..*"),
        (["reviews-small-1", TUNED, "--where", "label == 'pos'"], r".* holds only 'pos' where label == 'pos'; two classes are needed\."),
        (["reviews-small-1", TUNED, "--label", "stars"], r".* has no column 'stars'; its columns are 'text', 'label', 'split'\."),
        (["reviews-small-1", TUNED, "--graft", "5"], r"graft=5 is not between 0 and 4, the blocks of reviews-small-0-sentiment\."),
        (["reviews-small-1", TUNED, "--kernel", "best"], r"inverse='best' is not one of .*"),
        (["reviews-small-1", TUNED, "--space", "raw"], r"space='raw' is not one of .*"),
    ],
)  # fmt: skip
def test_mistakes_of_stitch_are_one_sentence(arguments, sentence, reviews):
    result = stitch(*arguments, "--texts", reviews)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr


# -- difference


def change(*arguments):
    return CliRunner().invoke(app, ["difference", *arguments])


@pytest.fixture(scope="module")
def lenses():
    return [EmbeddingLens.from_pretrained(name) for name in (TUNED, "reviews-small-0")]


@pytest.mark.parametrize(
    ("options", "table"),
    [
        (["--table", "neurons", "--layer", "3", "--weight", "W_out", "-k", "2"], lambda c: c.neurons(3, weight="W_out", k=2)),
        (["--table", "neurons", "--layer", "3", "-k", "1", "--lowest"], lambda c: c.neurons(3, k=1, largest=False)),
        (["--table", "subheads", "--layer", "2", "--weight", "W_V", "-k", "1"], lambda c: c.subheads(2, weight="W_V", k=1)),
        (["--table", "singular", "--layer", "2", "--weight", "W_O", "-k", "1"], lambda c: c.singular(2, weight="W_O", k=1)),
        (
            ["--layer", "2-3", "--weight", "W_O", "--weight", "W_V"],
            lambda c: c.components().query("layer >= 2 and weight in ['W_O', 'W_V']").reset_index(drop=True),
        ),
    ],
)  # fmt: skip
def test_difference_gives_the_librarys_tables(options, table, lenses, tmp_path):
    path = tmp_path / "change.parquet"
    result = change(TUNED, *options, "--out", str(path))
    assert result.exit_code == 0, result.output
    expected = table(difference(*lenses))
    assert len(expected)
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=False, rtol=1e-4)


def test_difference_measures_displacement_with_lists_of_words(lenses, tmp_path):
    words = [sorted({w.strip() for w in lenses[1].vocabulary.array if w.strip().isalpha()})[i::50][:60] for i in (0, 1)]
    paths = [tmp_path / name for name in ("good.txt", "bad.txt")]
    for path, chosen in zip(paths, words):
        path.write_text("; a remark\n\n" + "\n".join(chosen))
    options = ["--table", "displacement", "--layer", "3", "--weight", "W_V", "-k", "20", "--format", "csv"]
    result = change(TUNED, "reviews-small-0", *options, "--positive", str(paths[0]), "--negative", str(paths[1]))
    assert result.exit_code == 0, result.output
    expected = displacement(*lenses, *words, layer=3, weight="W_V", k=20)
    expected = expected.astype({"weight": "str", "sample": "str"})
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(result.stdout)), expected, check_dtype=False, rtol=1e-4)
    assert (expected["share"] > 0).any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reviews-small-0"], r"What was reviews-small-0 tuned from\? Name it: embspace-lens difference reviews-small-0 BASE\."),
        (["reviews-small-1", "reviews-small-0"], r"reviews-small-1 is not a tuned reviews-small-0: .*"),
        (["reviews-medium-0", "reviews-small-0"], r".* differ in n_layers \(5 and 4\): .*"),
        ([TUNED, "--table", "displacement"], r"--table displacement needs two lists of words: .*"),
        ([TUNED, "--positive", "nowhere.txt"], r"--positive nowhere\.txt cannot be read: No such file or directory\."),
        ([TUNED, "--table", "singular", "--weight", "W_V", "--weight", "W_O"], r"--table singular reads one weight; .*"),
        ([TUNED, "--table", "heads"], r"--table='heads' is not one of 'components', .*"),
        ([TUNED, "--layer", "7", "--table", "neurons"], r"layer=7 is out of range: .*"),
    ],
)  # fmt: skip
def test_mistakes_of_difference_are_one_sentence(arguments, sentence):
    result = change(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr
