"""Commands that compare two models: align, stitch, difference."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import (
    MODEL,
    Column,
    Format,
    Indices,
    K,
    Layer,
    Lowest,
    NTexts,
    Out,
    Score,
    Vocabulary,
    Weight,
    Where,
)
from .output import Output, legible_options, middle_layer, next_command, next_reading, plain_warnings

if TYPE_CHECKING:
    import pandas as pd


def align(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A demo model, a local folder, or a model of the Hugging Face hub.")
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="A second model. Its depth, width and tokenizer may differ from the first."),
    ],
    weight: Weight = None,
    space: Annotated[
        Literal["embedding", "residual"],
        typer.Option(
            "--space",
            help="Correlate scores over shared tokens (embedding), or coordinates of the residual stream (residual, a baseline).",
        ),
    ] = "embedding",
    table: Annotated[
        Literal["matches", "correlation", "diagonal"],
        typer.Option(
            "--table",
            help="matches: the match of each layer; correlation: all pairs of layers; diagonal: the number of layers that "
            "match the layer with the same index.",
        ),
    ] = "matches",
    vocabulary: Vocabulary = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Match the layers of two models by their weights.

    Vectors are compared by their scores over shared tokens. Layers are matched so that the mean absolute correlation
    between their vectors is largest.

    For example:

        embspace-lens align reviews-small-0 reviews-small-1
    """
    output = Output(format, out)
    lenses = [open_lens(model, vocabulary, score) for model in (a, b)]
    from ..compare.alignment import align

    with plain_warnings():
        alignment = align(*lenses, weights=weight or None, space=space)
    tables = {"matches": alignment.matches, "correlation": alignment.correlation, "diagonal": alignment.on_diagonal()}
    output.write(
        tables[table],
        f"{alignment}\n{next_reading(f'neurons --layer {middle_layer(lenses[1])}', b, vocabulary, score)}",
    )


def stitch(
    recipient: Annotated[
        str,
        typer.Argument(
            metavar="RECIPIENT",
            help="The pretrained model: a demo model, a local folder, or a model of the Hugging Face hub.",
        ),
    ],
    donor: Annotated[
        list[str],
        typer.Argument(
            metavar="DONOR...", help="Classifiers: a demo classifier, or folders that embspace_lens.demo.tune wrote."
        ),
    ],
    texts: Annotated[
        Path, typer.Option("--texts", metavar="PATH", help="Labelled texts: a Parquet, JSON-lines or CSV file.")
    ],
    column: Column = "text",
    label: Annotated[str, typer.Option("--label", metavar="NAME", help="The column that holds the labels.")] = "label",
    where: Where = None,
    n_texts: NTexts = None,
    keep: Annotated[
        Indices | None,
        typer.Option(
            "--keep",
            metavar="N",
            parser=Indices,
            help="Number of first layers of the recipient to run: 2, or 0-4. All numbers by default.",
        ),
    ] = None,
    graft: Annotated[
        int | None,
        typer.Option(
            "--graft",
            metavar="N",
            min=0,
            help="Number of last layers of the donor to run. By default the layers that were tuned.",
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel",
            metavar="NAME",
            help="The map from the recipient's residual stream to the donor's: pinv (the paper's), least_squares, ridge, "
            "procrustes, states, transpose, random or untranslated. Repeat the option for several.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Number of tokens at which texts are cut.")
    ] = 128,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the random map and of the sampled texts.")
    ] = 0,
    space: Annotated[
        Literal["embed", "unembed", "circuit"],
        typer.Option(
            "--space",
            help="The embeddings from which the map is made. embed: W_E; unembed: W_U; circuit: W_E to read, W_U to write.",
        ),
    ] = "embed",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="PATH", help="A JSON file for results so far. The same command resumes from it."
        ),
    ] = None,
    vocabulary: Vocabulary = "all",
    format: Format = None,
    out: Out = None,
) -> None:
    """Measure classifiers on top of a model that was not tuned.

    The recipient's first layers run, a linear map carries their output to the donor's residual stream, and the donor's last
    layers classify it. The table holds the accuracy of each map, with controls.
    """
    output = Output(format, out)
    from ..demo import catalog
    from ..forward.texts import read_labelled

    heads = {name: catalog.head(name) for name in donor}
    tuned_counts = {catalog.card(name)["config"]["n_blocks"] for name in donor}
    if graft is None and len(tuned_counts) > 1:
        raise errors.graft_needed(sorted(tuned_counts))
    examples, labels = read_labelled(texts, column=column, label=label, where=where)
    recipient_lens = open_lens(recipient, vocabulary, space=space)
    donors = {name: (open_lens(name, vocabulary, space=space), head) for name, head in heads.items()}
    from ..compare.stitching_sweep import stitch_sweep

    options: dict[str, Any] = {"kernels": kernel} if kernel else {}
    df = stitch_sweep(
        recipient_lens,
        donors,
        examples[:n_texts],
        labels[:n_texts],
        graft=tuned_counts.pop() if graft is None else graft,
        keep=keep,
        max_tokens=max_tokens,
        seed=seed,
        checkpoint=checkpoint,
        **options,
    )
    output.write(df, next_command(f"difference {donor[0]}", vocabulary=vocabulary))


