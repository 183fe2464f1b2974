"""What commands take: the options they share, and the lens that these describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import errors
from ..errors import EmbspaceError

MODEL = "reviews-small-0"
VOCABULARIES = ("all", "ascii", "words", "trained", "frequent")
SCORES = ("dot", "centered", "cosine")
FORMATS = ("table", "csv", "parquet", "json")

Model = Annotated[
    str, typer.Option("--model", metavar="NAME|FOLDER", help="A demo model, a folder, or a model of the hub.")
]
Layer = Annotated[str | None, typer.Option("--layer", metavar="N", help="Blocks: 3, or 0,2, or 1-4. All by default.")]
Head = Annotated[str | None, typer.Option("--head", metavar="N", help="Heads, written as layers are. All by default.")]
Neuron = Annotated[
    str | None, typer.Option("--neuron", metavar="N", help="Neurons, written as layers are. All by default.")
]
Expert = Annotated[
    str | None,
    typer.Option("--expert", metavar="N", help="Experts of a mixture, written as layers are. All by default."),
]
K = Annotated[int, typer.Option("-k", metavar="N", help="How many tokens (pairs, units) of each.")]
Weight = Annotated[
    list[str] | None, typer.Option("--weight", metavar="W", help="Which weight; may be given several times.")
]
Vocab = Annotated[
    str,
    typer.Option(
        "--vocabulary",
        metavar="|".join(VOCABULARIES),
        help="Which tokens to read: words are whole words, frequent those that the demo models saw 200 times. "
        "Joined: 'words & trained'.",
    ),
]
Score = Annotated[
    str,
    typer.Option(
        "--score", metavar="|".join(SCORES), help="Inner product, the same with centred embeddings, or cosine."
    ),
]
Lowest = Annotated[bool, typer.Option("--lowest", help="The lowest scores first, instead of the highest.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="|".join(FORMATS), help="By default what --out ends in, or else a table to be read."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Write to a file, whole or not at all.")]


def numbers(name: str, value: str | None) -> list[int] | None:
    """What `3`, `0,2`, `1-4` or a mixture of them selects; None for all.

    Raises:
        EmbspaceError: If it is none of these.
    """
    if value is None:
        return None
    chosen: list[int] = []
    for part in value.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise EmbspaceError(f"--{name} {value!r} selects nothing. Give a number, several (0,2), or a range (1-4).")
        if dash and int(last) < int(first):
            raise EmbspaceError(
                f"--{name} {value!r} selects nothing: {first} is greater than {last}. Give {last}-{first}."
            )
        if dash and int(last) - int(first) > 1_000_000:
            raise EmbspaceError(
                f"--{name} {value!r} selects more than a model has. Give a number, several (0,2), or a range (1-4)."
            )
        chosen.extend(range(int(first), int(last) + 1 if dash else int(first) + 1))
    return chosen


def one_of(option: str, value: str, options: tuple[str, ...]) -> str:
    """The value itself, if it is one of the options.

    Raises:
        EmbspaceError: If it is not.
    """
    if value not in options:
        raise errors.choice(f"--{option}", value, options)
    return value


def token_mask(vocabulary: str) -> Any:
    """The mask of tokens that `--vocabulary` names, one or several joined with `&`; None for all tokens.

    Raises:
        EmbspaceError: If a name is unknown.
    """
    names = [one_of("vocabulary", part.strip(), VOCABULARIES) for part in vocabulary.split("&")]
    from ..demo import frequent_words
    from ..space.masks import NAMED_MASKS

    masks = NAMED_MASKS | {"frequent": frequent_words}
    chosen = [masks[name] for name in names if name != "all"]
    return reduce(and_, chosen) if chosen else None


def open_lens(model: str, vocabulary: str, score: str, space: str = "circuit") -> Any:
    """The lens that the options describe, loaded without chatter.

    Raises:
        EmbspaceError: If an option is unknown, or there is no such model.
    """
    one_of("score", score, SCORES)
    with quietly():
        mask = token_mask(vocabulary)
        from ..lens import EmbeddingLens

        return EmbeddingLens.from_pretrained(model, vocabulary=mask, score=score, space=space)


@contextmanager
def quietly() -> Iterator[None]:
    """Load models with no bars, logs or warnings of the libraries underneath."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        if bars:
            transformers_logging.enable_progress_bar()
