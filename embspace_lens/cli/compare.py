"""Commands that compare two models: align, stitch, difference."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EmbspaceError
from .options import Format, K, Layer, Lowest, Out, Score, Vocab, Weight, numbers, one_of, open_lens
from .output import Output, next_command

SPACES = ("embedding", "residual")
TABLES = ("matches", "correlation", "diagonal")
CHANGES = ("components", "neurons", "subheads", "singular", "displacement")

First = Annotated[str, typer.Argument(metavar="A", help="A demo model, a folder, or a model of the hub.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another, which may differ in depth, width and tokenizer.")]
Space = Annotated[
    str,
    typer.Option(
        "--space",
        metavar="|".join(SPACES),
        help="Over shared tokens, or the baseline: over the residual stream's axes.",
    ),
]
Table = Annotated[
    str,
    typer.Option(
        "--table",
        metavar="|".join(TABLES),
        help="Each layer's partner, every pair of layers, or how many partners have the same number.",
    ),
]


def align(
    a: First,
    b: Second,
    weight: Weight = None,
    space: Space = "embedding",
    table: Table = "matches",
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Find which layer of one model is which of another: the mean |correlation| of their vectors over shared tokens."""
    one_of("space", space, SPACES)
    one_of("table", table, TABLES)
    output = Output(format, out)
    lenses = [open_lens(model, vocabulary, score) for model in (a, b)]
    from ..compare import align as compare

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        found = compare(*lenses, weights=weight or None, space=space)
    for warning in warned:
        typer.echo(str(warning.message), err=True)
    df = {"matches": found.matches, "correlation": found.correlation, "diagonal": found.on_diagonal()}[table]
    output.give(df, f"{found}\n{next_command('neurons --layer 0', b, vocabulary, score)}")


def stitch(
    recipient: Annotated[
        str,
        typer.Argument(metavar="RECIPIENT", help="The pretrained model: a demo model, a folder, or one of the hub."),
    ],
    donor: Annotated[
        list[str],
        typer.Argument(
            metavar="DONOR...", help="Classifiers: a demo classifier, or folders that embspace_lens.demo.tune wrote."
        ),
    ],
    texts: Annotated[Path, typer.Option("--texts", metavar="PATH", help="Labelled texts: Parquet, JSON lines or CSV.")],
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="The column of texts.")] = "text",
    label: Annotated[str, typer.Option("--label", metavar="NAME", help="The column of their classes.")] = "label",
    where: Annotated[
        str | None, typer.Option("--where", metavar="QUERY", help="Which rows, such as \"split == 'test'\".")
    ] = None,
    n_texts: Annotated[
        int | None, typer.Option("--n-texts", metavar="N", min=1, help="The first N texts; all by default.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="N", help="Blocks of the recipient that run: 2, or 0-4. All numbers by default."
        ),
    ] = None,
    graft: Annotated[
        int | None,
        typer.Option("--graft", metavar="N", help="Blocks of the donor that run; by default those that were tuned."),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel",
            metavar="NAME",
            help="pinv (the paper's), least_squares, ridge, procrustes, states, transpose, random or untranslated; may be "
            "given several times.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="The rest of a text is cut off.")] = 128,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the random map and of made-up text.")] = 0,
    space: Annotated[
        str,
        typer.Option("--space", metavar="embed|unembed|circuit", help="Which embeddings vectors are carried through."),
    ] = "embed",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="PATH", help="A JSON file; the same command goes on from it.")
    ] = None,
    vocabulary: Vocab = "all",
    format: Format = None,
    out: Out = None,
) -> None:
    """Carry classifiers to a model that never was tuned, and measure them there, beside their controls."""
    output = Output(format, out)
    from .. import demo
    from ..forward.texts import read_labelled

    heads = {name: demo.head(name) for name in donor}
    tuned = {demo.card(name)["config"]["n_blocks"] for name in donor}
    if graft is None and len(tuned) > 1:
        raise EmbspaceError(f"The classifiers differ in how many blocks were tuned: {sorted(tuned)}. Say --graft.")
    found, classes = read_labelled(texts, column=column, label=label, where=where)
    receives = open_lens(recipient, vocabulary, "dot", space=space)
    donors = {name: (open_lens(name, vocabulary, "dot", space=space), head) for name, head in heads.items()}
    from ..compare import stitch_sweep

    options: dict[str, Any] = {"kernels": kernel} if kernel else {}
    df = stitch_sweep(
        receives,
        donors,
        found[:n_texts],
        classes[:n_texts],
        graft=tuned.pop() if graft is None else graft,
        keep=numbers("keep", keep),
        max_tokens=max_tokens,
        seed=seed,
        checkpoint=checkpoint,
        **options,
    )
    output.give(df, next_command(f"difference {donor[0]}", vocabulary=vocabulary))


