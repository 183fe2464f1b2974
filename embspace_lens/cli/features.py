"""Commands of dictionaries of features: features explore."""

from pathlib import Path
from typing import Annotated

import typer

from .. import errors
from .dictionaries import MaxTokens
from .loading import load_texts, open_lens
from .options import MODEL, TEXTS, Column, LensOptions, Model, NTexts, Where, with_groups

DEMO = ("transcoder-1", "sae-1", "transcoder-3")


def explore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder for the site.")] = Path("features-site"),
    features: Annotated[
        list[Path] | None,
        typer.Option(
            "--features",
            metavar="PATH",
            help="An SAE or a transcoder: a folder of SAELens, sparsify or circuit-tracer, or a file of Gemma Scope. Repeat the "
            "option for several, between which virtual weights are computed.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the demo model's dictionaries, and texts sampled from the demo model.")
    ] = False,
    texts: Annotated[Path | None, typer.Option("--texts", metavar="PATH", help=TEXTS)] = None,
    model: Model = MODEL,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Number of contexts for each feature.")] = 100,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
) -> None:
    """Write a web site with one page for each feature.

    Without texts, the pages show what is known from weights: tokens, virtual weights, heads and neurons.

    For example:

        embspace-lens features explore --demo
    """
    if demo == bool(features):
        raise errors.features_or_demo()
    examples = load_texts(texts, column, where, n_texts) if texts is not None else None
    from ..demo import catalog
    from ..features.dictionary import Features
    from ..features.pretrained import demo_features
    from ..site.feature_pages import explore_features

    if demo:
        dictionaries = [demo_features(name, model=model) for name in DEMO]
    else:
        dictionaries = [Features.load(path) for path in features or ()]
    vocabulary = "frequent" if model in catalog.names() else "words"
    lens = open_lens(model, LensOptions(vocabulary=vocabulary, score="cosine"))
    about = {} if texts is None else {"Texts from": texts.name}
    if demo and examples is None:
        from ..forward.sampling import sample_texts

        examples, about = sample_texts(lens.model), {"Texts from": "sampled from the model"}
    explore_features(
        dictionaries,
        folder,
        model=lens.model,
        texts=examples,
        lens=lens,
        n_contexts=n,
        max_tokens=max_tokens,
        about=about,
    )
    typer.echo(f"{folder}: {sum(map(len, dictionaries)):,} features\nOpen {folder / 'index.html'} in a browser.")


app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Read SAEs and transcoders.",
)


@app.callback()
def options() -> None:
    """Keeps `features explore` a command of a group although it is the only one."""


app.command()(with_groups(explore))
