"""The command that stitches two models: stitch."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import Column, Device, Fold, Indices, LensOptions, NTexts, Vocabulary, Where
from .output import DrawnOutput, next_command


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
    inverse: Annotated[
        list[str] | None,
        typer.Option(
            "--inverse",
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
    fold: Fold = True,
    device: Device = None,
    *,
    output: DrawnOutput,
) -> None:
    """Measure classifiers on top of a model that was not tuned.

    The recipient's first layers run, a linear map carries their output to the donor's residual stream, and the donor's last
    layers classify it. The table holds the accuracy of each map, with controls.
    """
    from ..demo import catalog
    from ..forward.texts import read_labelled

    heads = {name: catalog.head(name) for name in donor}
    tuned_counts = {catalog.card(name)["config"]["n_blocks"] for name in donor}
    if graft is None and len(tuned_counts) > 1:
        raise errors.graft_needed(sorted(tuned_counts))
    examples, labels = read_labelled(texts, column=column, label=label, where=where)
    lens_options = LensOptions(vocabulary=vocabulary, space=space, fold=fold, device=device)
    recipient_lens = open_lens(recipient, lens_options, runs_model=True)
    donors = {name: (open_lens(name, lens_options, runs_model=True), head) for name, head in heads.items()}
    from ..compare.stitching_sweep import stitch_sweep

    options: dict[str, Any] = {"inverse": inverse} if inverse else {}
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
