"""The command line: `embspace-lens`, or `python -m embspace_lens`."""

import csv
import os
import shlex
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import errors
from .errors import EmbspaceError

MODEL = "reviews-small-0"
FORMATS = ("table", "csv", "parquet", "json")
VOCABULARIES = ("all", "ascii", "words", "trained", "frequent")
SCORES = ("dot", "centered", "cosine")
ON_SCREEN = 40  # neurons or heads shown on a terminal; a file or a pipe gets them all


class Sentences(TyperGroup):
    """Commands whose errors are one sentence, and an exit code of 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EmbspaceError as reason:
            typer.echo(str(reason), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Sentences,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="A transformer's weights as tables of tokens, with no forward pass.\n\nStart with: embspace-lens demo",
)


def main() -> None:
    """Run the command line."""
    app(prog_name="embspace-lens")


def numbers(name: str, value: str | None) -> list[int] | None:
    """What `3`, `0,2`, `1-4` or a mixture of them selects; None for all.

    Raises:
        EmbspaceError: If it is none of these.
    """
    if value is None:
        return None
    chosen: list[int] = []
    for part in value.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise EmbspaceError(f"--{name} {value!r} selects nothing. Give a number, several (0,2), or a range (1-4).")
        if dash and int(last) < int(first):
            raise EmbspaceError(
                f"--{name} {value!r} selects nothing: {first} is greater than {last}. Give {last}-{first}."
            )
        if dash and int(last) - int(first) > 1_000_000:
            raise EmbspaceError(
                f"--{name} {value!r} selects more than a model has. Give a number, several (0,2), or a range (1-4)."
            )
        chosen.extend(range(int(first), int(last) + 1 if dash else int(first) + 1))
    return chosen


Model = Annotated[
    str, typer.Option("--model", metavar="NAME|FOLDER", help="A demo model, a folder, or a model of the hub.")
]
Layer = Annotated[str | None, typer.Option("--layer", metavar="N", help="Blocks: 3, or 0,2, or 1-4. All by default.")]
Head = Annotated[str | None, typer.Option("--head", metavar="N", help="Heads, written as layers are. All by default.")]
Neuron = Annotated[
    str | None, typer.Option("--neuron", metavar="N", help="Neurons, written as layers are. All by default.")
]
K = Annotated[int, typer.Option("-k", metavar="N", help="How many tokens (pairs, units) of each.")]
Weight = Annotated[
    list[str] | None, typer.Option("--weight", metavar="W", help="Which weight; may be given several times.")
]
Vocab = Annotated[
    str,
    typer.Option(
        "--vocabulary",
        metavar="|".join(VOCABULARIES),
        help="Which tokens to read: words are whole words, frequent those that the demo models saw 200 times.",
    ),
]
Score = Annotated[
    str,
    typer.Option(
        "--score", metavar="|".join(SCORES), help="Inner product, the same with centred embeddings, or cosine."
    ),
]
Lowest = Annotated[bool, typer.Option("--lowest", help="The lowest scores first, instead of the highest.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="|".join(FORMATS), help="By default what --out ends in, or else a table to be read."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Write to a file, whole or not at all.")]


def open_lens(model: str, vocabulary: str, score: str) -> Any:
    """The lens that the options describe, loaded without chatter.

    Raises:
        EmbspaceError: If an option is unknown, or there is no such model.
    """
    for name, value, options in (("vocabulary", vocabulary, VOCABULARIES), ("score", score, SCORES)):
        if value not in options:
            raise errors.choice(f"--{name}", value, options)
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from . import demo as shipped
            from .lens import EmbeddingLens

            masks = {"all": None, "frequent": shipped.frequent_words}
            return EmbeddingLens.from_pretrained(model, vocabulary=masks.get(vocabulary, vocabulary), score=score)
    finally:
        logging.disable(logging.NOTSET)
        if bars:
            transformers_logging.enable_progress_bar()


def format_of(form: str | None, out: Path | None) -> str:
    """The format that was asked for, by name or by the file's ending.

    Raises:
        EmbspaceError: If there is no such format, or it cannot go to a terminal.
    """
    if form is None:
        ending = out.suffix.removeprefix(".").lower() if out else ""
        form = ending if ending in FORMATS else "table"
    if form not in FORMATS:
        raise errors.choice("--format", form, FORMATS)
    if form == "parquet" and out is None:
        raise EmbspaceError("--format parquet writes binary data. Name a file for it: --out table.parquet.")
    return form


def encode(df: Any, form: str) -> bytes:
    """A table as CSV, JSON or Parquet: exact strings, nothing prettified.

    Raises:
        EmbspaceError: If Parquet is asked for and pyarrow is not installed.
    """
    if form == "csv":
        # Strings in quotes, all of them: a token that is a lone carriage return would end a line.
        return df.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).encode("utf-8")
    if form == "json":
        return (df.to_json(orient="records", force_ascii=False, indent=1, double_precision=15) + "\n").encode("utf-8")
    try:
        import pyarrow  # noqa: F401
    except ImportError as reason:
        raise errors.missing_extra("pyarrow", "plots") from reason
    buffer = BytesIO()
    df.to_parquet(buffer, index=False)
    return buffer.getvalue()


def give(df: Any, form: str, out: Path | None, hint: str) -> None:
    """Print or write a table."""
    if form != "table":
        data = encode(df, form)
    else:
        from .show.terminal import render

        screen = out is None and sys.stdout.isatty()
        data = (render(df, n=ON_SCREEN if screen else None, hint=hint if out is None else "") + "\n").encode("utf-8")
    if out is not None:
        from .show.files import write_whole

        write_whole(out, data)
        typer.echo(f"{out}: {len(df):,} rows", err=True)
    elif form == "table":
        say(data.decode("utf-8"), end="")
    else:
        typer.echo(data, nl=False)


def say(text: str, end: str = "\n") -> None:
    """Print text, whatever the terminal can show of it; stand-ins for spaces faint where it has colours."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        text = text.replace("␣", "\x1b[2m␣\x1b[22m")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    typer.echo(text + end, nl=False)


def read(
    make: Callable[[Any], Any],
    model: str,
    vocabulary: str,
    score: str,
    form: str | None,
    out: Path | None,
    next_command: Callable[[Any], str],
) -> None:
    """Make a table of a lens, and print or write it; what cannot be written is refused before the model is loaded."""
    form = format_of(form, out)
    if out is not None:
        from .show.files import refuse_unwritable

        refuse_unwritable(out)
    df = make(open_lens(model, vocabulary, score))
    options = "" if model == MODEL else f" --model {shlex.quote(model)}"
    options += "" if vocabulary == "all" else f" --vocabulary {vocabulary}"
    options += "" if score == "dot" else f" --score {score}"
    give(df, form, out, f"Next: embspace-lens {next_command(df)}{options}")


def first(df: Any, *names: str) -> str:
    """The options that select a table's first unit: `--layer 0 --head 0`."""
    return " ".join(f"--{name} {df[name].iloc[0] if len(df) else 0}" for name in names)


@app.command()
def demo(
    model: Model = MODEL,
    word: Annotated[str | None, typer.Option("--word", help="A word: who writes it, who reads it?")] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--vocabulary", metavar="|".join(VOCABULARIES), help="By default frequent for a demo model, else words."
        ),
    ] = None,
    score: Score = "cosine",
    out: Annotated[Path, typer.Option("--report", "--out", metavar="PATH", help="Where the report goes.")] = Path(
        "report.html"
    ),
) -> None:
    """Show what a model's weights say: neurons, heads, a word; and write it all as one HTML file."""
    from .show.files import refuse_unwritable, write_whole

    refuse_unwritable(out)
    from . import demo as shipped

    lens = open_lens(model, vocabulary or ("frequent" if model in shipped.names() else "words"), score)
    from .show.findings import find, options
    from .show.overview import overview
    from .show.report import report_html

    found = find(lens, word=word, model=model)
    page = report_html(found)
    say(overview(found))
    path = write_whole(out, page.encode("utf-8"))
    say(f"\n{path} shows the same, to look at in a browser.\n\nNext:")
    say(f"  embspace-lens neurons --layer 0 {options(found)}")
    say(f"  embspace-lens search {shlex.quote(found.text)} {options(found)}")
    say(f"  embspace-lens heads {options(found)} --out heads.csv")


