"""The page of results in Markdown: published values beside those measured here, with controls and commands."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from ..display.tokens import display, visible
from .runs import Run, RunOptions

INTRODUCTION = """# Results

The tables and figures of the papers, measured on the demo models. This file is written by `embspace-lens paper --all --data DATA --write FILE`, and each
section by the command that stands below it; `embspace-lens paper --all --data DATA --check FILE` compares the file with new runs. DATA is a folder with
`reviews.jsonl` (the Large Movie Review Dataset: `split`, `label`, `text`), `relations/` (the relations of MAPS), `sentiment/` (the opinion lexicon of
Hu & Liu) and `brown_tagged.parquet` (the tagged Brown corpus).

In each table, *value* is measured here, *low* and *high* are the ends of its 95 % interval, *control* is the same measure without the claimed structure,
*published* and *published_control* are the paper's figures for its own model. Papers measured larger models on other texts, so the comparison is one of
signs and orders of magnitude.
"""
MAX_ROWS = 60
CORPUS_TEXT = ["before", "after"]
"""Columns with passages of the corpus, which a page does not copy."""


def write_page(runs: Iterable[Run], options: RunOptions) -> str:
    """The page of all runs."""
    sections = [write_section(list(group), options) for _, group in groupby(runs, key=lambda run: run.experiment.name)]
    return "\n".join([INTRODUCTION, *sections])


def write_section(runs: Sequence[Run], options: RunOptions) -> str:
    """The section of one experiment: its source, its protocol, its figures on all models, notes, details, and the command."""
    experiment = runs[0].experiment
    found = [(run.setting, run.findings) for run in runs if run.findings is not None]
    parts = [f"## {experiment.title}", f"`{experiment.name}` · {experiment.source}", experiment.protocol]
    if found:
        parts.append(text_block(pd.concat([findings.figures for _, findings in found], ignore_index=True)))
        notes = dict.fromkeys(note for _, findings in found for note in findings.notes)
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
        for setting, findings in found:
            suffix = f" (`{setting.model}`)" if len(found) > 1 else ""
            parts += [f"{title}{suffix}:\n\n{text_block(table)}" for title, table in findings.details.items()]
    else:
        parts.append(f"Not run: the data folder lacks {', '.join(runs[0].missing)}.")
    return "\n\n".join([*parts, f"Command: `{command_of(runs, options)}`"]) + "\n"


def command_of(runs: Sequence[Run], options: RunOptions) -> str:
    """The command that prints a section."""
    experiment = runs[0].experiment
    words = ["embspace-lens", "paper", experiment.name]
    words += [] if options.model is None else ["--model", shlex.quote(options.model)]
    words += ["--data", "DATA"] if experiment.needs else []
    words += [] if options.scale is None else ["--scale", f"{options.scale:g}"]
    words += [] if options.seed == 0 else ["--seed", str(options.seed)]
    return " ".join(words)


def text_block(table: pd.DataFrame) -> str:
    """A table as a block of text, without empty columns, the experiment's name and passages of the corpus."""
    shown = table.drop(columns=["experiment", *CORPUS_TEXT], errors="ignore").dropna(axis=1, how="all")
    if len(table) > MAX_ROWS:
        shown = shown.head(MAX_ROWS)
    columns = {str(name): _cells(str(name), shown[name]) for name in shown.columns}
    lines = ["  ".join(cells).rstrip() for cells in zip(*(_aligned(name, shown, columns) for name in columns))]
    if len(table) > MAX_ROWS:
        lines.append(f"… {len(table) - MAX_ROWS} more rows")
    return "```text\n" + "\n".join(lines) + "\n```"


def _aligned(name: str, table: pd.DataFrame, columns: Mapping[str, list[str]]) -> list[str]:
    """A column's heading and cells, as wide as the longest; text to the left, numbers to the right."""
    cells = [name, *columns[name]]
    width = max(map(len, cells))
    is_number = pd.api.types.is_numeric_dtype(table[name].dtype)
    return [cell.rjust(width) if is_number else cell.ljust(width) for cell in cells]


def _cells(name: str, values: Any) -> list[str]:
    if pd.api.types.is_float_dtype(values.dtype):
        return [format_number(value) for value in values]
    shown = display if name.endswith("token_string") else visible
    return [shown(str(value)) for value in values]


def format_number(value: float) -> str:
    """A number to three significant figures, without an exponent from 0.0001 on; empty for NaN."""
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
