"""Tokens of a vector laid out in the plane, as their embeddings lie."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import errors
from ..display import theme
from ..display.table_groups import Unit, tokens_or_pairs, units
from ..display.tokens import display, figures, width
from ..errors import EmbspaceError
from ..space.embedding_space import EmbeddingSpace
from ..weights.effective import Side
from .figure import plotly, quiet

MAX_VECTORS = 6
FEW = 12  # below this many tokens t-SNE has no neighbourhoods to keep
WIDTH, HEIGHT = 820, 640
MARKS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def plot_plane(lens: Any, what: Any, *, side: str = "write", k: int = 60, seed: int = 0) -> Any:
    """Lay the top tokens of vectors out in the plane: tokens with similar embeddings lie close.

    t-SNE of the tokens' centred embeddings by cosine; principal components for fewer than 12 tokens.

    Args:
        lens: The lens whose embeddings are used.
        what: Vectors, `[d_model]` or `[n, d_model]`, or rows of a table of `neurons()`, `subheads()`, `singular()` or
            `directions()`; six at most.
        side: The embeddings: `"write"` (E) or `"read"` (E').
        k: How many tokens of each vector; a table's rows are used as they are.
        seed: Where t-SNE begins; the same seed gives the same picture.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If there are more than six vectors, or fewer than three tokens; or scikit-learn or plotly is not
            installed.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space.
    """
    go = plotly()
    if not isinstance(what, pd.DataFrame):
        what = lens.directions(what, side=side, k=min(k, lens.space.n_tokens))
    tokens_or_pairs(what, "plot_plane()", ("tokens",))
    found = list(units(what, MAX_VECTORS + 1))
    if len(found) > MAX_VECTORS:
        raise EmbspaceError(
            f"plot_plane() draws at most {MAX_VECTORS} vectors, and was given more. Select some of them."
        )
    ids = np.array(sorted({int(i) for unit in found for i in unit.rows["token_index"]}), dtype=np.int64)
    if len(ids) < 3:
        raise EmbspaceError(f"plot_plane() needs three tokens or more, and was given {len(ids)}. Raise k.")
    positions, method = _positions(lens, ids, side, seed)
    at = dict(zip(ids.tolist(), positions, strict=True))
    figure = go.Figure()
    best: dict[int, tuple[float, int]] = {}  # a token that several vectors share is drawn where it scores highest
    for number, unit in enumerate(found):
        for i, score in zip(unit.rows["token_index"].tolist(), unit.rows["score"].tolist(), strict=True):
            best[i] = max(best.get(i, (-np.inf, 0)), (score, -number))
    size = (WIDTH - 32, HEIGHT - 90)
    low, high = positions.min(axis=0), positions.max(axis=0)
    reach = np.maximum(high - low, 1e-9) * [1.16, 1.1]
    corner = (low + high) / 2 - reach / 2
    pixels = (positions - corner) / reach * size
    labels = _Labels(pixels, size)
    pixel_of = dict(zip(ids.tolist(), pixels, strict=True))
    order = sorted((int(r), n, place) for n, unit in enumerate(found) for place, r in enumerate(unit.rows["rank"]))
    beside: dict[int, str | None] = {}
    for _, number, place in order:
        row = found[number].rows.iloc[place]
        i = int(row["token_index"])
        if i not in beside:
            x, y = pixel_of[i]
            beside[i] = labels.place(x, y, display(row["token_string"]))
    for number, unit in enumerate(found):
        rows = unit.rows[[best[i][1] == -number for i in unit.rows["token_index"].tolist()]]
        if rows.empty:
            continue
        points = np.stack([at[i] for i in rows["token_index"].tolist()])
        shown = [escape(display(s)) for s in rows["token_string"]]
        name = escape(_name(unit))
        keyed = zip(shown, rows["token_index"].tolist(), rows["score"].tolist(), strict=True)
        hover = [f"{name}<br>{label} (id {i})<br>score {figures(s)}" for label, i, s in keyed]
        places = [beside[i] for i in rows["token_index"].tolist()]
        colour = theme.SERIES[number]
        figure.add_trace(
            go.Scatter(
                x=points[:, 0],
                y=points[:, 1],
                mode="markers+text",
                text=[label if p else "" for label, p in zip(shown, places, strict=True)],
                textposition=[p or "middle right" for p in places],
                hovertext=hover,
                hoverinfo="text",
                cliponaxis=False,
                textfont={"family": theme.MONO, "size": 11, "color": colour},
                marker={"color": colour, "symbol": MARKS[number], "size": 7, "opacity": 0.85},
            )
        )
    names = [
        f'<span style="color:{theme.SERIES[n]}">{"●◆■▲✚★"[n]} {escape(_name(unit))}</span>'
        for n, unit in enumerate(found)
    ]
    blank = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "showline": False}
    figure.update_xaxes(range=[corner[0], corner[0] + reach[0]], **blank)
    figure.update_yaxes(range=[corner[1] + reach[1], corner[1]], **blank)
    figure.update_layout(margin={"l": 16, "r": 16, "t": 74, "b": 16})
    title = (
        f"The tokens of {escape(_name(found[0]))}, as their embeddings lie"
        if len(found) == 1
        else "Tokens as their embeddings lie"
    )
    legend = "   ".join(names) + "   " if len(found) > 1 else ""
    return quiet(figure, title, WIDTH, HEIGHT, f"{legend}{method}")


def _name(unit: Unit) -> str:
    return f"{unit.name} {unit.weight}".strip() or "the vector"


def _positions(lens: Any, ids: np.ndarray, side: Side, seed: int) -> tuple[np.ndarray, str]:
    """Where tokens lie, scaled to the unit square, and how that was found."""
    space = EmbeddingSpace(lens.weights, space=lens.space.kind, score="cosine", token_ids=lens.space.token_ids)
    places = np.searchsorted(lens.space.token_ids.numpy(), ids)
    rows = space.rows(side)
    vectors = rows[torch.from_numpy(places).to(rows.device)].float().cpu().numpy()
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "plots") from reason
    if len(ids) < FEW:
        return PCA(2, random_state=seed).fit_transform(vectors), "principal components of the embeddings"
    perplexity = min(15.0, (len(ids) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, metric="cosine", init="random", learning_rate="auto", random_state=seed)
    return tsne.fit_transform(vectors), "t-SNE of the embeddings by cosine: close means alike, far means little"


class _Labels:
    """Gives a label a place beside its mark where it covers no other, or none; who comes first has the choice."""

    def __init__(self, pixels: np.ndarray, size: tuple[int, int]) -> None:
        self.taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in pixels]
        self.size = size

    def place(self, x: float, y: float, label: str) -> str | None:
        """`"middle right"`, `"middle left"`, `"top center"`, `"bottom center"`, or None."""
        w, h = 6.8 * width(label) + 2, 12.0
        boxes = {
            "middle right": (x + 6, y - h / 2, x + 8 + w, y + h / 2),
            "middle left": (x - 8 - w, y - h / 2, x - 6, y + h / 2),
            "top center": (x - w / 2, y - 6 - h, x + w / 2, y - 6),
            "bottom center": (x - w / 2, y + 6, x + w / 2, y + 6 + h),
        }
        for where, (left, top, right, bottom) in boxes.items():
            inside = left >= 0 and top >= 0 and right <= self.size[0] and bottom <= self.size[1]
            if inside and not any(left < c and a < right and top < d and b < bottom for a, b, c, d in self.taken):
                self.taken.append((left, top, right, bottom))
                return where
        return None
