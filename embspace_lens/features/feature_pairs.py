"""The strongest pairs of features of two dictionaries: virtual weights, from weights alone."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import errors
from ..readings.base import BaseLens, Block
from ..search.pairs import top_pairs
from ..search.tiles import Rows, working_dtype
from ..space.feature_rows import read_rows, written_rows
from ..tables.checks import check_choice, check_k
from ..tables.frames import tidy
from ..tables.selection import Select
from .dictionary import Features
from .stream_order import check_direct, layers_between

Circuit = Literal["direct", "ov", "qk"]
CIRCUITS: tuple[Circuit, ...] = ("direct", "ov", "qk")
NO_HEAD = -1
COLUMNS = (
    "circuit",
    "layer",
    "head",
    "rank",
    "dest_feature_index",
    "dest_feature_label",
    "src_feature_index",
    "src_feature_label",
    "score",
)


def virtual_weights(
    source: Features,
    target: Features,
    *,
    lens: BaseLens | None = None,
    layer: Select = None,
    head: Select = None,
    circuit: Circuit = "direct",
    k: int = 10,
    largest: bool = True,
) -> pd.DataFrame:
    r"""Find the strongest weights from the features of one dictionary to those of another, without a forward pass.

    What a feature s of the source writes is its decoder row, what a feature t of the target reads is its encoder column. Between
    them is the residual stream alone, or one head:

    .. math:: V_\mathrm{direct}(s, t) = W_\mathrm{dec}^s \cdot W_\mathrm{enc}^t, \qquad
              V_\mathrm{ov}(s, t) = W_\mathrm{dec}^s\, W_V W_O\, W_\mathrm{enc}^t, \qquad
              V_\mathrm{qk}(s, t) = W_\mathrm{dec}^t\, W_Q W_K^\top\, (W_\mathrm{dec}^s)^\top

    For `"qk"`, both dictionaries describe what is in the stream: s is in the stream at the key (`src_feature_*`), t at the query
    (`dest_feature_*`). The target needs no encoder then.

    The pairs are exact, equal to those of brute force in float64, and the matrix of all pairs is never built. With a lens, the
    linear part of the norms is folded into W_V, W_Q and W_K, and into an encoder that reads behind a norm, as in all readings; the
    scale of a norm, which differs from token to token, is left out, and so are positions and norms of queries and keys.

    A strong weight need not be used: features that are never active together have weights too, because all features share
    one stream (interference). `coactivation` and `reweighted` take this into account.

    Args:
        source: The dictionary whose features are written, or attended to.
        target: The dictionary whose features are read, or attend.
        lens: The lens of the model on which both were trained. Heads need it; `"direct"` uses it only to fold norms.
        layer: For heads, which blocks. By default all whose attention comes after the source was written and, for `"ov"`, before
            the target is read.
        head: Which query heads; all by default.
        circuit: `"direct"`, `"ov"` or `"qk"`.
        k: How many pairs to return, for each head.
        largest: The largest weights; with False, the most negative.

    Returns:
        One row per (circuit, layer, head, rank), with `dest_feature_index`, `dest_feature_label`, `src_feature_index`,
        `src_feature_label` and `score`, the weight. `layer` and `head` are −1 for `"direct"`.

    Raises:
        EmbspaceError: If the widths differ, an encoder is missing, k is larger than the number of pairs, the target is read before
            the source is written, or heads are selected without a lens or out of order.

    Example:
        >>> axes = Features(torch.eye(3), torch.eye(3), name="axes", labels=["x", "y", "z"])
        >>> scaled = Features(torch.eye(3), torch.diag(torch.tensor([1.0, 3.0, 2.0])), name="scaled")
        >>> virtual_weights(axes, scaled, k=2)[["src_feature_label", "dest_feature_index", "score"]].values.tolist()
        [['y', 1, 3.0], ['z', 2, 2.0]]

    References:
        Ameisen et al. (2025), Circuit Tracing: Revealing Computational Graphs in Language Models, "Global Weights".
            https://transformer-circuits.pub/2025/attribution-graphs/methods.html
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Virtual weights".
    """
    circuit = check_choice("circuit", circuit, CIRCUITS)
    k = check_k(k, len(source) * len(target), "pairs of features")
    if source.d_model != target.d_model:
        raise errors.different_dictionary_widths(source.name, source.d_model, target.name, target.d_model)
    if circuit == "direct":
        if layer is not None or head is not None:
            raise errors.direct_has_no_heads()
        check_direct(source, target, None if lens is None else lens.weights)
        blocks = _direct_blocks(source, target, lens, k, largest)
    else:
        if lens is None:
            raise errors.lens_needed(circuit)
        layers = layers_between(source, target, circuit, lens.weights, layer)
        blocks = _head_blocks(source, target, lens, layers, lens.weights.select_heads(head), circuit, k, largest)
    return tidy(COLUMNS, blocks, kind="pairs")


def _direct_blocks(source: Features, target: Features, lens: BaseLens | None, k: int, largest: bool) -> Iterator[Block]:
    """The best pairs through the residual stream alone, as one block."""
    written, read = _written(source, lens), _read(target, lens)
    eye = torch.eye(source.d_model, dtype=working_dtype(source.decoder.dtype), device=written.device)
    n_pairs = len(source) * len(target)
    with tqdm(total=n_pairs, desc="direct", unit="pair", unit_scale=True, disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.update(done - bar.n)

        scores, s, t = top_pairs(written, eye, eye, read, k, largest=largest, progress=update)
    yield {"circuit": "direct", "layer": NO_HEAD, "head": NO_HEAD} | _pair_columns(source, target, s, t, scores)


def _head_blocks(
    source: Features,
    target: Features,
    lens: BaseLens,
    layers: list[int],
    heads: list[int],
    circuit: Circuit,
    k: int,
    largest: bool,
) -> Iterator[Block]:
    """The best pairs of each head, one block per head."""
    written = _written(source, lens)
    other = _read(target, lens) if circuit == "ov" else _written(target, lens)
    with tqdm(total=len(layers) * len(heads), desc=circuit, unit="head", disable=None, leave=False) as bar:
        for index in layers:
            circuits = lens.weights.circuits("W_OV" if circuit == "ov" else "W_QK", index)
            for h in heads:
                left, right = (factor.to(written.device) for factor in circuits[h])
                if circuit == "ov":  # W_OV maps a source to an output
                    scores, s, t = top_pairs(written, left, right, other, k, largest=largest)
                else:  # the first side of W_QK is the query
                    scores, t, s = top_pairs(other, left, right, written, k, largest=largest)
                yield {"circuit": circuit, "layer": index, "head": h} | _pair_columns(source, target, s, t, scores)
                bar.update()


def _pair_columns(source: Features, target: Features, s: Any, t: Any, scores: Any) -> Block:
    """The columns of the best pairs."""
    s, t = s.cpu().numpy(), t.cpu().numpy()
    return {
        "rank": np.arange(len(s)),
        "dest_feature_index": t,
        "dest_feature_label": target.strings[t],
        "src_feature_index": s,
        "src_feature_label": source.strings[s],
        "score": scores,
    }


def _written(features: Features, lens: BaseLens | None) -> Rows:
    """What features write, one per row; with a lens, with the gain of a norm between decoder and stream."""
    return features.decoder if lens is None else written_rows(lens.weights, features)


def _read(features: Features, lens: BaseLens | None) -> Rows:
    """What features read, one per row; with a lens, with the norm between stream and encoder folded in.

    Raises:
        EmbspaceError: If the dictionary has no encoder.
    """
    if lens is not None:
        return read_rows(lens.weights, features)
    if features.encoder is None:
        raise errors.no_feature_encoder(features.name)
    return features.encoder.T
