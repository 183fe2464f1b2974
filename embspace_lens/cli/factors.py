"""Commands of transformer factors: factors fit, contexts, importance, saliency, senses, explore."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .. import errors
from .dictionaries import Dictionary, Layers, MaxTokens, NContexts, load_dictionary, next_step
from .factor_tables import contexts, importance, saliency, senses
from .loading import load_texts, open_lens
from .options import MODEL, TEXTS, Column, LensOptions, Model, NTexts, Texts, Where, with_groups


def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder for the dictionary and its checkpoint.")],
    texts: Texts,
    n_factors: Annotated[int, typer.Option("--n-factors", metavar="N", min=1, help="Number of factors.")],
    l1: Annotated[float, typer.Option("--l1", metavar="X", help="Weight of the L1 penalty on the codes.")],
    model: Model = MODEL,
    layer: Layers = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Number of passes over the texts.")] = 1,
    max_vectors: Annotated[
        int | None,
        typer.Option("--max-vectors", metavar="N", min=1, help="Number of hidden states after which to stop."),
    ] = None,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the initial factors and of the order of texts.")
    ] = 0,
) -> None:
    """Fit a dictionary of factors to the hidden states of texts.

    Ctrl-C saves a checkpoint, and the same command resumes the fit.
    """
    examples = load_texts(texts, column, where, n_texts)
    lens = open_lens(model, runs_model=True)
    from ..factors.training import fit_factors

    with says_how_to_resume():
        dictionary = fit_factors(
            lens.model,
            examples,
            n_factors=n_factors,
            l1=l1,
            layers=layer,
            epochs=epochs,
            max_vectors=max_vectors,
            max_tokens=max_tokens,
            seed=seed,
            checkpoint=folder / "checkpoint",
        )
    dictionary.save(folder)
    typer.echo(f"{folder}: {dictionary}")
    typer.echo(next_step("contexts", folder, texts, model))


@contextmanager
def says_how_to_resume() -> Iterator[None]:
    """Print the message of an interruption, which states how to resume, instead of only ending the command."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        message = str(interrupt).replace("The same call", "The same command")
        typer.echo(message or "Interrupted.", err=True)
        raise typer.Exit(130) from interrupt


def explore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder for the site.")] = Path("factors-site"),
    texts: Annotated[Path | None, typer.Option("--texts", metavar="PATH", help=TEXTS)] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the demo model's dictionary, and texts sampled from the demo model.")
    ] = False,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: NContexts = 200,
    saliency: Annotated[
        int,
        typer.Option(
            "--saliency",
            metavar="N",
            min=0,
            help="Number of contexts of each factor for which salient tokens are computed, about one second for each. "
            "After Ctrl-C the same command resumes.",
        ),
    ] = 0,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
) -> None:
    """Write a web site with one page for each factor.

    For example:

        embspace-lens factors explore --demo
    """
    if demo == (texts is not None):
        raise errors.texts_or_demo()
    if demo and factors is not None:
        raise errors.demo_has_factors()
    examples = load_texts(texts, column, where, n_texts) if texts is not None else None
    dictionary = load_dictionary(factors, model)
    lens = open_lens(model, LensOptions(vocabulary="words", score="cosine"), runs_model=True)
    from ..factors.pretrained import demo_saliency
    from ..forward.sampling import sample_texts
    from ..site.pages import explore

    if examples is None:
        examples = sample_texts(lens.model)
    if demo and layer is None:
        layers = list(range(lens.weights.n_layers))  # the dictionary was not fitted to the embedding
    else:
        layers = layer
    source = "sampled from the model" if texts is None else texts.name
    checkpoint = None
    if saliency:
        target = folder.expanduser().absolute()
        checkpoint = target.with_name(f"{target.name}.saliency.safetensors")
        if demo and not checkpoint.exists():
            shutil.copyfile(demo_saliency(model), checkpoint)
    elif demo:
        checkpoint = demo_saliency(model)
    with says_how_to_resume():
        explore(
            dictionary,
            folder,
            model=lens.model,
            texts=examples,
            lens=lens,
            layers=layers,
            n_contexts=n,
            n_explained=saliency,
            max_tokens=max_tokens,
            about={"Texts": f"{len(examples):,}, {source}"},
            checkpoint=checkpoint,
        )
    typer.echo(f"{folder}: {dictionary.n_factors:,} factors\nOpen {folder / 'index.html'} in a browser.")


app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Fit and read transformer factors of hidden states.",
)
for command in (fit, contexts, importance, saliency, senses, explore):
    app.command()(with_groups(command))
