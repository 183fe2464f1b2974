"""Commands that read a dictionary of factors: contexts, importance, saliency, senses."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import errors
from .dictionaries import Dictionary, Layers, MaxTokens, NContexts, load_dictionary, next_step, select_factors
from .loading import load_texts, open_lens
from .options import MODEL, Column, Indices, Layer, Model, NTexts, Texts, Where
from .output import Output


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
    *,
    output: Output,
) -> None:
    """List the contexts in which each factor is most active."""
    examples = load_texts(texts, column, where, n_texts)
    dictionary = load_dictionary(factors, model)
    selected = select_factors(factor, dictionary)
    from ..factors.contexts import top_contexts

    df = top_contexts(
        dictionary,
        open_lens(model, runs_model=True).model,
        examples,
        layers=layer,
        n=n,
        window=window,
        max_tokens=max_tokens,
    )
    df = df.loc[df["factor"].isin(selected)].reset_index(drop=True)  # codes depend on all factors: select last
    output.write(df, next_step("importance", factors, texts, model))


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
            "--levels",
            help="One row per factor: where its importance peaks (early, middle or late), and its most frequent target.",
        ),
    ] = False,
    max_tokens: MaxTokens = None,
    column: Column = "text",
    where: Where = None,
    n_texts: NTexts = None,
    *,
    output: Output,
) -> None:
    """Measure how active each factor is in each layer."""
    examples = load_texts(texts, column, where, n_texts)
    dictionary = load_dictionary(factors, model)
    from ..factors.contexts import activity
    from ..factors.levels import level

    n_contexts = 200 if levels else 0
    measured = activity(
        dictionary,
        open_lens(model, runs_model=True).model,
        examples,
        layers=layer,
        n=n,
        n_contexts=n_contexts,
        max_tokens=max_tokens,
    )
    df = level(measured.importance, measured.contexts) if levels else measured.importance
    output.write(df, next_step("contexts --factor 0", factors, texts, model))


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
    *,
    output: Output,
) -> None:
    """Find the tokens on which a factor's code depends (LIME)."""
    examples = load_texts(texts, column, where, n_texts)
    dictionary = load_dictionary(factors, model)
    selected = select_factors(factor, dictionary)
    lens = open_lens(model, runs_model=True)
    from ..factors.contexts import top_contexts
    from ..factors.lime import saliency

    strongest = top_contexts(dictionary, lens.model, examples, layers=layer, n=n, max_tokens=max_tokens)
    df = saliency(
        dictionary,
        lens.model,
        examples,
        strongest.loc[strongest["factor"].isin(selected)],
        n_samples=n_samples,
        seed=seed,
    )
    output.write(df, next_step(f"contexts --factor {factor.text}", factors, texts, model))


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
    *,
    output: Output,
) -> None:
    """Measure how well one factor separates the senses of a word.

    The table of --tagged has the columns `word` and `tag`, and those named by --sentence.
    """
    words = _parse_words(word)
    from ..forward.texts import read_table

    keys = sentence.split(",")
    table = read_table(tagged, [*keys, "word", "tag"])
    sentences = [
        list(zip(rows["word"].astype(str), rows["tag"].astype(str))) for _, rows in table.groupby(keys, sort=False)
    ]
    dictionary = load_dictionary(factors, model)
    lens = open_lens(model, runs_model=True)
    from ..factors.word_senses import senses

    output.write(senses(dictionary, lens.model, sentences, words=words, layers=layer, at_least=at_least, seed=seed))


def _parse_words(options: list[str] | None) -> Any:
    """The words of `--word`: a list of words, or a mapping from each word to its tags; None for all words."""
    if not options:
        return None
    parts = [option.partition("=") for option in options]
    if len({equals for _, equals, _ in parts}) > 1:
        raise errors.mixed_word_options()
    has_tags = parts[0][1] == "="
    return {name: tags.split(",") for name, _, tags in parts} if has_tags else options
