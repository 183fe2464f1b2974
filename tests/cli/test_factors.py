"""The commands `embspace-lens factors …` return the same results as the functions."""

import io
import json

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from embspace_lens import demo
from embspace_lens.cli import app
from embspace_lens.factors import Factors, demo_factors, fit_factors, saliency, top_contexts
from embspace_lens.site import context_saliency

needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


def run(*arguments):
    return CliRunner().invoke(app, ["factors", *map(str, arguments)])


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    texts = [
        "A good film, and a good cast.",
        "What a bad film!",
        "All of them were good, and all of it was fun.",
        "I left.",
    ]
    pd.DataFrame({"text": texts, "split": ["a", "a", "a", "b"]}).to_csv(path, index=False)
    return path


@needs_demo
def test_fit_contexts_and_importance_equal_the_functions(reviews, tmp_path):
    folder = tmp_path / "mine"
    result = run(
        "fit", folder, "--texts", reviews, "--n-factors", 6, "--l1", 1.0, "--layer", "0-1", "--where", "split == 'a'"
    )
    assert result.exit_code == 0, result.output
    fitted = Factors.load(folder)
    model, texts = demo.load("reviews-small-0"), pd.read_csv(reviews)["text"].tolist()
    expected = fit_factors(model, texts[:3], n_factors=6, l1=1.0, layers=[0, 1])
    assert torch.equal(fitted.directions, expected.directions) and str(folder) in result.stdout
    result = run(
        "contexts",
        "--factors",
        folder,
        "--texts",
        reviews,
        "--layer",
        1,
        "--n",
        2,
        "--factor",
        "1,3",
        "--format",
        "csv",
    )
    assert result.exit_code == 0, result.output
    df = top_contexts(fitted, model, texts, layers=[1], n=2)
    df = df[df["factor"].isin([1, 3])].reset_index(drop=True)
    printed = pd.read_csv(io.StringIO(result.stdout), keep_default_na=False)
    pd.testing.assert_frame_equal(printed, df, check_dtype=False, rtol=1e-3)
    for options in (["--levels"], []):
        result = run(
            "importance", "--factors", folder, "--texts", reviews, "--layer", "0-1", *options, "--format", "json"
        )
        assert result.exit_code == 0 and len(json.loads(result.stdout)) == (6 if options else 12), result.output


@needs_demo
def test_saliency_equals_the_function(reviews):
    pytest.importorskip("captum", reason="saliency needs captum")
    result = run(
        "saliency", "--texts", reviews, "--layer", 3, "--factor", "0-19", "--n-samples", 30, "--n-texts", 1, "--format", "csv"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = pd.read_csv(io.StringIO(result.stdout), keep_default_na=False)
    model, texts = demo.load("reviews-small-0"), pd.read_csv(reviews)["text"].tolist()[:1]
    contexts = top_contexts(demo_factors(), model, texts, layers=[3], n=1).query("factor < 20")
    expected = saliency(demo_factors(), model, texts, contexts, n_samples=30)
    assert len(printed) and set(printed["layer"]) == {3}
    pd.testing.assert_frame_equal(printed, expected, check_dtype=False, rtol=1e-3)


@needs_demo
def test_interrupted_commands_state_how_to_resume(reviews, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt(f"The checkpoint is in {options['checkpoint']}. The same call resumes from it.")

    monkeypatch.setattr("embspace_lens.factors.training.fit_factors", interrupt)
    monkeypatch.setattr("embspace_lens.site.pages.explore", interrupt)
    fit_options = ("fit", tmp_path / "d", "--n-factors", 4, "--l1", 1.0, "--texts", reviews)
    for arguments in (fit_options, ("explore", tmp_path / "site", "--saliency", 1, "--texts", reviews)):
        result = run(*arguments)
        assert result.exit_code == 130 and "The same command resumes from it" in result.stderr, result.output


@pytest.mark.full
@needs_demo
def test_explore_writes_a_site(reviews, tmp_path, monkeypatch):
    pytest.importorskip("jinja2", reason="the site needs jinja2")
    site = tmp_path / "site"
    result = run("explore", site, "--texts", reviews, "--layer", "2-3", "--n", 3)
    assert result.exit_code == 0 and str(site / "index.html") in result.stdout, result.output
    assert '"salient":false' in (site / "index.html").read_text(encoding="utf-8")
    about = (site / "about.html").read_text(encoding="utf-8")
    assert "4, reviews.csv" in about and "hidden states of 2 layers" in about
    sampled = []
    monkeypatch.setattr(
        "embspace_lens.forward.sampling.sample_texts", lambda model: sampled.append(model) or ["A film."]
    )
    pytest.importorskip("captum", reason="saliency needs captum")
    monkeypatch.setattr(context_saliency, "N_SAMPLES", 2)
    result = run("explore", site, "--demo", "--saliency", 1)
    assert '"salient":true' in (site / "index.html").read_text(encoding="utf-8")
    assert result.exit_code == 0 and len(sampled) == 1, result.output
    about = (site / "about.html").read_text(encoding="utf-8")
    assert "1, sampled from the model" in about and "of 4 layers" in about
    for arguments, message in (
        ([], "Give --texts PATH, or --demo"),
        (["--demo", "--texts", reviews], "Give --texts PATH, or --demo"),
        (["--demo", "--factors", tmp_path], "Leave --factors out"),
        (["--demo", "--model", "reviews-small-1"], "factors='reviews-small-1' is not one of"),
    ):
        result = run("explore", site, *arguments)
        assert result.exit_code == 2 and message in result.stderr


@needs_demo
def test_senses_reports_four_methods(tmp_path):
    rows = [
        (i, w, t)
        for i in range(60)
        for w, t in (("they", "pp"), ("left" if i % 2 else "the", "vb" if i % 2 else "at"), ("left", "nn"))
    ]
    path = tmp_path / "tagged.csv"
    pd.DataFrame(rows, columns=["sentence", "word", "tag"]).to_csv(path, index=False)
    result = run("senses", "--tagged", path, "--word", "left=vb", "--format", "csv")
    assert result.exit_code == 0, result.output
    df = pd.read_csv(io.StringIO(result.stdout))
    assert df["method"].tolist() == ["code", "factor", "majority", "state"] and set(df["n"]) == {45}
    assert df["f1"].iloc[3] > 0.9


@needs_demo
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contexts", "--model", "reviews-small-1"], r"factors='reviews-small-1' is not one of 'reviews-small-0'"),
        (["contexts", "--factors", "nowhere"], "does not exist"),
        (["importance", "--layer", "9"], "layer=9 is out of range"),
        (["contexts", "--factor", "5000"], "factor=5000 is out of range: the dictionary has 1000 factors"),
        (["saliency", "--factor", "0,1000"], "factor=1000 is out of range"),
    ],
)
def test_invalid_options_are_refused_in_one_line(arguments, message, reviews):
    result = run(*arguments, "--texts", reviews)
    assert result.exit_code == 2 and message.strip("r") in result.stderr and result.stderr.count("\n") == 1
