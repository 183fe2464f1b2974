"""The configuration and the tokenizer of a checkpoint, copied into a folder from which transformers reads them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import errors
from ..files import make_folder, write_whole
from .checkpoint import Files

CONFIGURATION = "config.json"
SMALL_FILES = (
    CONFIGURATION,
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "emoji.txt",
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""None of them holds code or Python objects."""
N_THREADS = 8


def fetch_small_files(files: Files, folder: Path) -> Path:
    """Copy the configuration and the tokenizer of a checkpoint into a folder. Code and weights are not copied.

    Args:
        files: The files of the checkpoint.
        folder: The folder, which is created if needed.

    Returns:
        The folder.

    Raises:
        EmbspaceError: If there is no `config.json`, or a file cannot be fetched or written.
    """
    if not files.exists(CONFIGURATION):
        raise errors.no_remote_config(files)
    make_folder(folder)

    def copy(file: str) -> None:
        if files.exists(file):
            write_whole(folder / file, bytes(files.read(file, 0, files.size(file)).numpy()))

    with ThreadPoolExecutor(N_THREADS) as threads:
        for _ in threads.map(copy, SMALL_FILES):
            pass
    return folder
