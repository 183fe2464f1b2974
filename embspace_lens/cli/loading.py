"""Loading of what the options name: lenses and texts."""

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .options import DEFAULTS, ProjectionOptions

if TYPE_CHECKING:
    from ..lens import EmbeddingLens


def open_lens(model: str, options: ProjectionOptions = DEFAULTS, *, runs_model: bool = False) -> "EmbeddingLens":
    """Load a model and read it with the lens that the options describe.

    Args:
        model: A demo model, a folder or a model of the hub.
        options: The options of the lens. Its vocabulary is `"all"`, or the names of one or several masks, joined with `&`.
        runs_model: Whether the command runs the model, or parts of it. It is then loaded at once; otherwise its record is read.

    Raises:
        EmbspaceError: If the vocabulary is unknown or the model cannot be loaded.
    """
    with no_collection():
        from ..lens import MASKS, EmbeddingLens
        from ..loading import load_model, open_model
        from ..tables.checks import check_choice

    names = [check_choice("--vocabulary", name.strip(), ["all", *MASKS]) for name in options.vocabulary.split("&")]
    masks = " & ".join(name for name in names if name != "all")
    spaces: Any = {name: getattr(options, name) for name in ("space", "inverse") if hasattr(options, name)}
    source: Any = {
        "device": options.device,
        "offload": "auto" if options.offload is None else options.offload,
        "cache": options.cache,
    }
    load = no_collection()(no_progress_bars()(partial(load_model, model, **source)))
    with no_collection(), no_chatter():
        return EmbeddingLens(
            load() if runs_model else open_model(model, load, **source),
            vocabulary=masks or None,
            score=options.score,
            fold_ln=options.fold,
            **spaces,
        )


@contextmanager
def no_collection() -> Iterator[None]:
    """Switch off the garbage collector while modules are imported and models loaded, which takes a fifth less time.

    Nearly all objects that are made then live until the end. They are not looked at again afterwards.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def no_chatter() -> Iterator[None]:
    """Hide the warnings of the libraries that load models; print the warnings of this package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="embspace_lens")
        yield
    for warning in caught:
        typer.echo(str(warning.message), err=True)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars and logs of the libraries that load models."""
    from transformers.utils import logging as transformers_logging

    shows_bars = transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def load_texts(path: Path, column: str, where: str | None, n_texts: int | None) -> list[str]:
    """The first texts of a file.

    Raises:
        EmbspaceError: If the file cannot be read or holds no such texts.
    """
    from ..forward.texts import read_texts

    return read_texts(path, column=column, where=where)[:n_texts]
