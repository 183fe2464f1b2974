"""Commands to start with: demo, models."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import errors
from .loading import open_lens
from .options import MODEL, VOCABULARIES, Device, Fold, LensOptions, Model, Score
from .output import middle_layer, print_text


def demo(
    model: Model = MODEL,
    word: Annotated[
        str | None,
        typer.Option("--word", metavar="WORD", help="A word. The report shows the neurons that write and read it."),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--vocabulary",
            metavar=VOCABULARIES,
            help="The tokens to read. By default frequent for a demo model, words for others.",
        ),
    ] = None,
    score: Score = "cosine",
    fold: Fold = True,
    device: Device = None,
    out: Annotated[Path, typer.Option("--report", "--out", metavar="PATH", help="The HTML file of the report.")] = Path(
        "report.html"
    ),
) -> None:
    """Show what weights read and write, and make an HTML report.

    The report lists neurons and heads whose tokens are similar, the neurons that write and read one word, and the strongest
    pair of every head.

    For example:

        embspace-lens demo --word terrible
    """
    from ..files import refuse_unwritable, write_whole

    refuse_unwritable(out)
    from ..demo import catalog

    options = LensOptions(vocabulary or ("frequent" if model in catalog.names() else "words"), score, fold, device)
    lens = open_lens(model, options)
    from ..report.feature_weights import has_features
    from ..report.model_summary import lens_options, summarize_model
    from ..report.page import report_html
    from ..report.terminal_overview import overview

    summary = summarize_model(lens, word=word, model=model)
    page = report_html(summary)
    print_text(overview(summary))
    path = write_whole(out, page.encode("utf-8"))
    lens_options = lens_options(summary)
    layer = middle_layer(lens)
    print_text(
        f"\n{path} shows the same tables. Open it in a browser.\n\n"
        "Next:\n"
        f"  embspace-lens neurons --layer {layer} {lens_options}\n"
        f"  embspace-lens search {shlex.quote(summary.word_text)} {lens_options}\n"
        f"  embspace-lens heads {lens_options} --out heads.csv"
        + ("\n  embspace-lens features explore --demo" if has_features(model) else "")
    )


def models() -> None:
    """List the demo models with their sizes and training."""
    from ..demo import catalog

    names = catalog.names()
    if not names:
        raise errors.no_demo_models()
    for name in names:
        card = catalog.card(name)
        facts = _classifier_facts(card) if catalog.is_classifier(name) else _model_facts(card)
        print_text("\n".join([name, *(f"  {line}" for line in facts)]))
    print_text(f"\nNext: embspace-lens demo --model {names[0]}")


def _model_facts(card: dict[str, Any]) -> list[str]:
    """A demo model's sizes, and its training."""
    config = card["config"]
    sizes = ", ".join(f"{key} {config[key]:,}" for key in ("d_model", "d_vocab", "n_ctx"))
    return [
        f"{config['n_layers']} layers, {config['n_heads']} heads, {sizes}, seed {config['seed']}",
        f"{card['parameters']:,} parameters, {card['tokens_seen']:,} training tokens, "
        f"held-out loss {card['held_out_loss']:.2f} nats per token",
    ]


def _classifier_facts(card: dict[str, Any]) -> list[str]:
    """The model from which a demo classifier was tuned, and the classifier's accuracy."""
    config = card["config"]
    return [
        f"{card['base']} tuned to classify texts as {' or '.join(card['labels'])}",
        f"last {config['n_blocks']} layers tuned on {config['n_texts']:,} texts, held-out accuracy {card['held_out_accuracy']:.3f}",
    ]
