"""Options and loading that the commands of transformer factors share."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Indices
from .output import next_command

if TYPE_CHECKING:
    from ..factors.dictionary import Factors

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


def load_dictionary(folder: Path | None, model: str) -> "Factors":
    """The dictionary in a folder; without one, the demo model's."""
    from ..factors.dictionary import Factors
    from ..factors.pretrained import demo_factors

    return demo_factors(model) if folder is None else Factors.load(folder)


def select_factors(indices: list[int] | None, dictionary: "Factors") -> list[int]:
    """The selected factors of a dictionary; None selects all.

    Raises:
        EmbspaceError: If the dictionary has no such factor.
    """
    from ..tables.selection import select

    return select("factor", indices, dictionary.n_factors, "the dictionary", "factors")


def next_step(command: str, folder: Path | None, texts: Path, model: str) -> str:
    """The line that names a command of this group to try next, on the same dictionary and texts."""
    dictionary = "" if folder is None else f" --factors {shlex.quote(str(folder))}"
    return next_command(f"factors {command}{dictionary} --texts {shlex.quote(str(texts))}", model)
