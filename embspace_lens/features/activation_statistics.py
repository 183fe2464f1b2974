"""How often features are active, alone and together, over texts; and virtual weights that are weighted by it."""

import os
from collections.abc import Sized
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import token_batches
from ..forward.runs import collect_activations
from ..forward.states import weights_key
from ..forward.texts import TextSource, texts_of
from ..tables.frames import tidy
from ..weights.configuration import device_of
from .activation_sums import ActivationSums, SumsCheckpoint
from .dictionary import Features

PAIR_KEYS = ("src_feature_index", "dest_feature_index")


@dataclass(frozen=True, eq=False, repr=False)
class Coactivation:
    r"""Activations of two dictionaries' features over texts, alone and in pairs at the same token.

    Attributes:
        source: The dictionary of the pairs' first features.
        target: The dictionary of the second features.
        n_tokens: How many tokens were read.
        pair_index: The source and the target feature of each pair, in order, each pair once.
        sums: Sums over tokens, as in `ActivationSums`.
    """

    source: Features
    target: Features
    n_tokens: int
    pair_index: Int[Tensor, "n 2"]
    sums: dict[str, Tensor]

    def __repr__(self) -> str:
        names = self.source.name if self.source is self.target else f"{self.source.name} → {self.target.name}"
        return f"Coactivation({names}: {self.n_tokens:,} tokens, {len(self.pair_index):,} pairs)"

    def mean(self, name: str) -> Float[np.ndarray, " n"]:
        """A sum over tokens divided by the number of tokens, in float64."""
        return self.sums[name].double().numpy() / self.n_tokens

    @property
    def source_features(self) -> pd.DataFrame:
        """One row per (feature_index), with `feature_label`, `frequency`, `mean_activation` and `n` (tokens)."""
        return self._features(self.source, "source")

    @property
    def target_features(self) -> pd.DataFrame:
        """One row per (feature_index) of the target, as `source_features`."""
        return self._features(self.target, "target")

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per (dest_feature_index, src_feature_index), with `*_feature_label`, `joint_frequency`, `mean_product`, `mean_where_active` and `n` (tokens)."""
        s, t = self.pair_index.numpy().T
        block = {
            "dest_feature_index": t,
            "dest_feature_label": self.target.strings[t],
            "src_feature_index": s,
            "src_feature_label": self.source.strings[s],
            "joint_frequency": self.mean("pair_active"),
            "mean_product": self.mean("pair_product"),
            "mean_where_active": self.mean("pair_gated"),
            "n": np.full(len(s), self.n_tokens),
        }
        return tidy(list(block), [block])

    def _features(self, features: Features, part: str) -> pd.DataFrame:
        block = {
            "feature_index": np.arange(len(features)),
            "feature_label": features.strings,
            "frequency": self.mean(f"{part}_active"),
            "mean_activation": self.mean(f"{part}_sum"),
            "n": np.full(len(features), self.n_tokens),
        }
        return tidy(list(block), [block])


@torch.no_grad()
def coactivation(
    features: Features,
    model: Any,
    texts: TextSource,
    *,
    target: Features | None = None,
    pairs: Any = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    column: str = "text",
    checkpoint: str | os.PathLike[str] | None = None,
) -> Coactivation:
    r"""Measure how often features are active, and pairs of features together, in one pass over texts.

    This runs the model: virtual weights are known from weights alone, co-activation is not. For each feature i with activation
    :math:`a_i`, the share of tokens with :math:`a_i > 0` and the mean :math:`E[a_i]`; for each pair (i, j), at the same token,

    .. math:: P(a_i > 0, a_j > 0), \qquad E[a_i a_j], \qquad E[1(a_j > 0)\, a_i]

    Activations are those of the dictionary's own non-linearity, at its hook point. Only the sums are kept, so that memory does not
    grow with the texts; tokens that the tokenizer or the model adds are left out.

    Args:
        features: The source dictionary.
        model: The TransformerLens model on which the dictionaries were trained.
        texts: A list, any iterable, a dataframe, a Hugging Face dataset, or a file.
        target: The target dictionary; the source by default.
        pairs: A table with `src_feature_index` and `dest_feature_index`, such as that of `virtual_weights`, or indices of source and
            target features `[n, 2]`; None for no pairs.
        batch_tokens: The approximate number of tokens per batch.
        max_tokens: The maximum length of a text in tokens; longer texts are cut. The model's context length by default.
        column: The column of texts in a table or dataset.
        checkpoint: A file that is written at most once a minute, at the end, and on Ctrl-C. The same call resumes from it with the
            same result; with further texts at the end of full batches, it goes on.

    Returns:
        The `Coactivation`, with tables `source_features`, `target_features` and `pairs`.

    Raises:
        EmbspaceError: If a dictionary has no encoder, non-linearity or hook point, or another width; a feature is out of range; the
            texts contain no tokens; or the checkpoint is of other texts, dictionaries or options.

    Example:
        >>> from embspace_lens.features import Activation, coactivation
        >>> hook = "blocks.0.hook_resid_post"
        >>> features = Features(torch.eye(32)[:3], torch.eye(32)[:, :3], name="axes", hook=hook, activation=Activation())
        >>> coactivation(features, model, ["w2 w3", "w4"], pairs=[[0, 1], [0, 2]])
        Coactivation(axes: 3 tokens, 2 pairs)
    """
    source, target = features, features if target is None else target
    for each in (source, target):
        if not each.hook:
            raise errors.no_hook_of_features(each.name)
    sums = ActivationSums(source, target, _unique_pairs(pairs, source, target))
    source_texts = texts_of(texts, column=column)
    progress = SumsCheckpoint(
        checkpoint,
        sums,
        {
            "model": weights_key(model),
            "features": _digest(source),
            "target": _digest(target),
            "pairs": sha256(sums.pairs.numpy().tobytes()).hexdigest(),
            "batch_tokens": str(batch_tokens),
            "max_tokens": str(max_tokens),
        },
    )
    total = len(source_texts) if isinstance(source_texts, Sized) else None
    try:
        with tqdm(total=total, desc="co-activation", unit="text", disable=None, leave=False) as bar:
            for batch in token_batches(model, source_texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
                if progress.is_new(batch.tokens):
                    values = collect_activations(model, batch, [source.hook, target.hook])
                    mask = batch.mask.to(device_of(model))
                    with progress.adding():
                        sums.add(values[source.hook][mask], values[target.hook][mask])
                bar.update(len(batch))
        progress.finish()
    except KeyboardInterrupt as interrupt:
        message = progress.save_interrupted()
        if not message:
            raise
        raise KeyboardInterrupt(message) from interrupt
    if not sums.n_tokens:
        raise errors.texts_without_tokens()
    return Coactivation(source, target, sums.n_tokens, sums.pairs, sums.sums)


def reweighted(pairs: pd.DataFrame, statistics: Coactivation) -> pd.DataFrame:
    r"""Add expected residual attributions to a table of direct virtual weights, beside the weight.

    A weight :math:`V_{ij}` matters only where both features are active. With activations :math:`a_i` of the source and :math:`a_j`
    of the target at the same token,

    .. math:: \mathrm{era}_{ij} = E[1(a_j > 0)\, a_i]\, V_{ij}, \qquad
              \mathrm{twera}_{ij} = \frac{E[a_i a_j]}{E[a_j]}\, V_{ij}

    The weight `score` is from weights alone. Both other columns need the forward passes of `coactivation`, and hold for its texts.
    For a target that is never active over them, `era` is 0 and `twera`, a mean over no activity, is NaN. Both are dominated by how
    often features are active together: a small weight may get a high value, and inhibition, where features are never active
    together, gets 0.

    Args:
        pairs: The table of `virtual_weights`, or any table with `src_feature_index`, `dest_feature_index` and `score`.
        statistics: The result of `coactivation` with the same pairs, or more.

    Returns:
        The rows of `pairs` in their order, with the columns `era` and `twera` after the others.

    Raises:
        EmbspaceError: If a column is missing, the statistics lack a pair, or the weights pass through a head.

    Example:
        >>> from embspace_lens.features import Activation, coactivation, reweighted, virtual_weights
        >>> hook = "blocks.0.hook_resid_post"
        >>> features = Features(torch.eye(32)[:3], torch.eye(32)[:, :3], name="axes", hook=hook, activation=Activation())
        >>> table = virtual_weights(features, features, k=2)
        >>> reweighted(table, coactivation(features, model, ["w2 w3", "w4"], pairs=table)).columns.tolist()[-3:]
        ['score', 'era', 'twera']

    References:
        Ameisen et al. (2025), Circuit Tracing: Revealing Computational Graphs in Language Models, "Global Weights".
            https://transformer-circuits.pub/2025/attribution-graphs/methods.html
    """
    for name in (*PAIR_KEYS, "score"):
        if name not in pairs.columns:
            raise errors.table_lacks_column("pairs", name, "virtual_weights")
    if "circuit" in pairs.columns:
        for circuit in pairs["circuit"].unique():
            if circuit != "direct":
                raise errors.indirect_pairs(circuit)
    s, t = (pairs[name].to_numpy() for name in PAIR_KEYS)
    n_target = len(statistics.target)
    known = statistics.pair_index.numpy() @ np.array([n_target, 1])
    key = s * n_target + t
    position = np.searchsorted(known, key).clip(max=max(0, len(known) - 1))
    is_missing = known[position] != key if len(known) else np.ones(len(key), dtype=bool)
    if is_missing.any():
        raise errors.pairs_not_measured(int(is_missing.sum()), len(key))
    score = pairs["score"].to_numpy(dtype=np.float64)
    products, gated = (statistics.sums[name].numpy()[position] for name in ("pair_product", "pair_gated"))
    target_sum = statistics.sums["target_sum"].numpy()[t]
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = np.where(target_sum > 0, products / target_sum, np.nan)
    columns = {"era": gated / statistics.n_tokens * score, "twera": conditional * score}
    return pairs.assign(**{name: values.astype(np.float32) for name, values in columns.items()})


def _unique_pairs(pairs: Any, source: Features, target: Features) -> Int[Tensor, "n 2"]:
    """Pairs as indices, in order, each once.

    Raises:
        EmbspaceError: If they are not pairs of features of these dictionaries.
    """
    if pairs is None:
        return torch.empty(0, 2, dtype=torch.int64)
    if isinstance(pairs, pd.DataFrame):
        for name in PAIR_KEYS:
            if name not in pairs.columns:
                raise errors.table_lacks_column("pairs", name, "virtual_weights")
        pairs = pairs[list(PAIR_KEYS)].to_numpy()
    array = np.array(pairs)
    if not array.size:
        return torch.empty(0, 2, dtype=torch.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise errors.not_pairs_of_features(array.shape)
    index = torch.from_numpy(array.astype(np.int64))
    for each, column in zip((source, target), index.T, strict=True):
        if column.min() < 0 or column.max() >= len(each):
            value = column.min() if column.min() < 0 else column.max()
            raise errors.out_of_range("feature", int(value), each.name, len(each), "features")
    return index.unique(dim=0)


def _digest(features: Features) -> str:
    """A digest that differs between dictionaries: of the place, the non-linearity, and the first entries of each feature."""
    digest = sha256(repr((features.hook, len(features), type(features.activation).__name__)).encode())
    settings = getattr(features.activation, "__dict__", {})
    for name, value in [("encoder", features.encoder), *sorted(settings.items())]:
        if isinstance(value, Tensor):
            rows = value.T if name == "encoder" else value.reshape(len(value), -1) if value.ndim else value[None, None]
            digest.update(rows[:, :8].float().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr((name, value)).encode())
    return digest.hexdigest()
