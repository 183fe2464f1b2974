"""Where features are active: their codes on texts, with the strongest contexts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..factors.contexts import Activity, activity_tables
from ..factors.layer_activity import LayerActivity, token_windows
from ..features.dictionary import Features
from ..forward.batches import token_batches
from ..forward.runs import collect_activations
from ..forward.states import token_columns
from ..forward.texts import texts_of
from ..weights.configuration import device_of

LAYER = 0
"""The number of the only layer of a dictionary's tables."""

N_MEAN = 500  # codes whose mean is the importance, as for factors
MAX_CODES = 2**25  # of one batch and dictionary


class _Codes:
    """A dictionary as `LayerActivity` reads it."""

    l1 = 0.0

    def __init__(self, features: Features) -> None:
        self.features = features
        self.n_factors, self.d_model = len(features), features.d_model

    def encode(self, states: Float[Tensor, "n d_model"], *, gap: float) -> Float[Tensor, "n n_features"]:
        """The codes by the dictionary's own non-linearity, which has no duality gap."""
        return self.features.encode(states.to(self.features.decoder.device)).float()

    def decode(self, codes: Float[Tensor, "n n_features"]) -> Float[Tensor, "n d_model"]:
        """What the codes write."""
        return self.features.decode(codes).float()


@torch.no_grad()
def feature_activity(
    dictionaries: Sequence[Features],
    model: Any,
    texts: Any,
    *,
    n_contexts: int = 200,
    window: int = 10,
    max_tokens: int | None = None,
) -> list[Activity]:
    """Compute the codes of several dictionaries in one pass over texts, and keep the largest with their contexts.

    Args:
        dictionaries: The dictionaries; each reads the values at its own hook point.
        model: The model on which they were trained.
        texts: As in `factors.activity`.
        n_contexts: How many contexts of each feature.
        window: How many tokens before and after the target a context shows.
        max_tokens: The maximum length of a text in tokens.

    Returns:
        For each dictionary the tables of `factors.activity`, whose `factor` is the feature's index and whose only layer is 0. For
        a transcoder, `explained_variance` compares its output with its input, and means nothing.

    Raises:
        EmbspaceError: If a dictionary has no hook point, encoder or non-linearity, or the texts contain no tokens.
    """
    for features in dictionaries:
        if not features.hook:
            raise errors.no_hook_of_features(features.name)
        if features.encoder is None or features.activation is None:
            raise errors.no_encoder(features.name)
    collected: list[LayerActivity] = []
    batch_tokens = max(512, min(8192, MAX_CODES // max(map(len, dictionaries))))
    source: Any = texts_of(texts)
    total = len(source) if hasattr(source, "__len__") else None
    with tqdm(total=total, desc="contexts", unit="text", disable=None, leave=False) as bar:
        for batch in token_batches(model, source, batch_tokens=batch_tokens, max_tokens=max_tokens):
            values = collect_activations(model, batch, [features.hook for features in dictionaries])
            mask, windows, columns = batch.mask.to(device_of(model)), token_windows(batch, window), token_columns(batch)
            collected = collected or [
                LayerActivity(_Codes(features), N_MEAN, n_contexts, window) for features in dictionaries
            ]
            for features, activity in zip(dictionaries, collected, strict=True):
                activity.update(values[features.hook][mask], columns["example"], columns["pos"], windows)
            bar.update(len(batch))
    if not collected:
        raise errors.texts_without_tokens()
    return [activity_tables({LAYER: activity}, model) for activity in collected]