def difference(
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The tuned model.")],
    before: Annotated[
        str | None,
        typer.Argument(metavar="BEFORE", help="What it was tuned from; a demo classifier's base is known."),
    ] = None,
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="|".join(CHANGES),
            help="How large the change is, what its directions read as, or how far it points to words of one sign.",
        ),
    ] = "components",
    layer: Layer = None,
    weight: Weight = None,
    k: K = 10,
    lowest: Lowest = False,
    positive: Annotated[
        Path | None, typer.Option("--positive", metavar="PATH", help="For displacement: words of one sign, one a line.")
    ] = None,
    negative: Annotated[Path | None, typer.Option("--negative", metavar="PATH", help="Words of the other.")] = None,
    vocabulary: Vocab = "all",
    score: Score = "dot",
    format: Format = None,
    out: Out = None,
) -> None:
    """Read what tuning changed: the weights after less the weights before."""
    one_of("table", table, CHANGES)
    layers = numbers("layer", layer)
    output = Output(format, out)
    from .. import demo

    base = demo.card(after)["base"] if before is None and demo.is_classifier(after) else before
    if base is None:
        raise EmbspaceError(f"What was {after} tuned from? Name it: embspace-lens difference {after} BASE.")
    lists = [_words(option, path) for option, path in (("positive", positive), ("negative", negative))]
    if table == "displacement" and not all(lists):
        raise EmbspaceError("--table displacement needs two lists of words: --positive FILE --negative FILE.")
    lenses = [open_lens(model, vocabulary, score) for model in (after, base)]
    from ..compare import difference as subtract
    from ..compare import displacement

    options: dict[str, Any] = {"layer": layers, "k": k}
    chosen: Any = weight or None
    if table == "displacement":
        df = displacement(*lenses, *lists, weight=chosen, **options)
    else:
        change = subtract(*lenses)
        if table == "components":
            df = _rows(change.components(), layer=layers, weight=chosen)
        elif table == "singular":
            if chosen and len(chosen) > 1:
                raise EmbspaceError("--table singular reads one weight; give --weight once.")
            df = change.singular(layers, weight=chosen[0] if chosen else "W_OV", k=k)
        else:
            df = getattr(change, table)(layers, weight=chosen, k=k, largest=not lowest)
    example = f"difference {after} {before or ''}".rstrip()
    output.give(df, next_command(f"{example} --table singular", vocabulary=vocabulary, score=score))


def _rows(df: Any, **wanted: list[Any] | None) -> Any:
    """The rows that have one of the wanted values in each column; None is all of them."""
    for column, values in wanted.items():
        df = df if values is None else df[df[column].isin(values)]
    return df.reset_index(drop=True)


def _words(option: str, path: Path | None) -> list[str]:
    """The words of a file, one a line; lines that begin with `;` or `#` are remarks."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as reason:
        raise EmbspaceError(f"--{option} {path} cannot be read: {reason.strerror or reason}.") from reason
    return [line.strip() for line in lines if line.strip() and line.strip()[0] not in ";#"]


COMMANDS = (align, stitch, difference)
