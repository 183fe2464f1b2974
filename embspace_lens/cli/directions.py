"""Commands that read directions: singular directions of weights, and vectors of a file."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import errors
from .loading import open_lens
from .options import MODEL, Head, K, Layer, LensOptions, Lowest, Model
from .output import DrawnOutput, next_reading, options_of_first_row

if TYPE_CHECKING:
    from torch import Tensor

DICTIONARY = ("W_dec", "W_enc")
"""The weights of a sparse autoencoder or transcoder, as SAELens names them."""


def singular(
    model: Model = MODEL,
    layer: Layer = None,
    head: Head = None,
    weight: Annotated[
        str,
        typer.Option(
            "--weight",
            metavar="W",
            help="The weight: W_OV, W_QK, W_Q, W_K, W_V, W_O, W_in, W_gate or W_out.",
        ),
    ] = "W_OV",
    n_directions: Annotated[
        int,
        typer.Option("--n-directions", metavar="N", min=1, help="Number of singular directions of each head (or MLP)."),
    ] = 10,
    k: K = 10,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """List the tokens of the singular directions of a weight.

    The directions are in the order of decreasing singular values. Each has a side that reads and a side that writes.

    For example:

        embspace-lens singular --layer 2 --head 0 --vocabulary frequent --score cosine
    """
    lens = open_lens(model, options)
    weight_name: Any = weight  # the library checks it
    df = lens.singular(layer, head, weight=weight_name, n_directions=n_directions, k=k)
    keys = ("layer", "head") if len(df) and df["head"].iloc[0] >= 0 else ("layer",)
    command = "heads" if "head" in keys else "neurons"
    output.write(df, next_reading(f"{command} {options_of_first_row(df, *keys)}", model, options))


def directions(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.safetensors",
            help="Tensors [n, d_model] or [d_model]; or the weights W_dec and W_enc of a sparse autoencoder.",
        ),
    ],
    model: Model = MODEL,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor", metavar="NAME", help="A tensor of the file. Repeat the option for several. All by default."
        ),
    ] = None,
    side: Annotated[
        Literal["write", "read"],
        typer.Option(
            "--side",
            help="write: vectors that are added to the residual stream (decoders); read: vectors that are multiplied "
            "with it (encoders).",
        ),
    ] = "write",
    k: K = 10,
    lowest: Lowest = False,
    *,
    options: LensOptions,
    output: DrawnOutput,
) -> None:
    """List the tokens of the vectors in a file.

    Such vectors are those of autoencoders and probes, and steering vectors. A direction is named after its tensor and its row in it, such as probe.3.
    """
    tensors = _read_tensors(file, tensor or [])
    lens = open_lens(model, options)
    if tensor is None and not set(DICTIONARY).isdisjoint(tensors):
        vectors, names = SimpleNamespace(**{name: tensors.get(name) for name in DICTIONARY}), None
    else:
        vectors, names = _stack(tensors, lens.weights.d_model)
    df = lens.directions(vectors, names=names, side=side, k=k, largest=not lowest)
    first = str(df["token_string"].iloc[0])
    output.write(df, next_reading(f"search {shlex.quote(first)}", model, options))


def _read_tensors(file: Path, names: list[str]) -> "dict[str, Tensor]":
    """The tensors of a file by name; all if no names are given.

    Raises:
        EmbspaceError: If the file cannot be read, or lacks a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as reason:
        raise errors.unreadable_vectors(file, reason) from reason
    for name in names:
        if name not in tensors:
            raise errors.no_such_tensor(file, name, tensors)
    return {name: tensors[name] for name in names or sorted(tensors)}


def _stack(tensors: "dict[str, Tensor]", d_model: int) -> "tuple[Tensor, list[str]]":
    """All vectors in one tensor, and their names.

    Raises:
        EmbspaceError: If a tensor is not [n, d_model] or [d_model].
    """
    import torch

    names = []
    for name, value in tensors.items():
        if value.ndim not in (1, 2) or value.shape[-1] != d_model:
            raise errors.tensor_is_no_direction(name, tuple(value.shape), d_model)
        names += [name] if value.ndim == 1 else [f"{name}.{row}" for row in range(len(value))]
    return torch.cat([value.reshape(-1, d_model) for value in tensors.values()]), names
