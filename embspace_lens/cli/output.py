"""Results of commands: a table on the terminal or in a file, and the command to try next."""

import csv
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .. import errors
from .options import MODEL, FormatName

if TYPE_CHECKING:
    import pandas as pd

    from ..lens import EmbeddingLens

ENDINGS: dict[str, FormatName] = {"txt": "table", "csv": "csv", "parquet": "parquet", "json": "json"}
"""The format that the ending of a file names."""
ON_SCREEN = 40  # neurons or heads shown on a terminal; files and pipes receive all


class Output:
    """The format and the destination of a table. Commands create it first, so that a path that cannot be written raises an
    error before any computation.

    Args:
        format: The format. None selects it by the extension of `out`; the default is a table for the terminal.
        out: The file; None for standard output.

    Raises:
        EmbspaceError: If the format needs a file, the ending of the file names no format or another one, or the file cannot
            be written.
    """

    def __init__(self, format: FormatName | None, out: Path | None) -> None:
        self.format: FormatName = _format_of(format, out)
        self.out = out
        if self.format == "parquet" and out is None:
            raise errors.parquet_needs_file()
        if out is not None:
            from ..files import refuse_unwritable

            refuse_unwritable(out)

    def write(self, df: "pd.DataFrame", hint: str = "") -> None:
        """Print the table or write it to the file; a table for the terminal ends with the hint."""
        if self.out is not None:
            from ..files import write_whole

            write_whole(self.out, (_as_text(df) + "\n").encode() if self.format == "table" else encode(df, self.format))
            typer.echo(f"{self.out}: {len(df):,} rows", err=True)
        elif self.format == "table":
            print_text(_as_text(df, ON_SCREEN if sys.stdout.isatty() else None, hint))
        else:
            typer.echo(encode(df, self.format), nl=False)


def _format_of(format: FormatName | None, out: Path | None) -> FormatName:
    """The format of the table: --format, or the ending of the file; a table for the terminal if the file has no ending."""
    ending = out.suffix.removeprefix(".").lower() if out else ""
    named = ENDINGS.get(ending)
    if format is None:
        if ending and named is None:
            raise errors.unknown_ending(out, "--out", [f".{name}" for name in ENDINGS])
        return named or "table"
    if named not in (None, format):
        raise errors.contradictory_format(format, out, {name: key for key, name in ENDINGS.items()}[format])
    return format


def _as_text(df: "pd.DataFrame", n: int | None = None, hint: str = "") -> str:
    from ..display.terminal import render

    return render(df, n=n, hint=hint)


def encode(df: "pd.DataFrame", format: str) -> bytes:
    """A table as CSV, JSON or Parquet, with the exact strings of its tokens."""
    if format == "csv":
        # All strings are quoted: without quotes, a token that is one carriage return would end a line.
        return df.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).encode("utf-8")
    if format == "json":
        text = df.to_json(orient="records", force_ascii=False, indent=1, double_precision=15)
        return f"{text}\n".encode()
    buffer = BytesIO()
    df.to_parquet(buffer, index=False)
    return buffer.getvalue()


def print_text(text: str) -> None:
    """Print text; characters that the terminal cannot encode become `?`, and the sign ␣ for a space is dim."""
    from rich.console import Console
    from rich.text import Text

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    styled = Text(text)
    styled.highlight_words(["␣"], "dim")
    Console(highlight=False, soft_wrap=True).print(styled)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print the messages of warnings on standard error, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        typer.echo(str(warning.message), err=True)


def next_command(command: str, model: str = MODEL, vocabulary: str = "all", score: str = "dot") -> str:
    """The line that names a command to try next, with the options of this one."""
    options = "" if model == MODEL else f" --model {shlex.quote(model)}"
    options += "" if vocabulary == "all" else f" --vocabulary {shlex.quote(vocabulary)}"
    options += "" if score == "dot" else f" --score {score}"
    return f"Next: embspace-lens {command}{options}"


def legible_options(model: str, vocabulary: str, score: str) -> tuple[str, str]:
    """The vocabulary and the score to propose for a reading.

    For a demo model, frequent words and the cosine replace the defaults: the token lists of a small model are then legible.
    """
    from ..demo.catalog import names

    if model not in names():
        return vocabulary, score
    return "frequent" if vocabulary == "all" else vocabulary, "cosine" if score == "dot" else score


def next_reading(command: str, model: str = MODEL, vocabulary: str = "all", score: str = "dot") -> str:
    """The line that names a reading to try next, with a vocabulary and a score that make its tokens legible."""
    return next_command(command, model, *legible_options(model, vocabulary, score))


def common_word(lens: "EmbeddingLens") -> str:
    """A common word that is a token of the lens, to search for."""
    from ..report.model_summary import find_word

    return str(lens.vocabulary.strings[find_word(lens, None)])


def middle_layer(lens: "EmbeddingLens") -> int:
    """A layer in the middle of the model; its neurons are usually more legible than those of the first layer."""
    layers = lens.weights.layers_with("mlp") or [0]
    return layers[len(layers) // 2]


def options_of_first_row(df: "pd.DataFrame", *names: str) -> str:
    """The options that select what the first row is about, such as `--layer 0 --head 3`."""
    return " ".join(f"--{name} {df[name].iloc[0] if len(df) else 0}" for name in names)
