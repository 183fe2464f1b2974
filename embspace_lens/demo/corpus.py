"""Training texts of the demo models: a byte-level BPE tokenizer, and rows of tokens."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .. import errors

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like that of GPT-2, which encodes any text and treats a leading space as part of a word."""
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
    """Join the texts by end-of-text tokens, and cut them into rows of `n_ctx` tokens with an end-of-text token in front.

    TransformerLens prepends the same token by default, so that the models are used as they were trained. The last,
    incomplete row is left out.

    Returns:
        Token ids, `int32 [n_rows, n_ctx + 1]`.

    Raises:
        EmbspaceError: If the texts do not fill one row.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    parts = []
    for start in tqdm(range(0, len(texts), 1000), desc="tokens", unit="k texts"):
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000]):
            parts.append(np.array([*encoding.ids, end], dtype=np.int32))
    stream = np.concatenate(parts)
    n_rows = len(stream) // n_ctx
    if n_rows == 0:
        raise errors.too_little_text(len(stream), "tokens", n_ctx, "one row")
    rows = stream[: n_rows * n_ctx].reshape(n_rows, n_ctx)
    return np.concatenate([np.full((n_rows, 1), end, dtype=np.int32), rows], axis=1)
