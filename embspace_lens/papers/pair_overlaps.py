"""Paper A, related pairs: the two weights of a neuron or sub-head share top tokens."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from ..display.tokens import display
from ..evidence.overlap import PAIRS, related_pairs, select_pairs, token_lists_of
from ..evidence.token_lists import jaccard
from ..lens import EmbeddingLens
from ..plots.evidence_curves import plot_related_pairs
from ..tables.frames import tidy
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import LENS, raw_lens

NAME = "A:related-pairs"
K = 100
PUBLISHED = {"W_Q-W_K": (0.0083, 0.0040)}
PUBLISHED_LAYERS = {"W_Q-W_K": 23 / 24}
N_SHOWN, N_TOKENS = 5, 8


def run(setting: Setting) -> Findings:
    """Measure the overlap with the paper's options, and with whole words by cosine."""
    lens = raw_lens(setting.model)
    k = min(K, lens.space.n_tokens)
    tables = {
        "": related_pairs(lens, k=k),
        ", words by cosine": related_pairs(raw_lens(setting.model, vocabulary="words", score="cosine"), k=k),
    }
    rows = [row for suffix, table in tables.items() for row in _rows(table, suffix)]
    return Findings(
        figures(NAME, setting, rows),
        {"The pairs with the largest overlap": strongest_pairs(lens, k)},
        lambda: plot_related_pairs(tables[""]),
        (
            "The published figures are means over the 24 layers of GPT-2 medium, with a control that shuffles head 0 only.",
        ),
    )


def _rows(table: pd.DataFrame, suffix: str) -> Iterator[dict[str, Any]]:
    for pair, part in table.groupby("pair"):
        by_layer = part.pivot(index="layer", columns="sample", values="jaccard")
        value, control = PUBLISHED.get(str(pair), (float("nan"),) * 2) if not suffix else (float("nan"),) * 2
        yield {
            "measure": f"{pair}{suffix}: mean Jaccard index",
            "value": by_layer["paired"].mean(),
            "control": by_layer["shuffled"].mean(),
            "published": value,
            "published_control": control,
            "n": part.loc[part["sample"] == "paired", "n"].sum(),
        }
        yield {
            "measure": f"{pair}{suffix}: share of layers above the control",
            "value": (by_layer["paired"] > by_layer["shuffled"]).mean(),
            "control": 0.5,
            "published": float("nan") if suffix else PUBLISHED_LAYERS.get(str(pair), float("nan")),
            "n": len(by_layer),
        }


def strongest_pairs(lens: EmbeddingLens, k: int) -> pd.DataFrame:
    """The neurons and sub-heads whose two weights share most tokens.

    Returns:
        One row per (layer, head, neuron, subhead, pair), with `jaccard` and `label`, some of the shared tokens; −1 for keys that
        the weights do not have.
    """

    def blocks() -> Iterator[dict[str, Any]]:
        best: dict[str, list[tuple[float, int, int, str]]] = {}
        for layer, names in select_pairs(lens, None, None).items():
            for name in names:
                a, b = (token_lists_of(lens, weight, layer, k) for weight in PAIRS[name])
                overlap = jaccard(a, b)
                top = overlap.topk(min(N_SHOWN, len(overlap)))
                for value, index in zip(top.values.tolist(), top.indices.tolist()):
                    shared = a[index][torch.isin(a[index], b[index])].tolist()[:N_TOKENS]
                    label = " ".join(display(str(lens.vocabulary.strings[token])) for token in shared)
                    best.setdefault(name, []).append((value, layer, index, label))
        for name, rows in best.items():
            for value, layer, index, label in sorted(rows, reverse=True)[:N_SHOWN]:
                has_heads = name in ("W_Q-W_K", "W_V-W_O")
                d_head = lens.weights.W_O(layer).shape[1] if has_heads else 1
                yield {
                    "pair": name,
                    "layer": layer,
                    "head": index // d_head if has_heads else -1,
                    "neuron": -1 if has_heads else index,
                    "subhead": index % d_head if has_heads else -1,
                    "jaccard": value,
                    "label": label,
                }

    return tidy(["layer", "head", "neuron", "subhead", "pair", "jaccard", "label"], blocks())


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Keys and values share tokens",
        source="Dar et al. (2023)",
        protocol=(
            f"The Jaccard index of the {K} tokens with the largest absolute scores of the two weights of a neuron or sub-head ({LENS}); a mean over "
            "neurons or sub-heads, then over layers. Control: pairs shuffled within the whole layer."
        ),
        run=run,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
    )
]
