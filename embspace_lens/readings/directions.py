"""Any residual vectors as lists of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..weights.effective import Side
from .base import TOKEN_COLUMNS, BaseLens, token_bar, token_block
from .vectors import residual_vectors


def read_directions(
    lens: BaseLens,
    vectors: Any,
    *,
    names: Sequence[str] | None = None,
    side: Side = "write",
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read any residual vectors as lists of tokens; see `EmbeddingLens.directions`."""
    x = residual_vectors(vectors, side)
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2:
        raise errors.not_directions(tuple(x.shape))
    labels = _labels(names, len(x))
    k = check_k(k, lens.space.n_tokens)
    order = sorted(range(len(labels)), key=labels.__getitem__)  # tables are sorted by their keys
    with token_bar(lens, "directions", 1) as bar:
        block = token_block(lens, x[order], side, k, largest=largest, bar=bar)
    block["direction"] = np.array(labels, dtype=object)[order][block.pop("row")]
    return tidy(["direction", "rank", *TOKEN_COLUMNS], [block], lens.vocabulary.array, kind="tokens")


def _labels(names: Sequence[str] | None, n: int) -> list[str]:
    """A distinct name for each direction; numbers with leading zeros by default."""
    if names is None:
        return [str(i).zfill(len(str(max(n - 1, 0)))) for i in range(n)]
    labels = [names] if isinstance(names, str) else [str(name) for name in names]
    if len(labels) != n:
        raise errors.wrong_count_of_names(len(labels), n)
    if len(set(labels)) != n:
        raise errors.repeated_name(next(label for label in labels if labels.count(label) > 1))
    return labels
