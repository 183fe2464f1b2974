"""MAPS: the options of the authors, and the values of their GPT-2 xl, by relation."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..circuits.relations import Effect, Pairs, read_relations, relation_scores
from ..lens import EmbeddingLens
from .data_files import data_file
from .experiment import Setting

SOURCE = "Elhelo & Geva (2025), Inferring Functionality of Attention Heads from their Parameters"
K, COPYING_K = 10, 1
TEMPLATES = (
    "No <X> means no",
    "The story of <X> contains",
    "This is a document about <X>",
    "When I think about <X> I think about",
)
"""The prompts of the dynamic scores, the same for all relations; from the authors' code."""

# By relation: the best head's score, and the correlations of static and dynamic scores without and with context; then the
# same for suppression. From `results/gpt2-xl` of https://github.com/amitelhelo/MAPS, rounded to two digits there.
PUBLISHED: dict[str, tuple[float, float, float, float, float, float]] = {
    "general_copying_english_500": (0.52, 0.95, 0.65, 0.29, 0.97, 0.71),
    "name_copying": (0.92, 0.97, 0.70, 0.97, 0.99, 0.72),
    "word_first_letter": (0.32, 0.91, 0.69, 0.04, 0.78, 0.52),
    "word_last_letter": (0.05, 0.61, 0.20, 0.06, 0.78, 0.54),
    "year_to_following": (0.95, 0.94, 0.74, 0.32, 0.75, 0.52),
    "country_to_capital_wikidata": (0.98, 0.98, 0.88, 0.72, 0.94, 0.80),
    "country_to_official_language_wikidata": (0.75, 0.96, 0.84, 0.50, 0.96, 0.78),
    "object_superclass": (0.43, 0.94, 0.81, 0.23, 0.89, 0.82),
    "product_by_company": (0.65, 0.96, 0.91, 0.33, 0.88, 0.77),
    "work_location": (0.31, 0.88, 0.73, 0.18, 0.83, 0.62),
    "adj_comparative": (0.88, 0.95, 0.78, 0.38, 0.86, 0.60),
    "adj_superlative": (0.54, 0.94, 0.73, 0.27, 0.81, 0.59),
    "entity_to_pronoun": (0.58, 0.96, 0.68, 0.40, 0.92, 0.34),
    "verb_past_tense": (0.28, 0.93, 0.76, 0.17, 0.84, 0.64),
    "adj_antonym": (0.38, 0.96, 0.85, 0.05, 0.53, 0.37),
    "word_to_compound": (0.17, 0.80, 0.65, 0.14, 0.80, 0.58),
    "word_to_homophone": (0.02, 0.46, 0.38, 0.01, 0.10, 0.04),
    "word_to_synonym": (0.21, 0.95, 0.79, 0.08, 0.81, 0.59),
}
COLUMNS = {"promotion": (0, 1, 2), "suppression": (3, 4, 5)}
UNKNOWN = (float("nan"),) * 6


def published(relation: str, effect: Effect) -> tuple[float, float, float]:
    """The best head's score in GPT-2 xl, and the correlations without and with context; NaN for other relations."""
    values = PUBLISHED.get(relation, UNKNOWN)
    first, second, third = (values[column] for column in COLUMNS[effect])
    return first, second, third


def top_k(relation: str) -> int:
    """The number of top tokens among which the target must be: 1 for copying, 10 for other relations."""
    return COPYING_K if "copying" in relation else K


def raw_weights(setting: Setting) -> EmbeddingLens:
    """The model as the authors read it: weights as stored, all tokens, inner products."""
    return EmbeddingLens.from_pretrained(setting.model, fold_ln=False)


def relations_of(setting: Setting) -> dict[str, list[tuple[str, str]]]:
    """The relations of the data folder."""
    return read_relations(data_file(setting, "relations"))


def scores_of(lens: EmbeddingLens, relations: Mapping[str, Pairs], setting: Setting) -> pd.DataFrame:
    """The scores of all heads, each relation with its k; relations with fewer than 30 pairs are left out.

    Returns:
        The rows of `relation_scores`.
    """
    options: Any = {"n_shuffles": setting.size(1000, 100), "seed": setting.seed}
    tables = []
    for k in (COPYING_K, K):
        group = {name: pairs for name, pairs in relations.items() if top_k(name) == k and enough(lens, pairs)}
        if group:
            tables.append(relation_scores(lens, group, k=k, **options))
    if not tables:
        return relation_scores(lens, {})
    return pd.concat(tables, ignore_index=True)


def enough(lens: EmbeddingLens, pairs: Pairs) -> bool:
    """Whether a relation has the 30 pairs of single tokens that a score needs."""
    return len(single_token_pairs(lens, pairs)) >= 30


def single_token_pairs(lens: EmbeddingLens, pairs: Pairs) -> list[tuple[int, int]]:
    """The pairs whose two words are single tokens of the model, as token ids."""
    tokens = [tuple(lens.vocabulary.word(word, "relation_scores()") for word in pair) for pair in pairs]
    return [(source, target) for source, target in tokens if source is not None and target is not None]


def best_heads(scores: pd.DataFrame, effect: Effect) -> pd.DataFrame:
    """The head with the highest score for each relation; the first one of several.

    Returns:
        One row per (relation), with the columns of `relation_scores`.
    """
    of_effect: Any = scores[scores["effect"] == effect]
    rows = of_effect.sort_values("relation_score", ascending=False, kind="stable")
    return rows.groupby("relation", sort=True).head(1).sort_values("relation", ignore_index=True)
