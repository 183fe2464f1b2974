"""`embspace-lens align`, `stitch` and `difference`: the tables of the library, and errors."""

import re
import shutil

import pandas as pd
import pytest
from command_line import check_refusal, read_csv
from typer.testing import CliRunner

from embspace_lens import EmbeddingLens, align, demo, difference, displacement, stitch_sweep
from embspace_lens.cli import app

SMALL = ["reviews-small-0", "reviews-small-1"]
TUNED = "reviews-small-0-sentiment"

pytestmark = pytest.mark.skipif(not set(SMALL) <= set(demo.names()), reason="the demo models are not in this checkout")


def run(command, *arguments):
    return CliRunner().invoke(app, [command, *arguments])


@pytest.fixture(scope="module")
def lenses():
    """Lenses of two demo models."""
    return [EmbeddingLens.from_pretrained(name) for name in SMALL]


# -- align


@pytest.mark.parametrize("table", ["matches", "correlation", "diagonal"])
def test_align_gives_each_table_of_the_library(lenses, table):
    alignment = align(*lenses, weights="W_V")
    tables = {"matches": alignment.matches, "correlation": alignment.correlation, "diagonal": alignment.on_diagonal()}
    expected = tables[table].assign(weight=tables[table]["weight"].astype("str"))
    df = read_csv(run("align", *SMALL, "--weight", "W_V", "--table", table, "--format", "csv"))
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-4)


def test_options_of_align_are_passed_to_the_library(lenses, tmp_path):
    path = tmp_path / "matches.parquet"
    result = run("align", *SMALL, "--weight", "W_K", "--weight", "W_O", "--space", "residual", "--out", str(path))
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == f"{path}: 8 rows\n"
    expected = align(*lenses, weights=["W_K", "W_O"], space="residual").matches
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=False, rtol=1e-4)


def test_align_prints_a_summary_and_a_hint():
    result = run("align", *SMALL, "--weight", "W_V", "--vocabulary", "frequent")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 160 and lines[0].split() == ["weight", "layer_a", "layer_b", "correlation"]
    assert re.search(
        r"Alignment\(reviews-small-0 × reviews-small-1: 4 × 4 layers, 4,371 shared tokens; .*W_V \d / 4 of 4",
        result.stdout,
    )
    hint = "Next: embspace-lens neurons --layer 2 --model reviews-small-1 --vocabulary frequent --score cosine"
    assert lines[-1] == hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SMALL, "--weight", "W_gate"], r"reviews-small-0's MLP in block 0 is not gated: it has no W_gate\."),
        (
            ["reviews-small-0", "reviews-medium-0", "--space", "residual"],
            r".*d_model=192 and reviews-medium-0 has d_model=224.*",
        ),
    ],
)
def test_models_that_cannot_be_aligned_are_refused(arguments, message):
    check_refusal(run("align", *arguments), message)


# -- stitch

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


def test_options_of_stitch_are_passed_to_the_library(reviews, tmp_path):
    checkpoint = tmp_path / "sweep.json"
    options = [
        "--inverse",
        "pinv",
        "--inverse",
        "random",
        "--keep",
        "1-2",
        "--seed",
        "3",
        "--checkpoint",
        str(checkpoint),
    ]
    result = run("stitch", "reviews-small-1", TUNED, "--texts", reviews, *options, "--format", "csv")
    assert result.exit_code == 0, result.output
    recipient, donor = (EmbeddingLens.from_pretrained(name, space="embed") for name in ("reviews-small-1", TUNED))
    expected = stitch_sweep(
        recipient, {TUNED: (donor, demo.head(TUNED))}, REVIEWS["text"], REVIEWS["label"],
        graft=2, keep=[1, 2], inverse=["pinv", "random"], max_tokens=128, seed=3,
    )  # fmt: skip
    df = read_csv(result)
    pd.testing.assert_frame_equal(df, expected.astype({"inverse": "str"}), check_dtype=False, rtol=1e-4)
    assert checkpoint.exists()


