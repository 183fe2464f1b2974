"""Texts for the demo models: learn a byte-level BPE from them, pack them into rows of tokens."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..errors import EmbspaceError

END_OF_TEXT = "<|endoftext|>"


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
