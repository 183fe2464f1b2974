"""Commands to begin with: demo, models."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import EmbspaceError
from .options import MODEL, VOCABULARIES, Model, Score, open_lens
from .output import say


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
    from ..files import refuse_unwritable, write_whole

    refuse_unwritable(out)
    from .. import demo as shipped

    lens = open_lens(model, vocabulary or ("frequent" if model in shipped.names() else "words"), score)
    from ..report.model_summary import lens_options, summarize_model
    from ..report.page import report_html
    from ..report.terminal_overview import overview

    summary = summarize_model(lens, word=word, model=model)
    page = report_html(summary)
    say(overview(summary))
    path = write_whole(out, page.encode("utf-8"))
    say(f"\n{path} shows the same, to look at in a browser.\n\nNext:")
    say(f"  embspace-lens neurons --layer 0 {lens_options(summary)}")
    say(f"  embspace-lens search {shlex.quote(summary.word_text)} {lens_options(summary)}")
    say(f"  embspace-lens heads {lens_options(summary)} --out heads.csv")


def models() -> None:
    """List the demo models: what they are, and what they were trained on."""
    from .. import demo as shipped
    from ..display.tokens import format_score

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
        facts += (
            [f"held-out loss {format_score(card['held_out_loss'])} nats a token"] if "held_out_loss" in card else []
        )
        for line in (", ".join(shape), ", ".join(facts)):
            if line:
                say(f"  {line}")
    say("\nNext: embspace-lens demo --model " + names[0])


COMMANDS = (demo, models)
