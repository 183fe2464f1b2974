"""The saliency that the site shows: of a few contexts of each factor, in the layer of its peak."""

import os
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..factors.contexts import Activity
from ..factors.dictionary import Factors
from ..factors.lime import saliency

N_SAMPLES = 300  # variants of a context; Yun et al. and `saliency` have 2,001, which takes seven times as long
N_SAVED = 10  # contexts of a factor that are shown with saliency if a checkpoint contains it


def peak_saliency(
    factors: Factors,
    model: Any,
    texts: Any,
    activity_result: Activity,
    n_contexts: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    factor: Iterable[int] | None = None,
) -> pd.DataFrame:
    """The saliency of each factor's first contexts in the layer of its peak.

    Args:
        factors: The dictionary.
        model: The model.
        texts: The texts that were read.
        activity_result: The activity on these texts.
        n_contexts: How many contexts of each factor are explained.
        checkpoint: A file for finished contexts. Those in it are returned too, if they are among a factor's first ten.
        factor: The factors; all by default.

    Returns:
        A table of `saliency`.
    """
    peaks = activity_result.importance.sort_values("importance", kind="stable").groupby("factor").tail(1)
    contexts: Any = activity_result.contexts.merge(peaks[["factor", "layer"]], on=["factor", "layer"])
    if factor is not None:
        contexts = contexts[contexts["factor"].isin(list(factor))]
    is_first = contexts["rank"] < n_contexts
    options: Any = {"n_samples": N_SAMPLES, "checkpoint": checkpoint}
    table = saliency(factors, model, texts, contexts[is_first], **options)
    if checkpoint is None:
        return table
    others = contexts[~is_first & (contexts["rank"] < N_SAVED)]
    return pd.concat([table, saliency(factors, model, texts, others, **options, saved_only=True)], ignore_index=True)
