"""The check of numbers in documents."""

import pytest

from embspace_lens.papers.number_check import check_document, named_experiments
from embspace_lens.papers.results_page import write_page
from embspace_lens.papers.runs import RunOptions, run_experiments


@pytest.fixture
def check(calls, tmp_path):
    options = RunOptions(folder=tmp_path)
    runs = list(run_experiments(options))

    def check_text(text):
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return check_document(path, runs, options)

    check_text.page = write_page(runs, options)
    return check_text


def test_written_page_passes(check):
    assert check(check.page) == []


@pytest.mark.parametrize(
    ("old", "new"), [("0.123", "0.125"), ("24 ", "25 "), ("A note.", "Another note."), ("␣b", "␣c")]
)
def test_each_change_of_a_section_is_found(check, old, new):
    assert old in check.page
    problems = check(check.page.replace(old, new))
    assert problems and all("T:counted" in problem for problem in problems)


def test_last_digit_may_differ_by_one(check):
    assert check(check.page.replace("0.123", "0.124")) == []


def test_missing_line_is_found(check):
    assert any("lines" in problem for problem in check(check.page.replace("- A note.\n\n", "")))


@pytest.mark.parametrize(
    "line", ["| overlap .12 (control .05) | `T:counted` |", "24 of 24, 0.123, k = 64, see `T:counted`"]
)
def test_rounded_numbers_of_other_documents_pass(check, line):
    assert check(f"Other 17 lines.\n\n{line}\n") == []


def test_wrong_number_of_another_document_is_named_with_its_line(check):
    assert check("One.\n\n| overlap .13 | `T:counted` |\n") == ["line 3: .13 is not a number of T:counted."]


def test_lines_that_name_no_experiment_are_not_checked(check):
    assert check("17 of 18 lines.\n") == []


def test_experiments_are_found_in_text_and_in_commands(calls):
    assert named_experiments("see `T:counted`") == ["T:counted"] == named_experiments("embspace-lens paper T:counted")
    assert named_experiments("nothing") == []