@app.command()
def models() -> None:
    """List the demo models: what they are, and what they were trained on."""
    from . import demo as shipped
    from .show.tokens import figures

    names = shipped.names()
    if not names:
        raise EmbspaceError("No demo model is installed. Give a folder or a model of the hub: --model gpt2.")
    for name in names:
        card = shipped.card(name)
        config = card.get("config", {})
        say(name)
        shape = [
            f"{config[key]} {word}" for key, word in (("n_layers", "layers"), ("n_heads", "heads")) if key in config
        ]
        shape += [f"{key} {config[key]:,}" for key in ("d_model", "d_vocab", "n_ctx") if key in config]
        shape += [f"seed {config['seed']}"] if "seed" in config else []
        facts = [f"{card['parameters']:,} parameters"] if "parameters" in card else []
        facts += [f"{card['tokens_seen']:,} tokens seen"] if "tokens_seen" in card else []
        facts += [f"held-out loss {figures(card['held_out_loss'])} nats a token"] if "held_out_loss" in card else []
        for line in (", ".join(shape), ", ".join(facts)):
            if line:
                say(f"  {line}")
    say("\nNext: embspace-lens demo --model " + names[0])


@app.command()
def neurons(
    model: Model = MODEL,
    layer: Layer = None,
    neuron: Neuron = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """List neurons with the tokens that they read (W_in, W_gate) and write (W_out)."""
    layers, chosen = numbers("layer", layer), numbers("neuron", neuron)
    read(
        lambda lens: lens.neurons(layers, chosen, weight=weight or None, k=k, largest=not lowest),
        model,
        vocabulary,
        score,
        format,
        out,
        lambda df: "search ' the'",
    )


@app.command()
def heads(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """List heads with their best pairs of tokens: W_OV (moves a→b) and W_QK (a attends to b).

    With --weight W_Q, W_K, W_V or W_O: the tokens of each of their columns or rows.
    """
    layers, chosen = numbers("layer", layer), numbers("head", head)
    circuits, subheads = ("W_OV", "W_QK"), ("W_Q", "W_K", "W_V", "W_O")
    wanted = list(weight or circuits)
    for name in wanted:
        if name not in (*circuits, *subheads):
            raise errors.choice("weight", name, (*circuits, *subheads))
    if any(name in circuits for name in wanted) and any(name in subheads for name in wanted):
        raise EmbspaceError(
            "W_OV and W_QK are tables of pairs, W_Q, W_K, W_V and W_O tables of tokens. Ask for one kind at a time."
        )

    def make(lens: Any) -> Any:
        import pandas as pd

        if wanted[0] in subheads:
            return lens.subheads(layers, chosen, weight=wanted, k=k, largest=not lowest)
        tables = [
            {"W_OV": lens.ov, "W_QK": lens.qk}[name](layers, chosen, k=k, largest=not lowest)
            for name in circuits
            if name in wanted
        ]
        # A stable sort by keys alone puts each head's two circuits side by side, W_OV first as in the list of weights.
        return pd.concat(tables, ignore_index=True).sort_values(["layer", "head"], kind="stable", ignore_index=True)

    def next_command(df: Any) -> str:
        return f"heads {first(df, 'layer', 'head')} --weight {'W_OV' if wanted[0] in subheads else 'W_V'}"

    read(make, model, vocabulary, score, format, out, next_command)


@app.command()
def search(
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its exact text, mind the leading space (' film'); or #ID.")
    ],
    model: Model = MODEL,
    layer: Layer = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Ask who reads or writes a token: the neurons and sub-heads that score it highest."""
    layers = numbers("layer", layer)
    by_id = token.startswith("#") and token[1:].isascii() and token[1:].isdigit()
    wanted: str | int = int(token[1:]) if by_id else token

    def next_command(df: Any) -> str:
        in_mlp = df[df["neuron"] >= 0].sort_values("score", ascending=lowest, kind="stable")
        return f"neurons {first(in_mlp, 'layer', 'neuron')}" if len(in_mlp) else f"heads {first(df, 'layer', 'head')}"

    read(
        lambda lens: lens.search(wanted, layers, weight=weight or None, k=k, largest=not lowest),
        model,
        vocabulary,
        score,
        format,
        out,
        next_command,
    )


@app.command()
def components(model: Model = MODEL, format: Format = None, out: Out = None) -> None:
    """List the weights: shape, norm, and which norm's gain was folded in."""
    read(lambda lens: lens.components(), model, "all", "dot", format, out, lambda df: "neurons --layer 0")
