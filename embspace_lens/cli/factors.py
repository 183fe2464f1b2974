"""Commands of transformer factors: factors fit, contexts, importance, saliency, senses, explore."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EmbspaceError, out_of_range
from .options import MODEL, Format, Layer, Model, Out, numbers, open_lens
from .output import Output

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Transformer factors: hidden states as sparse sums of learnt directions.",
)

Texts = Annotated[
    Path, typer.Option("--texts", metavar="PATH", help="Parquet, JSON lines or CSV; or text, one text a paragraph.")
]
Column = Annotated[str, typer.Option("--column", metavar="NAME", help="The column of a table of texts.")]
Where = Annotated[
    str | None, typer.Option("--where", metavar="QUERY", help="Which rows of it, such as \"split == 'test'\".")
]
NTexts = Annotated[int | None, typer.Option("--n-texts", metavar="N", min=1, help="The first N texts; all by default.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="The rest of a text is cut off; the context by default.")
]
Dictionary = Annotated[
    Path | None,
    typer.Option(
        "--factors", metavar="FOLDER", help="What `factors fit` wrote; by default what a demo model comes with."
    ),
]
Layers = Annotated[
    str | None, typer.Option("--layer", metavar="N", help="After which blocks: 3, or 0,2, or 1-4. All by default.")
]


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the dictionary goes, and its checkpoint.")],
    texts: Texts,
    n_factors: Annotated[int, typer.Option("--n-factors", metavar="N", min=1, help="How many factors.")],
    l1: Annotated[float, typer.Option("--l1", metavar="X", help="The price of a code, in units of the hidden states.")],
    model: Model = MODEL,
    layer: Layers = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="How often the texts are read.")] = 1,
    max_vectors: Annotated[
        int | None, typer.Option("--max-vectors", metavar="N", min=1, help="Stop after so many hidden states.")
    ] = None,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the fit and of the shuffling.")] = 0,
) -> None:
    """Fit a dictionary to the hidden states of texts; the same command goes on where it was stopped."""
    layers = numbers("layer", layer)
    chosen, found = _read(texts, column, where, n_texts), _model(model)
    from ..factors import fit_factors

    options: dict[str, Any] = {"layers": layers, "epochs": epochs, "max_vectors": max_vectors, "max_tokens": max_tokens}
    made = fit_factors(
        found, chosen, n_factors=n_factors, l1=l1, seed=seed, checkpoint=folder / "checkpoint", **options
    )
    made.save(folder)
    typer.echo(f"{folder}: {made}\nNext: embspace-lens factors contexts --factors {folder} --texts {texts}")


@app.command()
def contexts(
    texts: Texts,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    factor: Annotated[
        str | None, typer.Option("--factor", metavar="N", help="Factors, written as layers are. All by default.")
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many contexts of each factor and layer.")] = 10,
    window: Annotated[int, typer.Option("--window", metavar="N", min=0, help="Tokens on either side.")] = 10,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """Where is each factor strongest?"""
    layers, wanted = numbers("layer", layer), numbers("factor", factor)
    output = Output(format, out)
    chosen = _read(texts, column, where, n_texts)
    dictionary, found = _dictionary(factors, model), _model(model)
    from ..factors import top_contexts

    _refuse_strange(wanted, dictionary)
    df = top_contexts(dictionary, found, chosen, layers=layers, n=n, window=window, max_tokens=max_tokens)
    if wanted is not None:  # codes depend on all factors: only what is shown is chosen
        df = df[df["factor"].isin(wanted)].reset_index(drop=True)
    output.give(df, "Next: embspace-lens factors importance --texts " + str(texts))


@app.command()
def importance(
    texts: Texts,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many codes are averaged.")] = 500,
    levels: Annotated[
        bool, typer.Option("--levels", help="One row a factor: word, pattern or long range, and its commonest target.")
    ] = False,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """How strong is each factor in each layer, and is it a word, a pattern or long range?"""
    layers = numbers("layer", layer)
    output = Output(format, out)
    chosen = _read(texts, column, where, n_texts)
    dictionary, found = _dictionary(factors, model), _model(model)
    from ..factors import activity
    from ..factors import level as level_of

    seen = activity(
        dictionary, found, chosen, layers=layers, n=n, n_contexts=200 if levels else 0, max_tokens=max_tokens
    )
    df = level_of(seen.importance, seen.contexts) if levels else seen.importance
    output.give(df, "Next: embspace-lens factors contexts --factor 0 --texts " + str(texts))


@app.command()
def saliency(
    texts: Texts,
    factor: Annotated[str, typer.Option("--factor", metavar="N", help="Factors: 3, or 0,2, or 1-4.")],
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many contexts of each factor and layer.")] = 1,
    n_samples: Annotated[
        int, typer.Option("--n-samples", metavar="N", min=1, help="How many variants of a context are run.")
    ] = 2001,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the variants.")] = 0,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """Which tokens around its strongest places decide a factor's code there?"""
    layers, wanted = numbers("layer", layer), numbers("factor", factor)
    output = Output(format, out)
    chosen = _read(texts, column, where, n_texts)
    dictionary, found = _dictionary(factors, model), _model(model)
    from ..factors import saliency as explain
    from ..factors import top_contexts

    _refuse_strange(wanted, dictionary)
    places: Any = top_contexts(dictionary, found, chosen, layers=layers, n=n, max_tokens=max_tokens)
    places = places[places["factor"].isin(wanted or [])]
    df = explain(dictionary, found, chosen, places, n_samples=n_samples, seed=seed)
    output.give(df, f"Next: embspace-lens factors contexts --factor {factor} --texts {texts}")


