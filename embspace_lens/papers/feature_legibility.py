"""WeightLens on demo models: legible features beside shuffled encoders, labels from weights beside labels from activations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from ..features.dictionary import Features
from ..features.weight_labels import TOKEN_THRESHOLD, feature_labels
from ..forward.texts import read_texts
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval, proportion_interval
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures
from .feature_contexts import NO_TOKEN, commonest, top_contexts
from .feature_dictionaries import dictionaries

NAME = "WeightLens:labels"
N_TEXTS = 4000
N_CONTEXTS, MIN_CONTEXTS = 50, 10
N_SHUFFLES = 2
FALSE_POSITIVES = 0.05
N_SHOWN = 12
PUBLISHED, FOLDED, ENRICHED = "as published", "norms folded", "norms folded, tokens after the first MLP"
VARIANTS: dict[str, dict[str, Any]] = {PUBLISHED: {"raw": True}, FOLDED: {}, ENRICHED: {"first_mlp": True}}


@dataclass(frozen=True)
class Labels:
    """The best entry of each feature's encoder and decoder.

    Attributes:
        read: The token that the encoder scores highest.
        written: The token that the decoder scores highest.
        z: The z-score of the token that is read.
        is_legible: Whether the feature is legible.
    """

    read: Int[np.ndarray, " n"]
    written: Int[np.ndarray, " n"]
    z: Float[np.ndarray, " n"]
    is_legible: Bool[np.ndarray, " n"]


def run(setting: Setting) -> Findings:
    """Label the features of each dictionary from weights, and compare them with shuffled encoders and with their contexts."""
    lens = EmbeddingLens.from_pretrained(setting.model)
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 10)]
    rows: list[dict[str, Any]] = []
    details: dict[str, pd.DataFrame] = {}
    for name, features in dictionaries(NAME, setting).items():
        contexts = top_contexts(lens.model, features, texts, N_CONTEXTS)
        active = commonest(contexts.token, contexts.code, MIN_CONTEXTS)
        following = commonest(contexts.next_token, contexts.code, MIN_CONTEXTS)
        generator = torch.Generator().manual_seed(setting.seed)
        shuffled = [shuffle_encoder(features, generator) for _ in range(N_SHUFFLES)]
        labels: dict[str, Labels] = {}
        for variant, options in VARIANTS.items():
            labels[variant], *controls = (best_labels(lens, each, **options) for each in (features, *shuffled))
            rows += legibility_rows(f"{name}, {variant}", labels[variant], controls)
            validated = [best_labels(lens, each, validate=True, **options) for each in (features, *shuffled)]
            rows += legibility_rows(f"{name}, {variant}, validated", validated[0], validated[1:])[:1]
            measure = f"{name}, {variant}: the token read is that of the contexts"
            rows.append(agreement_row(measure, labels[variant].read, active, setting.seed))
        measure = f"{name}, {FOLDED}: the token promoted is the next token of the contexts"
        rows.append(agreement_row(measure, labels[FOLDED].written, following, setting.seed))
        details[f"Labels of {name} ({ENRICHED})"] = examples(lens, labels[ENRICHED], active, following)
    return Findings(figures(NAME, setting, rows), details, notes=NOTES)


def shuffle_encoder(features: Features, generator: torch.Generator) -> Features:
    """The same dictionary with the entries of each encoder permuted."""
    assert features.encoder is not None
    order = torch.rand(features.encoder.shape, generator=generator).argsort(dim=0)
    return replace(features, encoder=features.encoder.gather(0, order))


def best_labels(lens: EmbeddingLens, features: Features, **options: Any) -> Labels:
    """The tokens with the highest scores, and whether features are legible by the paper's threshold."""
    table: Any = feature_labels(lens, features, k=1, **options)
    read, written = (table[table["side"] == side] for side in ("read", "write"))
    columns = read["token_index"], written["token_index"], read["z_score"], read["is_legible"]
    return Labels(*(column.to_numpy() for column in columns))


