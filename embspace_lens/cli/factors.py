"""Commands of transformer factors: factors fit, contexts, importance, saliency, senses, explore."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from .loading import load_texts, open_lens
from .options import MODEL, TEXTS, Column, Format, Indices, Layer, Model, NTexts, Out, Texts, Where
from .output import Output, next_command

if TYPE_CHECKING:
    from ..factors.dictionary import Factors

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Fit and read transformer factors of hidden states.",
)

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        metavar="N",
        min=1,
        help="Number of tokens at which texts are cut. By default the context window.",
    ),
]
Dictionary = Annotated[
    Path | None,
    typer.Option(
        "--factors", metavar="FOLDER", help="A folder that `factors fit` wrote. By default the demo model's dictionary."
    ),
]
NContexts = Annotated[
    int, typer.Option("--n", metavar="N", min=1, help="Number of contexts for each factor and layer.")
]
Layers = Annotated[
    Indices | None,
    typer.Option(
        "--layer",
        metavar="N",
        parser=Indices,
        help="Layers whose output is read: 3, or 0,2, or 1-4. All, and the embedding, by default.",
    ),
]


@app.command()
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

    If the fit is interrupted, the same command resumes it.
    """
    examples = load_texts(texts, column, where, n_texts)
    lens = open_lens(model)
    from ..factors.training import fit_factors

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
    typer.echo(_next("contexts", folder, texts, model))


@app.command()
def contexts(
    texts: Texts,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    factor: Annotated[
        Indices | None,
        typer.Option("--factor", metavar="N", parser=Indices, help="Factors, written like layers. All by default."),
    ] = None,
    n: NContexts = 10,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=0, help="Number of tokens shown before and after the target.")
    ] = 10,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """List the contexts in which each factor is most active."""
    output = Output(format, out)
    examples = load_texts(texts, column, where, n_texts)
    dictionary = _load_dictionary(factors, model)
    _check_factors(factor, dictionary)
    from ..factors.contexts import top_contexts

    df = top_contexts(
        dictionary, open_lens(model).model, examples, layers=layer, n=n, window=window, max_tokens=max_tokens
    )
    if factor is not None:  # a code depends on all factors, so the selection comes last
        df = df.loc[df["factor"].isin(factor)].reset_index(drop=True)
    output.write(df, _next("importance", factors, texts, model))


@app.command()
def importance(
    texts: Texts,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", min=1, help="Number of largest codes whose mean is the importance.")
    ] = 500,
    levels: Annotated[
        bool,
        typer.Option(
            "--levels", help="One row per factor: its level (word, pattern or long range) and its most frequent target."
        ),
    ] = False,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """Measure how active each factor is in each layer."""
    output = Output(format, out)
    examples = load_texts(texts, column, where, n_texts)
    dictionary = _load_dictionary(factors, model)
    from ..factors.contexts import activity
    from ..factors.levels import level

    n_contexts = 200 if levels else 0
    measured = activity(
        dictionary, open_lens(model).model, examples, layers=layer, n=n, n_contexts=n_contexts, max_tokens=max_tokens
    )
    df = level(measured.importance, measured.contexts) if levels else measured.importance
    output.write(df, _next("contexts --factor 0", factors, texts, model))