def difference(
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The tuned model.")],
    before: Annotated[
        str | None,
        typer.Argument(metavar="BEFORE", help="The model from which it was tuned. Not needed for a demo classifier."),
    ] = None,
    table: Annotated[
        Literal["components", "neurons", "subheads", "singular", "displacement"],
        typer.Option(
            "--table",
            help="components: the size of each weight's change; neurons, subheads, singular: the tokens of its directions; "
            "displacement: the share of these tokens that are words of one list.",
        ),
    ] = "components",
    layer: Layer = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    positive: Annotated[
        Path | None,
        typer.Option("--positive", metavar="PATH", help="For --table displacement: a list of words, one per line."),
    ] = None,
    negative: Annotated[
        Path | None,
        typer.Option("--negative", metavar="PATH", help="For --table displacement: words of the opposite sign."),
    ] = None,
    vocabulary: Vocabulary = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Read what tuning changed in the weights.

    The tables are those of weights after tuning minus weights before.

    For example:

        embspace-lens difference reviews-small-0-sentiment
    """
    output = Output(format, out)
    from ..demo import catalog

    base = catalog.card(after)["base"] if before is None and catalog.is_classifier(after) else before
    if base is None:
        raise errors.base_needed(after)
    positive_words, negative_words = read_words("--positive", positive), read_words("--negative", negative)
    if table == "displacement" and not (positive_words and negative_words):
        raise errors.word_lists_needed()
    if table == "singular" and weight and len(weight) > 1:
        raise errors.one_weight_needed()
    lenses = open_lens(after, vocabulary, score), open_lens(base, vocabulary, score)
    from ..compare.differences import difference, displacement

    if table == "displacement":
        df = displacement(*lenses, positive_words, negative_words, layer=layer, weight=weight or None, k=k)
    else:
        change = difference(*lenses)
        if table == "components":
            df = _select_rows(change.components(), layer=layer, weight=weight)
        elif table == "singular":
            df = change.singular(layer, weight=weight[0] if weight else "W_OV", k=k)
        else:
            read = change.neurons if table == "neurons" else change.subheads
            df = read(layer, weight=weight or None, k=k, largest=not lowest)
    models = after if before is None else f"{after} {before}"
    command = f"difference {models} --table {'neurons' if table == 'singular' else 'singular'}"
    output.write(df, next_command(command, MODEL, *legible_options(after, vocabulary, score)))


def _select_rows(df: "pd.DataFrame", **wanted: list[Any] | None) -> "pd.DataFrame":
    """The rows whose columns hold one of the wanted values; None and empty lists select all."""
    for column, values in wanted.items():
        df = df.loc[df[column].isin(values)] if values else df
    return df.reset_index(drop=True)


def read_words(option: str, path: Path | None) -> list[str]:
    """The words of a file, one per line; lines that begin with `;` or `#` are comments.

    Raises:
        EmbspaceError: If the file cannot be read.
    """
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as reason:
        raise errors.unreadable_words(option, path, reason) from reason
    return [line.strip() for line in lines if line.strip() and line.strip()[0] not in ";#"]


COMMANDS = (align, stitch, difference)
