"""Commands that compare two models: align, difference."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import (
    MODEL,
    K,
    Layer,
    LensOptions,
    Lowest,
    ProjectionOptions,
    Weight,
)
from .output import DrawnOutput, legible_options, middle_layer, next_command, next_reading, plain_warnings

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
            help="matches: the match of each layer; correlation: all pairs of layers; diagonal: for how many "
            "layers the nearest layer, and the match, is the layer with the same index.",
        ),
    ] = "matches",
    *,
    options: ProjectionOptions,
    output: DrawnOutput,
) -> None:
    """Match the layers of two models by their weights.

    Vectors are compared by their scores over shared tokens. Layers are matched so that the mean absolute correlation
    between their vectors is largest.

    For example:

        embspace-lens align reviews-small-0 reviews-small-1
    """
    lenses = [open_lens(model, options) for model in (a, b)]
    from ..compare.alignment import align

    with plain_warnings():
        alignment = align(*lenses, weights=weight or None, space=space)
    tables = {"matches": alignment.matches, "correlation": alignment.correlation, "diagonal": alignment.on_diagonal()}
    output.write(
        tables[table],
        f"{alignment}\n{next_reading(f'neurons --layer {middle_layer(lenses[1])}', b, options)}",
        alignment=alignment,
    )


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
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """Read what tuning changed in the weights.

    The tables are those of weights after tuning minus weights before.

    For example:

        embspace-lens difference reviews-small-0-sentiment
    """
    from ..demo import catalog

    base = catalog.card(after)["base"] if before is None and catalog.is_classifier(after) else before
    if base is None:
        raise errors.base_needed(after)
    positive_words, negative_words = read_words("--positive", positive), read_words("--negative", negative)
    if table == "displacement" and not (positive_words and negative_words):
        raise errors.word_lists_needed()
    if table == "singular" and weight and len(weight) > 1:
        raise errors.one_weight_needed()
    lenses = open_lens(after, options), open_lens(base, options)
    from ..compare.differences import difference
    from ..compare.displacements import displacement

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
    output.write(
        df, next_command(command, MODEL, *legible_options(after, options.vocabulary, options.score), options.words)
    )


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
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as reason:
        raise errors.unreadable_words(option, path, reason) from reason
    return [line.strip() for line in lines if line.strip() and line.strip()[0] not in ";#"]