def legibility_rows(name: str, labels: Labels, controls: list[Labels]) -> list[dict[str, Any]]:
    """The share of legible features by the paper's threshold, and by the threshold that few shuffled encoders exceed."""
    n = len(labels.z)
    threshold = np.quantile(np.concatenate([control.z for control in controls]), 1 - FALSE_POSITIVES)
    rows = []
    for measure, passed, control in (
        (f"legible at z > {TOKEN_THRESHOLD:g}", labels.is_legible, np.mean([each.is_legible for each in controls])),
        ("legible at the z of 5 % of shuffled encoders", labels.z > threshold, FALSE_POSITIVES),
    ):
        low, high = proportion_interval(int(passed.sum()), n)
        row = {"value": passed.mean(), "low": low, "high": high, "control": control, "n": n}
        rows.append({"measure": f"{name}: {measure}", **row})
    return rows


def agreement_row(
    measure: str, tokens: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    """How often two labels of a feature are the same token; control: the labels of two different features, all pairs."""
    is_labelled = labels != NO_TOKEN
    tokens, labels = tokens[is_labelled], labels[is_labelled]
    if len(labels) < 2:
        return {"measure": measure, "n": len(labels)}
    equal = tokens == labels
    n_pairs = len(labels) * (len(labels) - 1)
    n_equal_pairs = (tokens[:, None] == labels).sum() - equal.sum()
    low, high = bootstrap_interval(equal, seed=seed)
    row = {"value": equal.mean(), "low": low, "high": high, "control": n_equal_pairs / n_pairs, "n": len(labels)}
    return {"measure": measure, **row}


def examples(
    lens: EmbeddingLens, labels: Labels, active: Int[np.ndarray, " n"], following: Int[np.ndarray, " n"]
) -> pd.DataFrame:
    """The features with the highest z-scores, with the tokens of their weights and of their contexts.

    Returns:
        One row per (feature), with `z_score` and `label`.
    """
    best = np.sort(np.where(active == NO_TOKEN, -np.inf, labels.z).argsort()[::-1][:N_SHOWN])
    strings = lens.vocabulary.array

    def text(tokens: Any) -> Any:
        return strings.take(tokens[best], allow_fill=True, fill_value="")

    label = [
        f"reads{read} (contexts{token}), promotes{written} (next{after})"
        for read, token, written, after in zip(
            *map(text, (labels.read, active, labels.written, following)), strict=True
        )
    ]
    return tidy(["feature", "z_score", "label"], [{"feature": best, "z_score": labels.z[best], "label": label}])


NOTES = (
    "The paper publishes no share of features with a description; it evaluates descriptions with a language model (clarity, responsiveness, "
    "purity and faithfulness of Gemma 2 2B), which is not done here.",
    f"A feature is legible if one token that its encoder reads has a z-score above {TOKEN_THRESHOLD:g} among the best 1000 (the paper's threshold "
    "for Gemma 2 and Llama 3.2); validated: and if this token by itself activates it. Tokens of earlier features are not counted.",
    f"Shuffled encoders: the entries of each encoder are permuted, {N_SHUFFLES} times. The control of the agreement pairs the labels of "
    "two different features.",
    "After the first MLP: encoders are scored with the first MLP's output for each token's embedding, in place of the embedding.",
    f"Contexts: the {N_CONTEXTS} positions of held-out reviews with the largest codes; features with fewer than {MIN_CONTEXTS} are left out of "
    "the agreement.",
)

EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Labels of features from weights",
        source="Golimblevskaia et al. (2025), WeightLens, arXiv 2510.14936",
        protocol=(
            "The share of features of which the encoder reads at least one token that is an outlier. Control: encoders with permuted entries. And how "
            "often the token that the encoder reads most is the commonest token of the feature's top contexts, and the token that the decoder promotes "
            "most their commonest next token. Control: labels of other features."
        ),
        run=run,
        needs=("reviews",),
    )
]
