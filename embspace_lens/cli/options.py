"""Options that several commands share, one by one and in groups."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

MODEL = "reviews-small-0"
VOCABULARIES = "all|ascii|words|trained|frequent"  # `all` and the names in `embspace_lens.lens.MASKS`

ScoreName = Literal["dot", "centered", "cosine"]
SpaceName = Literal["circuit", "unembed", "embed"]
InverseName = Literal["transpose", "pinv"]
FormatName = Literal["table", "csv", "parquet", "json"]


class Indices(list[int]):
    """Indices of layers, heads, neurons or factors, as the command line writes them: `3`, `0,2`, `1-4`, or `0,2-4`.

    Attributes:
        text: The text from which they were parsed.

    Raises:
        typer.BadParameter: If the text is none of these.

    Example:
        >>> Indices("0,2-4")
        [0, 2, 3, 4]
    """

    LARGEST = 1_000_000  # a wider range is a mistake, and would fill the memory

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        for part in text.split(","):
            first, dash, last = (piece.strip() for piece in part.partition("-"))
            if not _is_number(first) or (dash and not _is_number(last)):
                raise typer.BadParameter(
                    f"{text!r} selects nothing. Give one number (3), several (0,2) or a range (1-4)."
                )
            start, end = int(first), int(last or first)
            if end < start:
                raise typer.BadParameter(
                    f"{text!r} selects nothing: {start} is greater than {end}. Give {end}-{start}."
                )
            if end > self.LARGEST:
                raise typer.BadParameter(f"{text!r} is out of range: no model has an index of {end:,}.")
            self.extend(range(start, end + 1))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


# -- what is read

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER|URL",
        help="A demo model, a local folder, a GGUF file, a model of the Hugging Face hub, or an address: hf://organisation/model, https://….",
    ),
]
Layer = Annotated[
    Indices | None,
    typer.Option("--layer", metavar="N", parser=Indices, help="Layers: 3, or 0,2, or 1-4. All by default."),
]
Head = Annotated[
    Indices | None,
    typer.Option("--head", metavar="N", parser=Indices, help="Heads, written like layers. All by default."),
]
Neuron = Annotated[
    Indices | None,
    typer.Option("--neuron", metavar="N", parser=Indices, help="Neurons, written like layers. All by default."),
]
Expert = Annotated[
    Indices | None,
    typer.Option(
        "--expert", metavar="N", parser=Indices, help="Experts of a mixture, written like layers. All by default."
    ),
]
# The library checks the names of weights, because typer does not support lists of literals.
Weight = Annotated[
    list[Any] | None,
    typer.Option("--weight", metavar="W", help="A weight, such as W_out. Repeat the option for several."),
]
K = Annotated[int, typer.Option("-k", metavar="N", min=1, help="Number of tokens (or token pairs) in each list.")]
Lowest = Annotated[bool, typer.Option("--lowest", help="List the lowest scores instead of the highest.")]
Vocabulary = Annotated[
    str,
    typer.Option(
        "--vocabulary",
        metavar=VOCABULARIES,
        help="The tokens to read. ascii: printable ASCII; words: whole words; trained: no under-trained tokens; "
        "frequent: words that occur 200 times in the training texts of the demo models (only for these). "
        "Combine them with &: 'words & trained'.",
    ),
]
Score = Annotated[
    ScoreName,
    typer.Option(
        "--score",
        help="dot: inner product; centered: inner product with centred embeddings; cosine: cosine with centred embeddings.",
    ),
]

Fold = Annotated[
    bool,
    typer.Option(
        "--fold/--no-fold",
        help="Fold the gains of norms into the weights, and centre weights that read through a LayerNorm; "
        "or the weights as stored.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="The device, such as cpu or cuda. A demo model is read on the CPU."),
]
Offload = Annotated[
    bool | None,
    typer.Option(
        "--offload/--no-offload",
        help="Leave the weights in their checkpoint, and read each when it is needed; or load the model. By default, models "
        "stay in their checkpoint that would take more than 60 % of the free memory.",
        show_default=False,
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep on disk, for the next command, what is fetched from an address, and the structure of models.",
    ),
]
LensSpace = Annotated[
    SpaceName,
    typer.Option(
        "--space",
        help="The embeddings. circuit: W_E to read, W_U to write; unembed: W_U for both; embed: W_E for both.",
    ),
]
LensInverse = Annotated[
    InverseName,
    typer.Option("--inverse", help="The right inverse through which weights that read are projected."),
]

# -- texts

TEXTS = "A Parquet, JSON-lines or CSV file; or a text file, in which blank lines separate texts."

Texts = Annotated[Path, typer.Option("--texts", metavar="PATH", help=TEXTS)]
Column = Annotated[str, typer.Option("--column", metavar="NAME", help="The column that holds the texts.")]
Where = Annotated[
    str | None, typer.Option("--where", metavar="QUERY", help="The rows to read, such as \"split == 'test'\".")
]
NTexts = Annotated[
    int | None, typer.Option("--n-texts", metavar="N", min=1, help="Read the first N texts. All by default.")
]

# -- results

Format = Annotated[
    FormatName | None,
    typer.Option("--format", help="By default the ending of --out; without --out, a table for the terminal."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="Write the table to a file: .csv, .json, .parquet or .txt."),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="PATH", help="Also draw the table: .html (interactive) or .png."),
]

# -- groups of options


@dataclass(frozen=True)
class ProjectionOptions:
    """The options of a lens without its space: for commands that have a --space or an --inverse of their own."""

    vocabulary: Vocabulary = "all"
    score: Score = "dot"
    fold: Fold = True
    device: Device = None
    offload: Offload = None
    cache: Cache = True

    @property
    def words(self) -> str:
        """The options on the command line that differ from the default, without the vocabulary and the score."""
        names = {"space": "circuit", "inverse": "transpose", "device": None}
        given = {name: getattr(self, name, default) for name, default in names.items()}
        options = [f" --{name} {value}" for name, value in given.items() if value != names[name]]
        return "".join(options) + ("" if self.fold else " --no-fold")


@dataclass(frozen=True)
class LensOptions(ProjectionOptions):
    """The options of a lens: those of `EmbeddingLens`."""

    space: LensSpace = "circuit"
    inverse: LensInverse = "transpose"


DEFAULTS = LensOptions()


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which each parameter annotated with a dataclass is replaced by the dataclass's fields, one option each."""
    parameters = signature(command).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}

    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    expanded = [parameter for parameter in parameters if parameter.name not in groups]
    expanded += [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for group in groups.values()
        for field in fields(group)
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded}
    run.__dict__["__signature__"] = Signature(expanded)
    return run
