"""The loss on random sequences that are repeated once: the behaviour that induction heads produce."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from .. import errors
from ..forward.batches import TokenBatch
from ..forward.repetitions import random_sequences, rows_of, second_after_first
from ..forward.runs import Hook, logits
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval

SAMPLES = ("other", "repeated", "shuffled")
CLAIM = "repeated"


@torch.no_grad()
def repetition_loss(
    lens: EmbeddingLens,
    *,
    length: int | None = None,
    n_sequences: int = 32,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
) -> pd.DataFrame:
    r"""Measure the loss on a random sequence after the same sequence, and after two controls.

    A model with induction heads predicts the second half of the text :math:`w_1 \dots w_n\, w_1 \dots w_n`. The first half is,
    by `sample`,

    - `repeated`: the same sequence;
    - `shuffled`: the same words in another order, after which a head that copies any earlier word also predicts better;
    - `other`: another random sequence.

    The second half is the same in all three.

    Args:
        lens: The lens of a causal model, which runs; words are the tokens that it reads, without special tokens.
        length: n; by default the largest that fits twice into the context window, at most 32.
        n_sequences: The number of random sequences.
        seed: Seed of the words.
        hooks: Interventions, such as those of `ablation_hooks`.

    Returns:
        One row per (sample, example, half, pos), with `loss`: of the prediction of the token at `pos`, from the tokens before it.

    Raises:
        EmbspaceError: If the model is bidirectional, or an option is out of range.

    Example:
        >>> losses = repetition_loss(EmbeddingLens(demo.induction_model()), n_sequences=4)
        >>> losses.query("pos > 21").groupby("sample")["loss"].mean().idxmin()
        'repeated'

    References:
        Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators". https://arxiv.org/abs/2209.11895
    """
    words = random_sequences(lens.model, lens.space.token_ids, n_sequences, length, seed)
    generator = torch.Generator().manual_seed(seed)
    n = words.shape[1]
    shuffled = torch.stack([row[torch.randperm(n, generator=generator)] for row in words])
    first_halves = {"other": words.roll(1, 0), "repeated": words, "shuffled": shuffled}

    def blocks() -> Iterator[dict[str, Any]]:
        for sample in tqdm(SAMPLES, desc="repetition_loss", unit="sample", disable=None, leave=False):
            batch = second_after_first(lens.model, first_halves[sample], words)
            losses = _losses(lens, batch, hooks)
            predicted = torch.arange(1, batch.tokens.shape[1])
            yield {
                "sample": [sample] * losses.numel(),
                "example": torch.arange(len(losses)).repeat_interleave(len(predicted)),
                "half": (predicted >= batch.tokens.shape[1] - n).long().repeat(len(losses)),
                "pos": predicted.repeat(len(losses)),
                "loss": losses.flatten(),
            }

    return tidy(["sample", "example", "half", "pos", "loss"], blocks())


def repetition_gain(losses: pd.DataFrame) -> pd.DataFrame:
    """Compute how much lower the loss of the second half is after its repetition than after each control.

    The first token of the second half is left out, because it cannot be predicted.

    Args:
        losses: The table of `repetition_loss`.

    Returns:
        One row per (sample), with `gain`, a mean over sequences; `low` and `high`, its bootstrap interval; and `n`, the number of
        sequences. An induction head gives a gain over both controls, a head that copies any word only over `other`.

    Raises:
        EmbspaceError: If a column or a sample is missing.

    Example:
        >>> losses = repetition_loss(EmbeddingLens(demo.induction_model()), n_sequences=4)
        >>> (repetition_gain(losses).set_index("sample")["gain"] > 1).to_dict()
        {'other': True, 'shuffled': True}
    """
    columns = list(map(str, getattr(losses, "columns", ())))
    if missing := [name for name in ("sample", "example", "half", "pos", "loss") if name not in columns]:
        raise errors.missing_columns("repetition_gain()", missing)
    second = losses.loc[losses["half"] == 1]
    second = second.loc[second["pos"] > second["pos"].min()]
    means = second.groupby(["example", "sample"])["loss"].mean().unstack("sample")
    if missing := [name for name in SAMPLES if name not in means.columns]:
        raise errors.missing_samples("repetition_gain()", missing)
    blocks = []
    for sample in SAMPLES:
        if sample != CLAIM:
            gains = (means[sample] - means[CLAIM]).to_numpy()
            low, high = bootstrap_interval(gains)
            blocks.append({"sample": sample, "gain": gains.mean(), "low": low, "high": high, "n": len(gains)})
    return tidy(["sample", "gain", "low", "high", "n"], blocks)


def _losses(lens: EmbeddingLens, batch: TokenBatch, hooks: Sequence[Hook]) -> Float[Tensor, "n_texts n_predictions"]:
    """The loss of each prediction; entry i belongs to token i + 1."""
    parts = []
    bytes_per_text = 4 * batch.tokens.shape[1] * lens.weights.d_vocab
    # Eight times the usual memory: few forward passes over many texts are faster than many over few.
    for rows in chunks(len(batch), bytes_per_text, scale=8.0):
        part: TokenBatch = rows_of(batch, rows)
        predicted = logits(lens.model, part, hooks=hooks)[:, :-1].float()
        targets: Int[Tensor, "n_chunk n_predictions"] = part.tokens[:, 1:].to(predicted.device)
        parts.append(cross_entropy(predicted.transpose(1, 2), targets, reduction="none").cpu())
    return torch.cat(parts)
