"""The check that the numbers of a document are those that the experiments give."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .registry import experiments
from .results_page import write_section
from .runs import Run, RunOptions

NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d[\d,]*\.?\d*|\.\d+)(?![\w])")
CODE = re.compile(r"`[^`]*`")


def named_experiments(text: str) -> list[str]:
    """The experiments that a document names in backticks, in the order of the registry."""
    return [name for name in experiments() if f"`{name}`" in text or f"embspace-lens paper {name}" in text]


def check_document(path: Path, runs: Sequence[Run], options: RunOptions) -> list[str]:
    """Compare a document's numbers with runs of the experiments that it names.

    A section of a results page (its line "Command: `embspace-lens paper NAME …`" names the experiment) must be the section
    that the command prints. In other text, each number in a line that names an experiment in backticks must be a number of
    that experiment's tables, rounded to as many decimals. Numbers of a section may differ by one unit in the last digit,
    because sums of floating-point numbers depend on the machine.

    Returns:
        One sentence for each difference; empty if there are none.
    """
    text = path.read_text("utf-8")
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.experiment.name, []).append(run)
    sections = _sections(text)
    problems: list[str] = []
    for name, own in by_name.items():
        if name in sections:
            problems += _section_problems(name, sections[name], write_section(own, options))
    for number, line in enumerate(_without_sections(text, sections.values()).splitlines(), 1):
        for name in [name for name in by_name if f"`{name}`" in line]:
            problems += _line_problems(name, number, line, by_name[name])
    return problems


def _sections(text: str) -> dict[str, str]:
    """The sections of a results page by the name of their experiment."""
    found = {}
    for part in re.split(r"(?m)^(?=## )", text)[1:]:
        command = re.search(r"(?m)^Command: `embspace-lens paper (\S+?)[ `]", part)
        if command:
            found[command[1]] = part
    return found


def _without_sections(text: str, sections: Iterable[str]) -> str:
    """The text with the lines of the sections left empty, so that the numbers of lines stay."""
    for section in sections:
        text = text.replace(section, "\n" * section.count("\n"))
    return text


def _section_problems(name: str, written: str, expected: str) -> Iterator[str]:
    lines, expected_lines = written.strip().splitlines(), expected.strip().splitlines()
    if len(lines) != len(expected_lines):
        yield f"{name}: the section has {len(lines)} lines, and the command prints {len(expected_lines)}."
    for line, expected_line in zip(lines, expected_lines):
        if not _agree(line, expected_line):
            yield f"{name}: the file has {line!r}, and the command prints {expected_line!r}."


def _agree(written: str, expected: str) -> bool:
    """Whether two lines have the same words, and numbers that differ by at most one unit in the last digit."""
    words, expected_words = written.split(), expected.split()
    return len(words) == len(expected_words) and all(map(_same_word, words, expected_words))


def _same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if not (NUMBER.fullmatch(word) and NUMBER.fullmatch(expected)):
        return False
    unit = 10.0 ** -max(_decimals(word), _decimals(expected))
    return abs(_value(word) - _value(expected)) <= 1.01 * unit and _decimals(word) + _decimals(expected) > 0


def _line_problems(name: str, number: int, line: str, runs: Iterable[Run]) -> Iterator[str]:
    known = np.concatenate([_numbers(run) for run in runs])
    for match in NUMBER.finditer(CODE.sub("", line)):
        places = _decimals(match[0])
        if not np.any(np.abs(known - _value(match[0])) <= 0.5000001 * 10.0**-places):
            yield f"line {number}: {match[0]} is not a number of {name}."


def _numbers(run: Run) -> np.ndarray:
    """All numbers of an experiment's tables, and those in the names of its measures, such as k = 64."""
    if run.findings is None:
        return np.empty(0)
    tables = [run.findings.figures, *run.findings.details.values()]
    columns = [
        table[column].to_numpy(dtype=np.float64)
        for table in tables
        for column in table.columns
        if pd.api.types.is_numeric_dtype(table[column].dtype)
    ]
    names = [_value(number) for name in run.findings.figures["measure"] for number in NUMBER.findall(name)]
    return np.concatenate([*columns, np.array(names, dtype=np.float64)])


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))
