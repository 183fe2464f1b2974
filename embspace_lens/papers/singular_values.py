"""Paper A and Millidge & Black: the singular directions of heads as tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..display.labels import label_groups
from ..evidence.token_lists import cyclic_permutation, jaccard, strongest_tokens
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from ..weights.parameter_names import Side
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import legible_lens

NAME = "A:singular-directions"
K, N_DIRECTIONS, SEEDS = 50, 10, 20
N_HEADS, K_SHOWN = 3, 8


def run(setting: Setting) -> Findings:
    """Compare the two sides of each singular direction, and the coherence of its tokens with that of Gaussian directions."""
    lens = legible_lens(setting.model)
    rows = [*_shared_tokens(lens, setting.seed), *_coherence(lens, setting.seed)]
    shown = {
        f"{weight}: the first direction of the heads with the largest singular values": _examples(lens, weight)
        for weight in ("W_OV", "W_QK")
    }
    notes = ("Neither paper reports these two measures: they show lists of tokens.",)
    return Findings(figures(NAME, setting, rows), shown, notes=notes)


def _sides(lens: EmbeddingLens, weight: str) -> Iterator[tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]]:
    """The first singular directions of both sides of each head of a layer."""
    for layer in lens.weights.layers_with("attn"):
        u, _, vh = getattr(lens.weights, weight)(layer).svd()
        left, right = (x[..., :N_DIRECTIONS].transpose(-1, -2).reshape(-1, lens.weights.d_model) for x in (u, vh))
        yield left, right


def _shared_tokens(lens: EmbeddingLens, seed: int) -> Iterator[dict[str, Any]]:
    """How many tokens the two sides of a singular direction share; control: sides of other directions of the layer."""
    k = min(K, lens.space.n_tokens)
    for weight in ("W_OV", "W_QK"):
        own, others = [], []
        for left, right in _sides(lens, weight):
            a = strongest_tokens(lens.space, left, "read", k)
            b = strongest_tokens(lens.space, right, "write" if weight == "W_OV" else "read", k)
            own.append(jaccard(a, b))
            others += [float(jaccard(a, b[cyclic_permutation(len(b), seed + i)]).mean()) for i in range(SEEDS)]
        values = torch.cat(own)
        low, high = bootstrap_interval(values)
        yield {
            "measure": f"{weight}: Jaccard index of the two sides' {k} strongest tokens",
            "value": values.mean().item(),
            "low": low,
            "high": high,
            "control": float(np.mean(others)),
            "n": len(values),
        }


def _coherence(lens: EmbeddingLens, seed: int) -> Iterator[dict[str, Any]]:
    """The mean cosine between the top tokens of a singular direction; control: Gaussian directions."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = mean_cosine(lens, torch.randn(200, lens.weights.d_model, generator=generator))
    sides: dict[str, Side] = {"W_OV": "write", "W_QK": "read"}
    for weight, side in sides.items():
        values = torch.cat([mean_cosine(lens, right, side=side) for _, right in _sides(lens, weight)])
        low, high = bootstrap_interval(values)
        yield {
            "measure": f"{weight}: mean cosine between the {K_SHOWN} top tokens of a direction",
            "value": values.mean().item(),
            "low": low,
            "high": high,
            "control": gaussian.mean().item(),
            "n": len(values),
        }


def mean_cosine(
    lens: EmbeddingLens, x: Float[Tensor, "n d_model"], k: int = K_SHOWN, side: Side = "write"
) -> Float[Tensor, " n"]:
    """The mean cosine between the embeddings of the k top tokens of each vector, over pairs of different tokens."""
    _, ids = lens.space.top(x, side, k)
    positions = torch.searchsorted(lens.space.token_ids, ids)
    rows = lens.space.rows(side)
    unit = torch.nn.functional.normalize(torch.stack([rows[p.to(rows.device)] for p in positions]).float(), dim=-1)
    total = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2))
    return (total - k) / (k * (k - 1))


def _examples(lens: EmbeddingLens, weight: str) -> pd.DataFrame:
    """The tokens of the first singular direction of some heads."""
    options: Any = {"weight": weight, "n_directions": 1, "k": K_SHOWN}
    table: Any = lens.singular(**options)
    best = table.groupby(["layer", "head"])["singular_value"].max().nlargest(N_HEADS).index
    chosen: Any = table[pd.MultiIndex.from_frame(table[["layer", "head"]]).isin(best)].reset_index(drop=True)
    labels = label_groups(chosen, K_SHOWN)
    columns = ["layer", "head", "weight", "component", "side", "label"]
    return tidy(columns, [{column: labels[column].tolist() for column in columns}])


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Singular directions of heads",
        source="Dar et al. (2023), notebook; Millidge & Black (2022)",
        protocol=(
            f"The first {N_DIRECTIONS} singular directions of each head (norms folded, frequent words by cosine): tokens that both sides share, against the other "
            "directions of the layer; and the mean cosine between the embeddings of a direction's top tokens, against Gaussian directions."
        ),
        run=run,
        models=("reviews-small-0", "reviews-medium-0"),
    )
]
