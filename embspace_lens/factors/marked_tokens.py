"""Hidden states at chosen characters of texts: at the last token of a word or of a marked target."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..forward.batches import token_batches
from ..forward.states import states_of


class TargetStates(NamedTuple):
    """The hidden states of targets, one row per target, in the order of the batches.

    Attributes:
        target: The index of each row's target; a target beyond the context length has no row.
        pos: The position of its last token in the run.
        token_index: Its last token.
        states: The hidden states by layer.
    """

    target: np.ndarray
    pos: np.ndarray
    token_index: np.ndarray
    states: dict[int, Float[Tensor, "n d_model"]]


def states_at(
    model: Any, texts: Sequence[str], targets: Iterable[tuple[int, int]], layers: Sequence[int], *, unit: str = "text"
) -> TargetStates:
    """The hidden states at the token that covers the end of each target.

    Args:
        model: A model whose tokenizer returns the offsets of tokens.
        texts: The texts.
        targets: For each target, the index of its text and the index of the character at which it ends.
        layers: The layers.
        unit: What a text is, for the progress bar.
    """
    ends: dict[int, list[tuple[int, int]]] = {}  # by text: the target and the character at which it ends
    for target, (example, end) in enumerate(targets):
        ends.setdefault(example, []).append((target, end))
    target_of: dict[tuple[int, int], int] = {}  # by text and token
    for example, its_ends in ends.items():
        encoded = model.tokenizer(texts[example], return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        token_ends = np.array([end for _, end in encoded["offset_mapping"]])
        for target, end in its_ends:
            target_of[example, int(np.searchsorted(token_ends, end))] = target
    collected: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    rows_of: dict[str, list[int]] = {"target": [], "pos": [], "token_index": []}
    with tqdm(total=len(texts), desc=f"{unit}s", unit=unit, disable=None, leave=False) as bar:
        for batch in token_batches(model, texts):
            hidden = states_of(model, batch, layers)
            keys = list(zip(hidden.example.tolist(), batch.own_pos[batch.mask].tolist()))
            rows = [row for row, key in enumerate(keys) if key in target_of]
            rows_of["target"] += [target_of[keys[row]] for row in rows]
            rows_of["pos"] += hidden.pos[rows].tolist()
            rows_of["token_index"] += hidden.token_index[rows].tolist()
            for layer, states in hidden.states.items():
                collected[layer].append(states[rows].float().cpu())
            bar.update(len(batch))
    states = {layer: torch.cat(parts) for layer, parts in collected.items() if parts}
    return TargetStates(**{name: np.array(values, dtype=np.int64) for name, values in rows_of.items()}, states=states)