@app.command()
def senses(
    tagged: Annotated[
        Path, typer.Option("--tagged", metavar="PATH", help="A table of tagged words, in the order of the text.")
    ],
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layer = None,
    word: Annotated[
        list[str] | None,
        typer.Option("--word", metavar="WORD[=TAG,TAG]", help="One word, or several times; all by default."),
    ] = None,
    sentence: Annotated[
        str, typer.Option("--sentence", metavar="NAME,NAME", help="The columns that tell one sentence from the next.")
    ] = "sentence",
    at_least: Annotated[
        int, typer.Option("--at-least", metavar="N", min=4, help="How often two tags must occur.")
    ] = 60,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the split.")] = 0,
    format: Format = None,
    out: Out = None,
) -> None:
    """Can one factor tell a word's senses apart? The table has columns `word` and `tag`."""
    layers = numbers("layer", layer)
    output = Output(format, out)
    from ..forward.texts import read_table

    keys = sentence.split(",")
    df = read_table(tagged, [*keys, "word", "tag"])
    sentences = [
        list(zip(part["word"].astype(str), part["tag"].astype(str))) for _, part in df.groupby(keys, sort=False)
    ]
    named: Any = None
    if word:
        parts = [part.partition("=") for part in word]
        if len({bool(sign) for _, sign, _ in parts}) > 1:
            raise EmbspaceError("--word is either WORD each time, or WORD=TAG,TAG each time.")
        named = {w: tags.split(",") for w, _, tags in parts} if parts[0][1] else [w for w, _, _ in parts]
    dictionary, found = _dictionary(factors, model), _model(model)
    from ..factors import senses as measure

    output.give(measure(dictionary, found, sentences, words=named, layers=layers, at_least=at_least, seed=seed))


@app.command()
def explore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the site goes.")] = Path("factors-site"),
    texts: Annotated[
        Path | None,
        typer.Option("--texts", metavar="PATH", help="Parquet, JSON lines or CSV; or text, one text a paragraph."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="The demo model's own dictionary, and texts that the model makes up.")
    ] = False,
    factors: Dictionary = None,
    model: Model = MODEL,
    layer: Layers = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", min=1, help="How many contexts of each factor and layer.")
    ] = 200,
    saliency: Annotated[
        int,
        typer.Option("--saliency", metavar="N", min=0, help="Explain N contexts of each factor where it peaks; slow."),
    ] = 0,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
) -> None:
    """Write a site of all factors, to open in a browser."""
    layers = numbers("layer", layer)
    if demo == (texts is not None):
        raise EmbspaceError("Give --texts PATH, or --demo for texts that the demo model makes up.")
    if demo and factors is not None:
        raise EmbspaceError("--demo shows the demo model's own dictionary: leave --factors out, or give --texts.")
    chosen = _read(texts, column, where, n_texts) if texts is not None else None
    dictionary = _dictionary(factors, model)
    lens = open_lens(model, "words", "cosine")
    from ..factors.pretrained import sample_texts
    from ..site import explore as write

    read = sample_texts(lens.model) if chosen is None else chosen
    if demo and layers is None:
        layers = list(range(lens.weights.n_layers))  # the dictionary was not fitted to the embedding
    source = "made up by the model itself" if texts is None else texts.name
    write(
        dictionary,
        folder,
        model=lens.model,
        texts=read,
        lens=lens,
        layers=layers,
        n_contexts=n,
        n_explained=saliency,
        max_tokens=max_tokens,
        about={"Texts": f"{len(read):,}, {source}"},
    )
    typer.echo(f"{folder}: {dictionary.n_factors:,} factors\nOpen {folder / 'index.html'} in a browser.")


def _read(texts: Path, column: str, where: str | None, n_texts: int | None) -> list[str]:
    from ..forward.texts import read_texts

    return read_texts(texts, column=column, where=where)[:n_texts]


def _model(name: str) -> Any:
    return open_lens(name, "all", "dot").weights.model


def _refuse_strange(wanted: list[int] | None, dictionary: Any) -> None:
    """Before the texts are read."""
    for number in wanted or []:
        if not 0 <= number < dictionary.n_factors:
            raise out_of_range("factor", number, "the dictionary", dictionary.n_factors, "factors")


def _dictionary(folder: Path | None, model: str) -> Any:
    from ..factors import Factors
    from ..factors.pretrained import demo_factors

    return demo_factors(model) if folder is None else Factors.load(folder)
