"""The command paper."""

import pytest
from command_line import check_refusal
from papers_stub import NAME, counted, only_counted

from embspace_lens.papers import runs


@pytest.fixture
def calls(monkeypatch):
    """The settings with which the quick experiment ran."""
    return only_counted(monkeypatch)


def test_without_a_name_experiments_are_listed_and_nothing_runs(run, calls):
    result = run("paper")
    assert result.exit_code == 0 and "Nobody (2020)\n  T:counted  Counted\n" in result.stdout and not calls


def test_list_of_all_experiments_fits_into_100_columns(run):
    lines = run("paper").stdout.splitlines()
    assert "Dar et al. (2023)" in lines and sum(line.startswith("  ") for line in lines) > 20
    assert max(map(len, lines)) <= 100


def test_one_experiment_prints_its_section(run, calls):
    result = run("paper", NAME, "--seed", 5, "--scale", 0.5)
    assert result.exit_code == 0, result.output
    assert "overlap  reviews-small-0  0.123     0.05     0.0083  50" in result.stdout
    assert (calls[0].seed, calls[0].scale) == (5, 0.5)


def test_page_is_written_and_passes_its_own_check(run, calls, tmp_path):
    assert run("paper", "--all", "--write", "results.md").exit_code == 0
    result = run("paper", "--check", "results.md")
    assert result.exit_code == 0, result.output
    assert len(calls) == 1


def test_check_of_a_changed_page_fails(run, calls, tmp_path):
    run("paper", "--all", "--write", "results.md")
    page = tmp_path / "results.md"
    page.write_text(page.read_text("utf-8").replace("0.123", "0.321"), "utf-8")
    result = run("paper", "--check", "results.md")
    assert result.exit_code == 1 and "results.md: T:counted: the file has" in result.stdout


def test_figures_are_written_as_a_table(run, calls, tmp_path):
    assert run("paper", NAME, "--out", "figures.csv").exit_code == 0
    header = (tmp_path / "figures.csv").read_text("utf-8").splitlines()[0]
    assert header.replace('"', "").split(",") == [
        *("experiment", "measure", "model", "value", "control", "published", "published_control", "low", "high", "n")
    ]


def test_figure_is_drawn_as_a_page(run, calls, tmp_path):
    assert run("paper", NAME, "--plot", "figure.html").exit_code == 0
    assert "plotly" in (tmp_path / "figure.html").read_text("utf-8")


def test_what_is_missing_is_an_error(run, monkeypatch):
    monkeypatch.setattr(runs, "experiments", lambda: {NAME: counted([], needs=("brown",))})
    result = run("paper", NAME)
    assert result.exit_code == 2
    assert "The experiment needs the tagged Brown corpus, brown_tagged.parquet with" in result.stderr


def test_file_that_names_no_experiment_is_refused(run, calls, tmp_path):
    (tmp_path / "other.md").write_text("Nothing.")
    result = run("paper", "--check", "other.md")
    check_refusal(result, "other.md names no experiment in backticks. Name experiments: paper NAME --check FILE\\.")


def test_unknown_ending_of_a_figure_is_refused(run, calls):
    check_refusal(
        run("paper", NAME, "--plot", "figure.txt"),
        "The ending of --plot figure.txt names no format. Use one of .html, .png.",
    )
    assert not calls, "it is refused before the experiment runs"
