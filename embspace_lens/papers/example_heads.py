"""Paper A, example heads: the best pairs of tokens of single heads, without identical ones."""

from typing import Any

import numpy as np
import pandas as pd

from ..display.labels import label_groups
from ..plots.pair_lines import plot_pairs
from ..tables.frames import tidy
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import legible_lens

NAME = "A:example-heads"
K, K_SHOWN, N_HEADS = 50, 6, 4
KEYS = ["layer", "head", "weight"]


def run(setting: Setting) -> Findings:
    """List the pairs of the heads with the largest scores, and count identical pairs against re-matched ones."""
    lens = legible_lens(setting.model, fold_ln=False, space="unembed")
    rng = np.random.default_rng(setting.seed)
    rows, details, plots = [], {}, []
    for name, read in {"W_OV": lens.ov, "W_QK": lens.qk}.items():
        table: Any = read(k=K)
        is_same = same_word(table["src_token_string"], table["dest_token_string"])
        shares = is_same.groupby([table[key] for key in KEYS[:2]]).mean()
        shuffled = [
            same_word(part["src_token_string"], part["dest_token_string"].sample(frac=1, random_state=rng)).mean()
            for _, part in table.groupby(KEYS[:2])
        ]
        rows.append(
            {
                "measure": f"{name}: share of identical words among the {K} best pairs of a head, mean over heads",
                "value": shares.mean(),
                "control": float(np.mean(shuffled)),
                "n": len(shares),
            }
        )
        different = table[~is_same]
        best = different.groupby(KEYS[:2])["score"].max().nlargest(N_HEADS).index
        chosen = different[pd.MultiIndex.from_frame(different[KEYS[:2]]).isin(best)]
        chosen = chosen.groupby(KEYS[:2]).head(K_SHOWN).reset_index(drop=True)
        labels = label_groups(chosen, K_SHOWN)
        block = {column: labels[column].tolist() for column in (*KEYS, "label")}
        details[f"{name}: the best pairs of the {N_HEADS} heads with the largest scores, identical words left out"] = (
            tidy([*KEYS, "label"], [block])
        )
        plots.append(chosen)
    return Findings(figures(NAME, setting, rows), details, lambda: plot_pairs(plots[0]))


def same_word(left: Any, right: Any) -> Any:
    """Whether two tokens are the same word but for case and spaces, row by row."""
    a, b = (column.str.strip().str.lower().to_numpy() for column in (left, right))
    return pd.Series(a == b, index=left.index)


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Example heads",
        source="Dar et al. (2023), tables of example heads",
        protocol=(
            "The best pairs of tokens of W_OV and W_QK of a head (raw weights, W_U for both sides, frequent words by cosine), and how many of them are one word twice. "
            "Control: the same tokens of a head, matched at random."
        ),
        run=run,
        models=("reviews-small-0", "reviews-medium-0"),
    )
]
