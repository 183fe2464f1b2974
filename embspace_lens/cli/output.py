"""What commands give back: a table on the terminal or in a file, and the command to try next."""

import csv
import os
import shlex
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import typer

from .. import errors
from ..errors import EmbspaceError
from .options import FORMATS, MODEL, one_of

ON_SCREEN = 40  # neurons or heads shown on a terminal; a file or a pipe gets them all


class Output:
    """Where a table goes and in which format: made first, so that what cannot be written is refused before the work.

    Args:
        format: Its name; None for what the file's name ends in, or else a table to be read.
        out: The file; None for the terminal.

    Raises:
        EmbspaceError: If there is no such format, it cannot go to a terminal, or the file cannot be written.
    """

    def __init__(self, format: str | None, out: Path | None) -> None:
        if format is None:
            ending = out.suffix.removeprefix(".").lower() if out else ""
            format = ending if ending in FORMATS else "table"
        self.format, self.out = one_of("format", format, FORMATS), out
        if format == "parquet" and out is None:
            raise EmbspaceError("--format parquet writes binary data. Name a file for it: --out table.parquet.")
        if out is not None:
            from ..files import refuse_unwritable

            refuse_unwritable(out)

    def give(self, df: Any, hint: str = "") -> None:
        """Print or write a table; the hint stands under a table on the terminal."""
        if self.format != "table":
            data = encode(df, self.format)
        else:
            from ..display.terminal import render

            rows = ON_SCREEN if self.out is None and sys.stdout.isatty() else None
            data = (render(df, n=rows, hint=hint if self.out is None else "") + "\n").encode("utf-8")
        if self.out is not None:
            from ..files import write_whole

            write_whole(self.out, data)
            typer.echo(f"{self.out}: {len(df):,} rows", err=True)
        elif self.format == "table":
            say(data.decode("utf-8"), end="")
        else:
            typer.echo(data, nl=False)


def encode(df: Any, format: str) -> bytes:
    """A table as CSV, JSON or Parquet: exact strings, nothing prettified.

    Raises:
        EmbspaceError: If Parquet is asked for and pyarrow is not installed.
    """
    if format == "csv":
        # Strings in quotes, all of them: a token that is a lone carriage return would end a line.
        return df.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).encode("utf-8")
    if format == "json":
        return (df.to_json(orient="records", force_ascii=False, indent=1, double_precision=15) + "\n").encode("utf-8")
    try:
        import pyarrow  # noqa: F401
    except ImportError as reason:
        raise errors.missing_extra("pyarrow", "plots") from reason
    buffer = BytesIO()
    df.to_parquet(buffer, index=False)
    return buffer.getvalue()


def say(text: str, end: str = "\n") -> None:
    """Print text, whatever the terminal can show of it; stand-ins for spaces faint where it has colours."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        text = text.replace("␣", "\x1b[2m␣\x1b[22m")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    typer.echo(text + end, nl=False)


def next_command(command: str, model: str = MODEL, vocabulary: str = "all", score: str = "dot") -> str:
    """A command to try next, with the options that were given to this one."""
    options = "" if model == MODEL else f" --model {shlex.quote(model)}"
    options += "" if vocabulary == "all" else f" --vocabulary {shlex.quote(vocabulary)}"
    options += "" if score == "dot" else f" --score {score}"
    return f"Next: embspace-lens {command}{options}"


def first(df: Any, *names: str) -> str:
    """The options that select a table's first unit: `--layer 0 --head 0`."""
    return " ".join(f"--{name} {df[name].iloc[0] if len(df) else 0}" for name in names)
