"""Texts for the demo models: read them, learn a byte-level BPE from them, pack them into rows of tokens."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..errors import EmbspaceError

END_OF_TEXT = "<|endoftext|>"
TABLES = {".parquet", ".jsonl", ".csv"}


def read_texts(path: str | Path, *, column: str = "text", where: str | None = None) -> list[str]:
    """Read the texts of a file: one per row of a Parquet, JSON-lines or CSV column, or one per blank-line-separated block of a text file.

    Args:
        path: `.parquet`, `.jsonl` or `.csv` (the last two also compressed), or any other file as UTF-8 text.
        column: The column that holds the text.
        where: A condition on the rows in the words of `pandas.DataFrame.query`, such as `"split != 'test'"`.

    Returns:
        The texts, in the order of the file, empty ones left out.

    Raises:
        EmbspaceError: If the file does not exist, has no such column, or holds no text.
    """
    path = Path(path)
    if set(path.suffixes) & TABLES:
        frame = _read_table(path, [column], where)
        texts = frame[column].dropna().astype(str).tolist()
    else:
        _refuse_missing(path)
        if where is not None:
            raise EmbspaceError(f"where={where!r} needs a table, and {path} is a text file. Leave it out.")
        texts = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise EmbspaceError(f"{path} holds no text" + (f" where {where}." if where else "."))
    return texts


def read_labelled(
    path: str | Path, *, column: str = "text", label: str = "label", where: str | None = None
) -> tuple[list[str], list[str]]:
    """Read the texts of a table and their classes, as `read_texts` does; rows without either are left out.

    Raises:
        EmbspaceError: If the file is no table, has no such column, or holds fewer than two classes.
    """
    path = Path(path)
    if not set(path.suffixes) & TABLES:
        raise EmbspaceError(f"{path} is not a table. Labelled texts come from Parquet, JSON lines or CSV.")
    frame = _read_table(path, [column, label], where).dropna(subset=[column, label])
    frame = frame[frame[column].astype(str).str.strip() != ""]
    classes = frame[label].astype(str).tolist()
    if len(set(classes)) < 2:
        found = f"only {classes[0]!r}" if classes else "no labelled text"
        raise EmbspaceError(
            f"{path} holds {found}" + (f" where {where}" if where else "") + "; two classes are needed."
        )
    return frame[column].astype(str).tolist(), classes


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise EmbspaceError(f"{path} is not a file. Name a text file, or a table with a column of texts.")


def _read_table(path: Path, columns: list[str], where: str | None) -> pd.DataFrame:
    _refuse_missing(path)
    if ".parquet" in path.suffixes:
        frame = pd.read_parquet(path)
    else:
        frame = pd.read_csv(path) if ".csv" in path.suffixes else pd.read_json(path, lines=True)
    for column in columns:
        if column not in frame.columns:
            raise EmbspaceError(
                f"{path} has no column {column!r}; its columns are {', '.join(map(repr, frame.columns))}."
            )
    return frame.query(where) if where else frame


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE, as GPT-2's: no text is unknown to it, and a leading space is part of a word."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> np.ndarray:
    """Join the texts, end-of-text between them, and cut rows of `n_ctx + 1` tokens, each beginning with end-of-text.

    The leading token is what TransformerLens prepends by default, so the models are used as they were trained.
    The last, incomplete row is dropped.

    Returns:
        `int32 [row, n_ctx + 1]`.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    parts = []
    for start in tqdm(range(0, len(texts), 1000), desc="tokens", unit="k texts"):
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000]):
            parts.append(np.array([*encoding.ids, end], dtype=np.int32))
    stream = np.concatenate(parts)
    n_rows = len(stream) // n_ctx
    if n_rows == 0:
        raise EmbspaceError(f"The texts hold {len(stream)} tokens, fewer than one row of {n_ctx}. Give more text.")
    rows = stream[: n_rows * n_ctx].reshape(n_rows, n_ctx)
    return np.concatenate([np.full((n_rows, 1), end, dtype=np.int32), rows], axis=1)
