"""Pairs of tokens that are the same word: identical, or identical but for case, surrounding space and a regular ending."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..tables.checks import check_choice

SameRule = Literal["exact", "fuzzy"]
RULES: tuple[SameRule, ...] = ("exact", "fuzzy")

MIN_STEM = 3  # letters
INFLECTIONS = {
    "": ("", "s", "es", "ed", "ing", "er", "ers", "est", "ly", "'s"),  # walk, walks, walked, walking
    "e": ("e", "es", "ed", "ing", "er", "ers", "est", "ely"),  # make, makes, making
    "y": ("y", "ies", "ied", "ier", "iest", "ily"),  # story, stories
}
"""The regular endings of English words, by the last letter that the stem loses."""


def same_pairs(strings: Sequence[str], rule: SameRule) -> Int[Tensor, " p"]:
    """The pairs of strings that are the same by a rule, as keys (first · n + second), ascending. Each string is the same as itself.

    The fuzzy rule is about letters, not about meaning: numb and number, or inter and interest, are the same; went and go are not.

    Args:
        strings: The texts of n tokens.
        rule: `"exact"`: equal texts. `"fuzzy"`: texts that are equal without case and surrounding space; or that share a stem
            of three letters or more, followed by endings of one class of `INFLECTIONS`.

    Raises:
        EmbspaceError: If there is no such rule.
    """
    check_choice("exclude_same", rule, RULES)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, text in enumerate(strings):
        for label in _labels(text, rule):
            groups[label].append(i)
    n = len(strings)
    keys = []
    for group in groups.values():
        members = torch.tensor(group)
        keys.append((members[:, None] * n + members).flatten())
    return torch.cat(keys).unique()


def _labels(text: str, rule: SameRule) -> Iterable[tuple[str, str]]:
    """Labels of a text: two texts are the same if they share one."""
    if rule == "exact":
        return {("text", text)}
    word = text.strip().casefold()
    labels = {("word", word)}
    for lost, endings in INFLECTIONS.items():
        for ending in endings:
            stem = word.removesuffix(ending)
            if word.endswith(ending) and len(stem) >= MIN_STEM and word.replace("'", "").isalpha():
                labels.add((f"stem -{lost}", stem))
    return labels
