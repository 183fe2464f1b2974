"""Tokens of vectors in the plane: tokens with similar embeddings lie close together."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from .. import errors
from ..display import theme
from ..display.table_groups import TableGroup, check_kind, table_groups
from ..display.tokens import display, format_score
from ..lens import EmbeddingLens
from ..space.embedding_space import EmbeddingSpace
from ..weights.parameter_names import Side
from .figure import escape, finish, plotly
from .label_positions import LabelPositions

MAX_VECTORS = 6
LEAST_FOR_TSNE = 12  # tokens; with fewer, t-SNE has no neighbourhoods to preserve
WIDTH, HEIGHT = 820, 640
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
CHARACTERS = "●◆■▲✚★"


def plot_plane(lens: Any, what: Any, *, side: Side = "write", k: int = 60, seed: int = 0) -> Any:
    """Draw the top tokens of vectors in the plane, so that tokens with similar embeddings lie close together.

    The layout is t-SNE of the centred embeddings by cosine, or principal components for fewer than 12 tokens. A token of
    several vectors is drawn for the vector that scores it highest.

    Args:
        lens: The lens that has the embeddings.
        what: Vectors (a tensor or an array), `[d_model]` or `[n, d_model]`, or a table of `neurons()`, `subheads()`,
            `singular()` or `directions()`; six vectors at most.
        side: The embeddings: `"write"` (E) or `"read"` (E').
        k: How many tokens of each vector; a table keeps its own.
        seed: Seed of t-SNE; the same seed gives the same picture.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If `lens` or `what` is something else; if there are more than six vectors, or fewer than three tokens; or
            scikit-learn or plotly is not installed.

    Example:
        >>> len(plot_plane(lens, lens.neurons(layer=0, neuron=3, k=4)).data)
        2

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space.
    """
    go = plotly()
    if not isinstance(lens, EmbeddingLens):
        raise errors.not_plane_arguments("lens", lens)
    if not isinstance(what, pd.DataFrame):
        if not isinstance(what, torch.Tensor | np.ndarray | list | tuple) or not len(np.shape(what)):
            raise errors.not_plane_arguments("what", what)
        reader: Any = lens
        what = reader.directions(what, side=side, k=min(k, lens.space.n_tokens))
    check_kind(what, "plot_plane()", ("tokens",))
    if "feature_index" in what.columns:
        raise errors.plane_of_features()
    groups = list(table_groups(what))
    if len(groups) > MAX_VECTORS:
        raise errors.too_many_groups("plot_plane()", MAX_VECTORS, "vectors", len(groups), "Select some of them.")
    token_ids = np.array(sorted({int(i) for group in groups for i in group.rows["token_index"]}), dtype=np.int64)
    if len(token_ids) < 3:
        raise errors.too_few_tokens("plot_plane()", 3, len(token_ids))
    points, method = _layout(lens, token_ids, side, seed)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 1e-9) * [1.16, 1.1]
    corner = (low + high) / 2 - extent / 2
    size = (WIDTH - 32, HEIGHT - 90)
    pixels = (points - corner) / extent * size
    owner = _best_group(groups)
    positions = _label_positions(groups, dict(zip(token_ids.tolist(), pixels, strict=True)), size)
    point_of = dict(zip(token_ids.tolist(), points, strict=True))
    figure = go.Figure()
    for i, group in enumerate(groups):
        rows: Any = group.rows[[owner[token_id] == i for token_id in group.rows["token_index"].tolist()]]
        if len(rows):
            figure.add_trace(_marks(go, group, rows, i, point_of, positions))
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "showline": False}
    figure.update_xaxes(range=[corner[0], corner[0] + extent[0]], **axis)
    figure.update_yaxes(range=[corner[1] + extent[1], corner[1]], **axis)
    figure.update_layout(margin={"l": 16, "r": 16, "t": 74, "b": 16})
    legend = [
        f'<span style="color:{theme.SERIES[i]}">{CHARACTERS[i]} {escape(_name(group))}</span>'
        for i, group in enumerate(groups)
    ]
    title = f"Top tokens of {escape(_name(groups[0]))}: similar embeddings lie close together"
    if len(groups) > 1:
        title, method = "Top tokens: similar embeddings lie close together", "   ".join([*legend, method])
    return finish(figure, title, WIDTH, HEIGHT, method)


def _name(group: TableGroup) -> str:
    if "direction" in group.rows.columns and group.name.isdecimal():  # a vector to which the user gave no name
        return f"vector {group.name}"
    return f"{group.name} {group.weight}".strip() or "the vector"


def _best_group(groups: list[TableGroup]) -> dict[int, int]:
    """For each token, the index of the group that scores it highest."""
    best: dict[int, tuple[float, int]] = {}
    for i, group in enumerate(groups):
        for token_id, score in zip(group.rows["token_index"].tolist(), group.rows["score"].tolist(), strict=True):
            best[token_id] = max(best.get(token_id, (-np.inf, 0)), (score, -i))
    return {token_id: -negative_index for token_id, (_, negative_index) in best.items()}


def _label_positions(
    groups: list[TableGroup], pixels: dict[int, np.ndarray], size: tuple[int, int]
) -> dict[int, str | None]:
    """The position of each token's label, or None if there is no room; labels of better ranks are placed first."""
    labels = LabelPositions(np.stack(list(pixels.values())), size)
    order = sorted((int(rank), i, j) for i, group in enumerate(groups) for j, rank in enumerate(group.rows["rank"]))
    positions: dict[int, str | None] = {}
    for _, i, j in order:
        row = groups[i].rows.iloc[j]
        token_id = int(row["token_index"])
        if token_id not in positions:
            x, y = pixels[token_id]
            positions[token_id] = labels.place(float(x), float(y), display(row["token_string"]))
    return positions


def _marks(
    go: Any,
    group: TableGroup,
    rows: pd.DataFrame,
    index: int,
    point_of: dict[int, np.ndarray],
    positions: dict[int, str | None],
) -> Any:
    """The marks and labels of one group's tokens."""
    token_ids = rows["token_index"].tolist()
    points = np.stack([point_of[token_id] for token_id in token_ids])
    labels = [escape(display(token)) for token in rows["token_string"]]
    hover = [
        f"{escape(_name(group))}<br>{label} (id {token_id})<br>score {format_score(score)}"
        for label, token_id, score in zip(labels, token_ids, rows["score"].tolist(), strict=True)
    ]
    colour = theme.SERIES[index]
    return go.Scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers+text",
        text=[label if positions[token_id] else "" for label, token_id in zip(labels, token_ids, strict=True)],
        textposition=[positions[token_id] or "middle right" for token_id in token_ids],
        hovertext=hover,
        hoverinfo="text",
        cliponaxis=False,
        textfont={"family": theme.MONO, "size": 11, "color": colour},
        marker={"color": colour, "symbol": SYMBOLS[index], "size": 7, "opacity": 0.85},
    )


def _layout(
    lens: EmbeddingLens, token_ids: Int[np.ndarray, " n_tokens"], side: Side, seed: int
) -> tuple[Float[np.ndarray, "n_tokens 2"], str]:
    """A point for each token, and the name of the method."""
    space = EmbeddingSpace(lens.weights, space=lens.space.kind, score="cosine", token_ids=lens.space.token_ids)
    positions = np.searchsorted(lens.space.token_ids.numpy(), token_ids)
    rows = space.rows(side)
    vectors = rows[torch.from_numpy(positions).to(rows.device)].float().cpu().numpy()
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "plots") from reason
    if len(token_ids) < LEAST_FOR_TSNE:
        return PCA(2, random_state=seed).fit_transform(vectors), "principal components of the embeddings"
    perplexity = min(15.0, (len(token_ids) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, metric="cosine", init="random", learning_rate="auto", random_state=seed)
    return tsne.fit_transform(vectors), "t-SNE of the embeddings by cosine; large distances have no meaning"
