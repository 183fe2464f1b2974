"""The data of a site of features, feature by feature: labels from weights, virtual weights, heads, neurons and contexts."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.nn.functional import normalize

from ..display.tokens import visible
from ..factors.contexts import Activity
from ..factors.dictionary import Factors
from ..features.dictionary import Features
from ..features.stream_order import place_of, written_at
from ..features.weight_labels import feature_labels
from ..search.tiles import take, upcast
from .feature_activity import LAYER
from .feature_links import FeatureLinks, Link, Moves
from .ranking import legible_first
from .site_data import AROUND, NEAREST, RARE, TARGET, SiteData, rounded, search_form, token_label
from .writers import best_neurons, mean_best, random_directions

N_LABELS = 10  # entries of each side
N_CHIPS = 3  # tokens beside a linked feature
WRITES, LABEL = 3, 4  # why a search finds a feature, beside the reasons of `site_data`
_WORD = re.compile(r"\w+")

Entry = list[Any]
"""Of a token: its text, id, score and z-score, and 1 for an outlier. Of a feature: its number, score and z-score, and 1."""


class FeatureData:
    """What the site shows of each feature. Features are numbered through all dictionaries, in their order.

    Args:
        dictionaries: The dictionaries, with different names.
        lens: The lens of the model on which they were trained.
        activities: For each dictionary, the result of `feature_activity`; None for a site without texts.

    Attributes:
        n_factors: The number of features.
        layers: One layer if there are texts, otherwise none.
        n_tokens: How many tokens were read.
        is_legible: Whether each feature is legible.
        z: The largest z-score of the tokens that each feature reads.
        strongest: Its strongest virtual weight to or from another dictionary; NaN without any.
        frequency: The share of tokens on which it is active; NaN without texts.
        order: The features in the order of the overview.
        chance: For each dictionary, the mean best cosine of random directions with neurons that could write to it, and with those
            that could read from it.
    """

    def __init__(self, dictionaries: Sequence[Features], lens: Any, activities: Sequence[Activity] | None) -> None:
        self.dictionaries, self.lens, self.activities = dictionaries, lens, activities
        self.n_factors = sum(map(len, dictionaries))
        self.n_tokens = 0 if activities is None else int(activities[0].measures["n_vectors"].to_numpy().sum())
        self.layers: list[int] = [] if activities is None else [LAYER]
        self._links = FeatureLinks(dictionaries, lens)
        self.first = self._links.first
        self._dictionary_of = [i for i, features in enumerate(dictionaries) for _ in range(len(features))]
        self._sites = [
            SiteData(_unit_rows(features), activity, None, None, None)
            for features, activity in zip(dictionaries, activities or [None] * len(dictionaries), strict=True)
        ]
        self.is_legible = np.zeros(self.n_factors, dtype=bool)
        self._entries: list[dict[str, list[Entry]]] = []
        self._direct: list[tuple[list[Link], list[Link]]] = []
        self._moves: list[tuple[list[Moves], list[Moves]]] = []
        self._neurons: list[tuple[list[Any], list[Any]]] = []
        self.chance: list[tuple[float, float]] = []
        for i in range(len(dictionaries)):
            self._read_labels(i)
            self._direct += zip(self._links.direct_in(i), self._links.direct_out(i), strict=True)
            self._moves += zip(self._links.heads_in(i), self._links.heads_out(i), strict=True)
            self._read_neurons(i)
        best = [entries["read"][0] if entries["read"] else ["", -1, 0.0, 0.0, 0] for entries in self._entries]
        self.z = np.array([entry[3] for entry in best], dtype=float)
        first_links = [[abs(side[0][1]) for side in links if side] for links in self._direct]
        self.strongest = np.array([max(weights, default=np.nan) for weights in first_links])
        self.frequency = self._frequencies()
        is_alive = ~(self.frequency == 0)
        tokens = np.array([entry[1] for entry in best])
        self.order = legible_first(self.is_legible & is_alive, np.where(is_alive, self.z, -1.0), self.strongest, tokens)

    def _read_labels(self, i: int) -> None:
        """The tokens and earlier features that a dictionary's features read, and the tokens that they write."""
        features = self.dictionaries[i]
        earlier = [
            j
            for j in self._links.earlier[i]
            if (layer := self.dictionaries[j].layer) is None or features.layer is None or layer < features.layer
        ]
        k = min(N_LABELS, self.lens.space.n_tokens)
        table = feature_labels(self.lens, features, earlier=[self.dictionaries[j] for j in earlier], k=k)
        first = {self.dictionaries[j].name: self.first[j] for j in earlier}
        entries: list[dict[str, list[Entry]]] = [{"read": [], "earlier": [], "write": []} for _ in range(len(features))]
        names = ("feature", "side", "token_index", "token_string", "dictionary", "feature_index")
        columns = (table[name].tolist() for name in (*names, "score", "z_score", "is_outlier"))
        for feature, side, token, text, dictionary, index, score, z, is_outlier in zip(*columns, strict=True):
            numbers = [rounded(score), rounded(z), int(is_outlier)]
            if token >= 0:
                entries[feature][side].append([token_label(text), token, *numbers])
            else:
                entries[feature]["earlier"].append([first[dictionary] + index, *numbers])
        self._entries += entries
        legible = table.drop_duplicates("feature")
        self.is_legible[self.first[i] + legible["feature"].to_numpy()] = legible["is_legible"].to_numpy()

    def _read_neurons(self, i: int) -> None:
        """The neurons that write what a dictionary's features read, and those that read what they write."""
        features, weights = self.dictionaries[i], self.lens.weights
        read_at, written = place_of(features.hook, weights), written_at(features, weights)
        layers = weights.layers_with("mlp")
        before = [layer for layer in layers if read_at is None or 2 * layer + 2 <= read_at.time]
        if read_at is not None and read_at.output:  # it reads one sublayer's output
            before = [layer for layer in layers if read_at.output == "mlp" and 2 * layer + 2 == read_at.time]
        after = [layer for layer in layers if written is None or written.time <= 2 * layer + 1]
        random = random_directions(features.d_model)
        chance = best_neurons(self.lens, random, "W_out", before), best_neurons(self.lens, random, "W_in", after)
        self.chance.append((mean_best(chance[0]), mean_best(chance[1])))
        everything = slice(0, len(features))
        writers = best_neurons(self.lens, take(self._links.read[i], everything), "W_out", before)
        readers = best_neurons(self.lens, take(self._links.written[i], everything), "W_in", after)
        self._neurons += zip(writers, readers, strict=True)

    def _frequencies(self) -> np.ndarray:
        """The share of tokens on which each feature is active; NaN without texts."""
        shares = np.full(self.n_factors, np.nan)
        for first, features, activity in zip(self.first, self.dictionaries, self.activities or (), strict=False):
            assert activity.histogram is not None
            counts = np.bincount(activity.histogram["factor"], activity.histogram["n"], len(features))
            shares[first : first + len(features)] = counts / self.n_tokens
        return shares

    def _place(self, feature: int) -> tuple[int, int]:
        """The dictionary of a feature, and its index there."""
        dictionary = self._dictionary_of[feature]
        return dictionary, feature - self.first[dictionary]

    def label(self, feature: int) -> str:
        """The label that the dictionary gives a feature; empty if it is its index."""
        dictionary, index = self._place(feature)
        label = str(self.dictionaries[dictionary].strings[index])
        return "" if label == str(index) else token_label(label)

    def _chips(self, feature: int, side: str) -> list[str]:
        return [entry[0] for entry in self._entries[feature][side][:N_CHIPS]]

    def _shown(self, links: Sequence[Link], side: str) -> list[list[Any]]:
        """Links with the tokens that the other features write, or read, and their labels."""
        return [[i, rounded(weight), self._chips(i, side), self.label(i)] for i, weight in links]

    def _shown_heads(self, moves: Sequence[Moves], side: str) -> list[list[Any]]:
        strings = self.lens.vocabulary.strings
        shown = []
        for (layer, head), is_token, links in moves:
            others = (
                [[token_label(str(strings[i])), rounded(w)] for i, w in links] if is_token else self._shown(links, side)
            )
            shown.append([f"L{layer}H{head}", int(is_token), others])
        return shown

    def head(self, feature: int) -> dict[str, Any]:
        """What the page of a feature shows above its contexts."""
        dictionary, index = self._place(feature)
        head = self._sites[dictionary].head(index)
        first, entries = self.first[dictionary], self._entries[feature]
        (direct_in, direct_out), (heads_in, heads_out) = self._direct[feature], self._moves[feature]
        neurons_in, neurons_out = self._neurons[feature]
        frequency = self.frequency[feature]
        earlier = [[i, *numbers, self._chips(i, "write"), self.label(i)] for i, *numbers in entries["earlier"]]
        return head | {
            "label": self.label(feature),
            "legible": bool(self.is_legible[feature]),
            "frequency": None if np.isnan(frequency) else rounded(100 * frequency),
            "read": entries["read"],
            "earlier": earlier,
            "write": entries["write"],
            "in": self._shown(direct_in, "write"),
            "out": self._shown(direct_out, "read"),
            "headsIn": self._shown_heads(heads_in, "write"),
            "headsOut": self._shown_heads(heads_out, "read"),
            "neuronsIn": neurons_in,
            "neuronsOut": neurons_out,
            "neighbours": [
                [first + other, cosine, self._chips(first + other, "write")] for other, cosine in head["neighbours"]
            ],
        }

    def contexts(self, factor: int, layer: int) -> list[list[Any]]:
        """The contexts of a feature, as in `SiteData`."""
        dictionary, index = self._place(factor)
        return self._sites[dictionary].contexts(index, layer)

    def overview(self) -> dict[str, Any]:
        """One row per feature: dictionary, z-score in percent, legible, strongest weight, frequency in percent, indices of tokens.

        The tokens are those that it reads, those that it writes, and its most frequent targets. The label is last.
        """
        indices: dict[str, int] = {}
        rows = []
        for feature in range(self.n_factors):
            dictionary, index = self._place(feature)
            counts = self._sites[dictionary].target_counts(index, LAYER) if self.layers else {}
            targets = sorted(counts, key=lambda token: -counts[token])[:N_CHIPS]
            tokens = [
                self._chips(feature, "read"),
                self._chips(feature, "write"),
                [token_label(text) for text, _ in targets],
            ]
            lists = [[indices.setdefault(token, len(indices)) for token in part] for part in tokens]
            strongest, frequency = self.strongest[feature], self.frequency[feature]
            numbers = [
                round(100 * self.z[feature]),
                int(self.is_legible[feature]),
                -1 if np.isnan(strongest) else rounded(strongest),
                -1 if np.isnan(frequency) else rounded(100 * frequency),
            ]
            rows.append([str(dictionary), *numbers, *lists, self.label(feature)])
        return {"tokens": list(indices), "rows": rows, "order": self.order}

    def search_words(self, factor: int) -> dict[str, tuple[int, int]]:
        """The words by which a search finds the feature, each with a number and the reason, as in `SiteData`."""
        dictionary, index = self._place(factor)
        words = dict(self._sites[dictionary].search_words(index))
        for side, reason in (("write", WRITES), ("read", NEAREST)):
            for rank, (text, *_) in enumerate(self._entries[factor][side], start=1):
                word = search_form(text.replace("␣", " "))
                share, old = words.get(word, (0, AROUND))
                if old != TARGET or share < RARE:
                    words[word] = (rank, reason)
        label = visible(self.label(factor)).replace("␣", " ")
        words |= {word: (1, LABEL) for word in _WORD.findall(label.lower())}
        words.pop("", None)
        return words


def _unit_rows(features: Features) -> Factors:
    """The decoder as directions of length 1, by which features of one dictionary are compared."""
    return Factors(normalize(upcast(features.decoder.detach()), dim=1), l1=1.0)