def test_stitch_reads_a_classifier_from_a_folder_and_selected_rows(reviews, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(demo.MODELS / TUNED, folder)
    options = ["--where", "split == 'a'", "--inverse", "untranslated", "--keep", "0", "--graft", "1"]
    arguments = ["stitch", "reviews-small-1", TUNED, str(folder), "--texts", reviews, *options]
    df = read_csv(run(*arguments, "--format", "csv"))
    assert df["n"].tolist() == [3] * 6 and df["donor"].str.endswith("mine").sum() == 3
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Next: embspace-lens difference {TUNED}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reviews-small-1", "reviews-small-0"], r"classifier='reviews-small-0' is not one of 'reviews-small-0-sentiment'\..*"),
        (["reviews-small-1", TUNED, "--where", "label == 'pos'"], r".* holds only 'pos' where label == 'pos'; two classes are needed\."),
        (["reviews-small-1", TUNED, "--label", "stars"], r".* has no column 'stars'. Its columns are 'text', 'label', 'split'\."),
        (["reviews-small-1", TUNED, "--graft", "5"], r"graft=5 is not an integer from 0 to 4, the number of layers of reviews-small-0-sentiment\."),
        (["reviews-small-1", TUNED, "--inverse", "best"], r"inverse='best' is not one of .*"),
    ],
)  # fmt: skip
def test_wrong_texts_and_classifiers_are_refused(arguments, message, reviews):
    check_refusal(run("stitch", *arguments, "--texts", reviews), message)


# -- difference


@pytest.fixture(scope="module")
def tuned_and_base(lenses):
    """Lenses of a tuned model and of the model from which it was tuned."""
    return EmbeddingLens.from_pretrained(TUNED), lenses[0]


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
def test_difference_gives_each_table_of_the_library(options, table, tuned_and_base, tmp_path):
    path = tmp_path / "change.parquet"
    result = run("difference", TUNED, *options, "--out", str(path))
    assert result.exit_code == 0, result.output
    expected = table(difference(*tuned_and_base))
    assert len(expected)
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected, check_exact=False, rtol=1e-4)


def test_displacement_reads_lists_of_words(tuned_and_base, tmp_path):
    tokens = sorted({text.strip() for text in tuned_and_base[1].vocabulary.array if text.strip().isalpha()})
    positive, negative = tokens[0::50][:60], tokens[1::50][:60]
    for name, words in (("positive.txt", positive), ("negative.txt", negative)):
        (tmp_path / name).write_text("; a comment\n\n" + "\n".join(words))
    options = ["--table", "displacement", "--layer", "3", "--weight", "W_V", "-k", "20", "--format", "csv"]
    options += ["--positive", str(tmp_path / "positive.txt"), "--negative", str(tmp_path / "negative.txt")]
    df = read_csv(run("difference", TUNED, "reviews-small-0", *options))
    expected = displacement(*tuned_and_base, positive, negative, layer=3, weight="W_V", k=20)
    expected = expected.astype({"weight": "str", "sample": "str"})
    pd.testing.assert_frame_equal(df, expected, check_dtype=False, rtol=1e-4)
    assert (expected["share"] > 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reviews-small-0"], r"The model from which reviews-small-0 was tuned is not known\. Name it: embspace-lens difference reviews-small-0 BEFORE\."),
        (["reviews-small-1", "reviews-small-0"], r"reviews-small-1 was not fine-tuned from reviews-small-0: .*"),
        (["reviews-medium-0", "reviews-small-0"], r".* differ in n_layers \(5 and 4\)\. .*"),
        ([TUNED, "--table", "displacement"], r"--table displacement needs two lists of words: .*"),
        ([TUNED, "--positive", "nowhere.txt"], r"--positive nowhere\.txt cannot be read: No such file or directory\."),
        ([TUNED, "--table", "singular", "--weight", "W_V", "--weight", "W_O"], r"--table singular reads one weight\. Give --weight once\."),
        ([TUNED, "--layer", "7", "--table", "neurons"], r"layer=7 is out of range: .*"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_subtracted_are_refused(arguments, message):
    check_refusal(run("difference", *arguments), message)