@app.command()
def saliency(
    texts: Texts,
    factor: Annotated[
        Indices, typer.Option("--factor", metavar="N", parser=Indices, help="Factors: 3, or 0,2, or 1-4.")
    ],
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: NContexts = 1,
    n_samples: Annotated[
        int,
        typer.Option("--n-samples", metavar="N", min=1, help="Number of variants of a context that the model runs on."),
    ] = 2001,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the variants.")] = 0,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """Find the tokens on which a factor's code depends (LIME)."""
    output = Output(format, out)
    examples = load_texts(texts, column, where, n_texts)
    dictionary = _load_dictionary(factors, model)
    _check_factors(factor, dictionary)
    lens = open_lens(model)
    from ..factors.contexts import top_contexts
    from ..factors.lime import saliency

    found = top_contexts(dictionary, lens.model, examples, layers=layer, n=n, max_tokens=max_tokens)
    selected = found.loc[found["factor"].isin(factor)]
    df = saliency(dictionary, lens.model, examples, selected, n_samples=n_samples, seed=seed)
    output.write(df, _next(f"contexts --factor {factor.text}", factors, texts, model))


@app.command()
def senses(
    tagged: Annotated[
        Path,
        typer.Option("--tagged", metavar="PATH", help="A table of words with their tags, in the order of the text."),
    ],
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layer = None,
    word: Annotated[
        list[str] | None,
        typer.Option(
            "--word",
            metavar="WORD[=TAG,TAG]",
            help="A word, or a word and the tags of one sense. Repeat the option for several. All words by default.",
        ),
    ] = None,
    sentence: Annotated[
        str,
        typer.Option("--sentence", metavar="NAME,NAME", help="The columns that identify a sentence."),
    ] = "sentence",
    at_least: Annotated[
        int,
        typer.Option("--at-least", metavar="N", min=4, help="Number of times that two tags of a word must occur."),
    ] = 60,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the split into training and test.")] = 0,
    format: Format = None,
    out: Out = None,
) -> None:
    """Measure how well one factor tells the senses of a word apart.

    The table of --tagged has the columns `word` and `tag`, and those named by --sentence.
    """
    output = Output(format, out)
    words = _parse_words(word)
    from ..forward.texts import read_table

    keys = sentence.split(",")
    table = read_table(tagged, [*keys, "word", "tag"])
    sentences = [
        list(zip(rows["word"].astype(str), rows["tag"].astype(str))) for _, rows in table.groupby(keys, sort=False)
    ]
    dictionary = _load_dictionary(factors, model)
    lens = open_lens(model)
    from ..factors.word_senses import senses

    output.write(senses(dictionary, lens.model, sentences, words=words, layers=layer, at_least=at_least, seed=seed))


def _parse_words(options: list[str] | None) -> Any:
    """The words of `--word`: a list of words, or the tags of each; None for all words."""
    if not options:
        return None
    parts = [option.partition("=") for option in options]
    if len({equals for _, equals, _ in parts}) > 1:
        raise errors.mixed_word_options()
    has_tags = parts[0][1] == "="
    return {name: tags.split(",") for name, _, tags in parts} if has_tags else options


@app.command()
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
            help="Number of contexts of each factor for which salient tokens are computed. This is slow.",
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
    dictionary = _load_dictionary(factors, model)
    lens = open_lens(model, "words", "cosine")
    from ..forward.sampling import sample_texts
    from ..site.pages import explore

    if examples is None:
        examples = sample_texts(lens.model)
    if demo and layer is None:
        layers = list(range(lens.weights.n_layers))  # the dictionary was not fitted to the embedding
    else:
        layers = layer
    source = "sampled from the model" if texts is None else texts.name
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
    )
    typer.echo(f"{folder}: {dictionary.n_factors:,} factors\nOpen {folder / 'index.html'} in a browser.")


def _load_dictionary(folder: Path | None, model: str) -> "Factors":
    """The dictionary in a folder; without one, the demo model's."""
    from ..factors.dictionary import Factors
    from ..factors.pretrained import demo_factors

    return demo_factors(model) if folder is None else Factors.load(folder)


def _check_factors(indices: list[int] | None, dictionary: "Factors") -> None:
    """Raise if an index is not one of the dictionary's factors; this is known before texts are read."""
    from ..tables.selection import select

    select("factor", indices, dictionary.n_factors, "the dictionary", "factors")


def _next(command: str, folder: Path | None, texts: Path, model: str) -> str:
    """The line that names a command of this group to try next, on the same dictionary and texts."""
    dictionary = "" if folder is None else f" --factors {shlex.quote(str(folder))}"
    return next_command(f"factors {command}{dictionary} --texts {shlex.quote(str(texts))}", model)
