"""Recorded models: a boot is recorded once, and later processes read the weights without it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from .. import errors
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.recipes import NotRecordable
from ..checkpoints.record_files import read_record, record_key, write_record
from .host import Host
from .model_record import Record, record_of
from .model_size import is_quantized
from .recorded_host import RecordedHost

PACKAGES = ("torch", "transformers", "transformer-lens", "tokenizers", "safetensors", "embspace-lens")
"""The packages on whose versions a record depends."""
CODE = (Path(__file__).parent, Path(__file__).parent.parent / "checkpoints")
"""The folders of the code on which a record depends."""


def recorded_host(
    name: str, folders: Sequence[Path], load: Callable[..., Any], is_offloaded: Callable[[], bool]
) -> RecordedHost | None:
    """The host of a model on the CPU, from its record; the record is made and written if there is none.

    A record holds the structure of a model and the strings of its tokens. Values of weights are read from the checkpoint each
    time. The warnings of the boot are part of the record, and are issued each time.

    Args:
        name: The model's name, as the user gives it.
        folders: The folder of the checkpoint, and the folder of the tokenizer if it is another one.
        load: Loads the model; with `offload=True`, its weights stay in the checkpoint.
        is_offloaded: Returns whether the weights stay in the checkpoint if the model is loaded; it may warn.

    Returns:
        The host; None if the model cannot be recorded.
    """
    try:
        key = record_key(folders, [name, *_environment()])
        checkpoint = Checkpoint.of_folder(folders[0])
        if is_quantized(checkpoint):
            return None
    except Exception:  # if files are missing or damaged, `load` raises the error
        return None

    def restore(record: Any) -> RecordedHost | None:
        return record["host"] and RecordedHost(record["host"], checkpoint, load, is_offloaded())

    record = read_record(key)
    try:
        host = restore(record)
    except Exception:  # there is no record, or it is damaged
        record = _new_record(load)
        host = restore(record)
        if record_key(folders, [name, *_environment()]) == key:  # no file changed in the meantime
            write_record(key, record)
    if host is not None:
        for text in record["warnings"]:
            warnings.warn(text, stacklevel=2)
    return host


def _environment() -> Iterator[str]:
    """The versions and the code on which a record depends.

    Raises:
        NotRecordable: If a package is a development version, which may change without a change of its number.
    """
    yield python_version()
    for package in PACKAGES:
        try:
            number = version(package)
        except PackageNotFoundError:
            continue
        if "dev" in number:
            raise NotRecordable
        yield f"{package} {number}"
    for folder in CODE:
        for file in sorted(folder.rglob("*.py")):
            yield f"{file.name} {file.stat().st_mtime_ns}"


def _new_record(load: Callable[..., Any]) -> Record:
    """The record of a model whose weights stay in their checkpoint, and the warnings of its boot; without a host if it cannot be recorded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="embspace_lens")
        try:
            host = record_of(Host(load(offload=True)))
        except (errors.EmbspaceError, NotRecordable):
            host = None
    return {"host": host, "warnings": [str(warning.message) for warning in caught]}
