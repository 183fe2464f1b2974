"""Any residual vectors as lists of tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..space.embeddings import as_tensor
from ..tables.frames import tidy
from ..weights.parameter_names import Side
from .base import BaseLens, check_list_length, entry_columns, token_bar, token_block
from .vectors import residual_vectors


def read_directions(
    lens: BaseLens,
    vectors: Any,
    *,
    names: Iterable[Any] | None = None,
    side: Side = "write",
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    """Read any residual vectors as lists of tokens; see `EmbeddingLens.directions`."""
    if isinstance(vectors, Mapping):
        if names is not None:
            raise errors.names_of_mapping()
        names, vectors = list(vectors), [as_tensor(vector, "vectors") for vector in vectors.values()]
    x = residual_vectors(vectors, side)
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2:
        raise errors.not_directions(tuple(x.shape))
    labels = _labels(names, len(x))
    k = check_list_length(lens, k, [side])
    with token_bar(lens, "directions", [side]) as bar:
        block = token_block(lens, x, side, k, largest=largest, bar=bar)
    labels = np.array(labels, dtype=object)[block.pop("row")]
    columns = ["direction", "rank", *entry_columns(lens), "score"]
    table = tidy(columns, [block | {"direction": labels}], lens.vocabulary.array, kind="tokens")
    if len(labels) and all(isinstance(label, int) for label in labels):
        table["direction"] = labels.astype("int64")
    return table


def _labels(names: Iterable[Any] | None, n: int) -> list[str] | list[int]:
    """A distinct name for each direction: integers if all names are integers, otherwise strings."""
    if names is None:
        return [str(i).zfill(len(str(max(n - 1, 0)))) for i in range(n)]
    labels = [names] if isinstance(names, str) else [name.item() if hasattr(name, "item") else name for name in names]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        labels = [str(label) for label in labels]
    if len(labels) != n:
        raise errors.wrong_count_of_names(len(labels), n)
    if len(set(labels)) != n:
        raise errors.repeated_name(next(label for label in labels if labels.count(label) > 1))
    return labels
