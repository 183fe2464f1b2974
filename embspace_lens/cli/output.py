"""Results of commands: a table on the terminal or in a file, and the command to try next."""

import csv
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import typer

from .. import errors
from ..files import refuse_unwritable, write_whole
from .options import DEFAULTS, MODEL, Format, FormatName, Out, Plot, ProjectionOptions

if TYPE_CHECKING:
    import pandas as pd

    from ..lens import EmbeddingLens

ENDINGS: dict[str, FormatName] = {"txt": "table", "csv": "csv", "parquet": "parquet", "json": "json"}
"""The format that the ending of a file names."""
ON_SCREEN = 40  # neurons or heads shown on a terminal; files and pipes receive all


@dataclass(frozen=True)
class Output:
    """The format and the destination of a table. It is made before a command runs, so that a path that cannot be written
    raises an error before any computation.

    Args:
        format: The format. None selects it by the ending of `out`; the default is a table for the terminal.
        out: The file; None for standard output.

    Raises:
        EmbspaceError: If the format needs a file, the ending of a file names no format or another one, or a file cannot be
            written.
    """

    format: Format = None
    out: Out = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", _format_of(self.format, self.out))
        if self.format == "parquet" and self.out is None:
            raise errors.parquet_needs_file()
        if self.out is not None:
            refuse_unwritable(self.out)

    def write(self, df: "pd.DataFrame", hint: str = "") -> None:
        """Print the table or write it to the file; a table for the terminal ends with the hint."""
        if self.out is not None:
            write_whole(
                self.out, (_as_text(df) + "\n").encode() if self.format == "table" else encode(df, str(self.format))
            )
            typer.echo(f"{self.out}: {len(df):,} rows", err=True)
        elif self.format == "table":
            print_text(_as_text(df, ON_SCREEN if sys.stdout.isatty() else None, hint))
        else:
            typer.echo(encode(df, str(self.format)), nl=False)


@dataclass(frozen=True)
class DrawnOutput(Output):
    """An `Output` that also draws the table.

    Args:
        plot: The file of the figure, .html or .png; None for no figure.
    """

    plot: Plot = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plot is not None:
            if self.plot.suffix.lower() not in (".html", ".png"):
                raise errors.unknown_ending(self.plot, "--plot", [".html", ".png"])
            refuse_unwritable(self.plot)

    def write(self, df: "pd.DataFrame", hint: str = "", **plot_options: Any) -> None:
        """Draw the figure, if one is wanted, and write the table; `plot_options` are those of `df.embspace.plot()`."""
        if self.plot is not None:
            from .. import accessor  # noqa: F401 (registers `df.embspace`)

            write_figure(df.embspace.plot(**plot_options), self.plot)
            typer.echo(f"{self.plot}: figure", err=True)
        super().write(df, hint)


def write_figure(figure: Any, path: Path) -> None:
    """Write a plotly figure: a page that needs no network (.html), or a picture (.png).

    Raises:
        EmbspaceError: If the file cannot be written, or a picture cannot be made.
    """
    if path.suffix.lower() == ".html":
        data = figure.to_html(include_plotlyjs=True).encode("utf-8")
    else:
        try:
            data = figure.to_image("png", scale=2)
        except Exception as reason:  # kaleido or its browser is missing; the class depends on the version
            raise errors.no_picture(path, shorten(str(reason), 160)) from reason
    write_whole(path, data)


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


def next_command(
    command: str, model: str = MODEL, vocabulary: str = "all", score: str = "dot", options: str = ""
) -> str:
    """The line that names a command to try next, with the options of this one; `options` are further ones as they are typed."""
    command += options
    command += "" if model == MODEL else f" --model {shlex.quote(model)}"
    command += "" if vocabulary == "all" else f" --vocabulary {shlex.quote(vocabulary)}"
    command += "" if score == "dot" else f" --score {score}"
    return f"Next: embspace-lens {command}"


def legible_options(model: str, vocabulary: str, score: str) -> tuple[str, str]:
    """The vocabulary and the score to propose for a reading.

    For a demo model, frequent words and the cosine replace the defaults: the token lists of a small model are then legible.
    """
    from ..demo.catalog import names

    if model not in names():
        return vocabulary, score
    return "frequent" if vocabulary == "all" else vocabulary, "cosine" if score == "dot" else score


def next_reading(command: str, model: str = MODEL, lens: ProjectionOptions = DEFAULTS) -> str:
    """The line that names a reading to try next, with the options of a lens that make its tokens legible."""
    return next_command(command, model, *legible_options(model, lens.vocabulary, lens.score), lens.words)


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
