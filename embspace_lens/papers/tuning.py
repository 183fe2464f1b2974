"""Paper A, differences: what fine-tuning changed, as tokens, and the tokens of the classifier's own rows."""

from pathlib import Path
from typing import Any

import pandas as pd

from .. import errors
from ..compare.differences import difference
from ..compare.displacements import displacement
from ..demo import catalog
from ..display.labels import label_groups
from ..lens import EmbeddingLens
from ..plots.comparison_curves import plot_displacement
from ..tables.frames import tidy
from .data_files import data_file
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import legible_lens

NAME = "A:difference"
K = 10
N_DIRECTIONS = 4


def run(setting: Setting) -> Findings:
    """Measure the share of sentiment words among the top tokens of the difference, and list tokens."""
    if not catalog.is_classifier(setting.model):
        raise errors.other_model_needed(NAME, setting.model, "a classifier that embspace_lens.demo.tune wrote")
    card, head = catalog.card(setting.model), catalog.head(setting.model)
    base = str(card["base"])
    after, before = legible_lens(setting.model, vocabulary="frequent"), legible_lens(base)
    words = {sign: read_sentiment(setting, sign) for sign in ("positive", "negative")}
    layers = range(before.weights.n_layers - card["config"]["n_blocks"], before.weights.n_layers)
    table: Any = displacement(after, before, words["positive"], words["negative"], layer=layers, k=K, seed=setting.seed)
    rows = []
    for (layer, weight), part in table.groupby(["layer", "weight"], observed=True):
        by_sample = part.set_index("sample")
        for control in ("random", "base"):
            rows.append(
                {
                    "measure": f"{weight}, layer {layer}: share of words of one sign, control {control}",
                    "value": by_sample.loc["difference", "share"],
                    "low": by_sample.loc["difference", "low"],
                    "high": by_sample.loc["difference", "high"],
                    "control": by_sample.loc[control, "share"],
                    "n": int(by_sample.loc["difference", "n"]),
                }
            )
    head_rows = before.directions(head.directions, names=list(head.labels), side="read", k=K)
    rows += _head_shares(setting.model, before, words)
    details = {
        "Tokens of the classification head's rows": token_lists(head_rows, "direction"),
        f"Largest changes of W_V in layer {layers[-1]}: the tokens of both ends": _largest_changes(
            after, before, layers[-1]
        ),
    }
    notes = ("The paper shows lists of tokens, no shares: the share is the package's own measure.",)
    return Findings(figures(NAME, setting, rows), details, lambda: plot_displacement(table), notes)


def _head_shares(model: str, lens: EmbeddingLens, words: dict[str, list[str]]) -> list[dict[str, object]]:
    """For each class, the share of its row's top tokens that are words of its sign; control: words of the other sign."""
    head = catalog.head(model)
    rows: list[dict[str, object]] = []
    for label, direction in zip(head.labels, head.directions):
        sign = next((name for name in words if name.startswith(label.lower())), None)
        if sign is None:
            continue
        other = "negative" if sign == "positive" else "positive"
        tokens = lens.directions(direction, side="read", k=50)["token_string"].str.strip().str.lower()
        value, control = (tokens.isin(words[name]).mean() for name in (sign, other))
        measure = f"head, row {label}: share of {sign} words among 50 tokens, control {other} words"
        rows.append({"measure": measure, "value": value, "control": control, "n": len(tokens)})
    return rows


def _largest_changes(after: EmbeddingLens, before: EmbeddingLens, layer: int) -> pd.DataFrame:
    """The top and bottom tokens of the sub-heads of W_V with the largest change in norm."""
    change = difference(after, before)
    x = change.weights.directions("W_V", layer)
    order = x.norm(dim=-1).flatten().topk(N_DIRECTIONS).indices.tolist()
    vectors = [x.reshape(-1, x.shape[-1])[index] for index in order]
    names = [f"L{layer}H{index // x.shape[1]}.{index % x.shape[1]}" for index in order]
    both = [
        before.directions(sign * vector, names=[f"{name} {end}"], side="read", k=K)
        for name, vector in zip(names, vectors)
        for end, sign in (("+", 1), ("−", -1))
    ]
    return token_lists(pd.concat(both, ignore_index=True), "direction")


def token_lists(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """The tokens of each direction as one label.

    Returns:
        One row per (direction), with `label`.
    """
    labels = label_groups(table, K)
    return tidy([key, "label"], [{key: labels[key].tolist(), "label": labels["label"].tolist()}])


def read_sentiment(setting: Setting, sign: str) -> list[str]:
    """The words of one sign of the opinion lexicon; lines that begin with `;` are comments.

    Raises:
        EmbspaceError: If the lexicon is absent.
    """
    path = Path(data_file(setting, "sentiment")) / f"opinion_{sign}.txt"
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as reason:
        raise errors.unreadable_words("--data", path, reason) from reason
    return [line.strip() for line in lines if line.strip() and not line.startswith(";")]


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="What tuning changed",
        source="Dar et al. (2023), §4.3",
        protocol=(
            f"The share of the {K} tokens at either end of a direction of the weight difference that are words of one sign (opinion lexicon; frequent words "
            "by cosine, norms folded), with 95 % bootstrap intervals over directions. Controls: Gaussian directions, and the weights before tuning."
        ),
        run=run,
        models=("reviews-small-0-sentiment",),
        needs=("sentiment",),
    )
]
