"""The data of the site, factor by factor: numbers, and text in which every character is visible and safe to show."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..display.tokens import ELLIPSIS, SPACE, display, visible
from ..factors.contexts import Activity
from ..factors.dictionary import Factors
from ..factors.levels import level
from ..factors.targets import target_statistics
from ..search.tiles import chunks
from .ranking import best_first

N_NEAREST, N_SIMILAR, N_TARGETS = 10, 8, 12
WINDOW = 10  # tokens before and after a target for which saliency is shown
MAX_TOKEN = 80  # characters of a token
MAX_TEXT = 240  # characters of text on either side of a target
N_BUCKETS = 251
CURVE_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TARGET, NEAREST, AROUND = 0, 1, 2  # why a search finds a factor
FEW = 10  # contexts; a share of fewer is divided by this number, because it is weak evidence
RARE = 10  # percent; a nearest token ranks above a target with a smaller share of the contexts
LEVEL_CODES = {"word": "w", "pattern": "p", "long range": "r", "early": "e", "middle": "m", "late": "l", "": ""}
MIN_SHARE = {TARGET: 0.01, AROUND: 0.05}  # words in a smaller share of the contexts are not indexed
CONTEXT_COLUMNS = ("factor", "layer", "code", "before", "token_string", "token_index", "after", "example", "pos")
_WORD = re.compile(r"\w+")


class SiteData:
    """What the site shows of each factor.

    Args:
        factors: The dictionary.
        activity_result: Importance and contexts; None for a site without texts.
        nearest: Tables of `lens.directions` for the factors, with the highest and with the lowest scores; None without a lens.
        saliency: A table of `saliency`.
        reach: A table of `reach_of`, for the levels.
        writers: By factor, the neurons and the heads that write it, as in `writers`; None without a lens.

    Attributes:
        n_factors: The number of factors.
        layers: The layers, in ascending order; −1 is the embedding.
        curves: Importance, `[n_factors, n_layers]`.
        levels: The table of `level` by factor; None with fewer than two layers.
        targets: The table of `target_statistics` by factor, in the layer of the factor's peak.
        order: The factors in the order of the overview.
    """

    def __init__(
        self,
        factors: Factors,
        activity_result: Activity | None,
        nearest: tuple[pd.DataFrame, pd.DataFrame] | None,
        saliency: pd.DataFrame | None,
        reach: pd.DataFrame | None,
        writers: tuple[list[list[list[Any]]], list[list[list[Any]]]] | None = None,
    ) -> None:
        self.n_factors = factors.n_factors
        self.layers: list[int] = []
        self.levels: Any = None
        self.targets: Any = None
        self._contexts: Any = None
        if activity_result is not None:
            importance, contexts = activity_result.importance, activity_result.contexts
            self.layers = sorted(set(importance["layer"]))
            curves = importance.pivot(index="factor", columns="layer", values="importance")
            self.curves = curves.reindex(range(self.n_factors), fill_value=0.0).to_numpy(dtype=float)
            if len(self.layers) > 1:
                levels = level(importance, contexts, reach).set_index("factor")
                levels = levels.reindex(range(self.n_factors))  # the tables may lack some factors
                self.levels = levels.assign(level=levels["level"].fillna(""))
            peaks = {factor: self.layers[self.peak(factor)] for factor in range(self.n_factors)}
            self.targets = target_statistics(contexts, peaks).reindex(range(self.n_factors))
            self.order = best_first(self.targets, self.curves.max(axis=1))
            self._contexts = {name: contexts[name].to_numpy() for name in CONTEXT_COLUMNS}
            self._first_row = np.searchsorted(self._contexts["factor"], np.arange(self.n_factors + 1))
        else:
            self.curves = np.zeros((self.n_factors, 0))
            self.order = list(range(self.n_factors))
        self.nearest = [_nearest_by_factor(df, self.n_factors) for df in nearest] if nearest is not None else []
        self.similar = _similar_factors(factors.directions)
        self.writers = writers
        self._histogram = _histogram_by_factor(activity_result)
        self._saliency = _saliency_by_context(saliency)
        self._counts: tuple[tuple[int, int], Counter[tuple[str, int]]] | None = None

    @property
    def has_saliency(self) -> bool:
        """Whether the saliency of any context was computed."""
        return bool(self._saliency)

    def context_rows(self, factor: int, layer: int) -> range:
        """The rows of a factor's contexts in a layer."""
        if self._contexts is None:
            return range(0)
        first, last = self._first_row[factor : factor + 2]
        return range(*(first + np.searchsorted(self._contexts["layer"][first:last], [layer, layer + 1])).tolist())

    def target_counts(self, factor: int, layer: int) -> "Counter[tuple[str, int]]":
        """How often each token (text, id) is the target of a context."""
        key = (factor, layer)
        if (
            self._counts is None or self._counts[0] != key
        ):  # pages are written in an order that repeats only the last key
            rows = self.context_rows(factor, layer)
            columns = ("token_string", "token_index") if len(rows) else ()
            tokens = (self._contexts[name][rows.start : rows.stop].tolist() for name in columns)
            self._counts = (key, Counter(zip(*tokens)))
        return self._counts[1]

    def peak(self, factor: int) -> int:
        """The index, in `layers`, of the layer with the largest importance; −1 without layers."""
        return int(self.curves[factor].argmax()) if self.layers else -1

    def head(self, factor: int) -> dict[str, Any]:
        """What the page of a factor shows above its contexts."""
        peak = self.peak(factor)
        words, n_contexts = [], []
        for layer in self.layers:
            counts = self.target_counts(factor, layer)
            n_contexts.append(sum(counts.values()))
            words.append([[token_label(token), count] for (token, _), count in counts.most_common(N_TARGETS)])
        head = {
            "curve": [rounded(value) for value in self.curves[factor]],
            "peak": peak,
            "top": words[peak][0][0] if self.layers and words[peak] else "",
            "words": words,
            "n": n_contexts,
            "nearest": [side[factor] for side in self.nearest],
            "neighbours": self.similar[factor],
            "level": "",
        }
        if self.levels is not None:
            row = self.levels.loc[factor]
            head |= {"level": row["level"], "reach": None if np.isnan(row["reach"]) else rounded(row["reach"])}
        if self.targets is not None and not np.isnan(self.targets.loc[factor, "purity"]):
            row = self.targets.loc[factor]
            label = token_label(row["token_string"])
            head["strong"] = [label, round(100 * row["purity"]), int(row["n_contexts"]), int(row["n_texts"])]
        if self.writers is not None:
            head["neurons"], head["heads"] = (part[factor] for part in self.writers)
        bins = self._histogram.get(factor, {})
        head["codes"] = [bins.get(layer, []) for layer in self.layers]
        return head

    def contexts(self, factor: int, layer: int) -> list[list[Any]]:
        """Contexts by descending code: code, text before, target, text after, example, pos; and saliency if computed."""
        rows, columns = self.context_rows(factor, layer), self._contexts
        contexts = []
        for rank, i in enumerate(rows):
            before, after = visible(columns["before"][i])[-MAX_TEXT:], visible(columns["after"][i])[:MAX_TEXT]
            target, example, pos = token_label(columns["token_string"][i]), columns["example"][i], columns["pos"][i]
            context = [rounded(columns["code"][i]), before, target, after, int(example), int(pos)]
            tokens = self._saliency.get((factor, layer, rank))
            contexts.append([*context, _with_spaces(tokens, before, after)] if tokens else context)
        return contexts

    def overview(self) -> dict[str, Any]:
        """One row per factor: level, sharpness in percent, peak, importance, curve as characters, indices into a list of tokens.

        `order` is the order of the list; see `best_first`.
        """
        token_indices: dict[str, int] = {}

        def index_of(token: str) -> int:
            return token_indices.setdefault(token, len(token_indices))

        rows = []
        for factor in range(self.n_factors):
            peak = self.peak(factor)
            counts = self.target_counts(factor, self.layers[peak]) if self.layers else Counter()
            targets = [index_of(token_label(token)) for (token, _), _ in counts.most_common(3)]
            nearest = [index_of(label) for label, _, _ in self.nearest[0][factor][:3]] if self.nearest else []
            curve = self.curves[factor]
            largest = float(curve.max(initial=0.0))
            digits = (round(max(0.0, value) / (largest or 1.0) * (len(CURVE_DIGITS) - 1)) for value in curve)
            sharpness = self.targets.loc[factor, "sharpness"] if self.targets is not None else np.nan
            percent = -1 if np.isnan(sharpness) else round(100 * sharpness)
            name = self.levels.loc[factor, "level"] if self.levels is not None else ""
            curve_code = "".join(CURVE_DIGITS[digit] for digit in digits)
            rows.append([LEVEL_CODES[name], percent, peak, rounded(largest), curve_code, nearest, targets])
        return {"tokens": list(token_indices), "rows": rows, "order": self.order}

    def search_words(self, factor: int) -> dict[str, tuple[int, int]]:
        """The words by which a search finds the factor, each with a number and the reason.

        The number is a share of the contexts in percent; for a nearest token it is its rank, from 1.
        """
        words: dict[str, tuple[int, int]] = {}
        for layer in self.layers:
            counts = self.target_counts(factor, layer)
            n = sum(counts.values())
            for (token, _), count in counts.items():
                word, percent = search_form(token), max(1, round(100 * count / max(n, FEW)))
                if count >= MIN_SHARE[TARGET] * n and percent > words.get(word, (0, TARGET))[0]:
                    words[word] = (percent, TARGET)
        if self.layers:
            rows = self.context_rows(factor, self.layers[self.peak(factor)])
            texts = ((self._contexts["before"][i] + " " + self._contexts["after"][i]).lower() for i in rows)
            around = Counter(word for text in texts for word in sorted(set(_WORD.findall(text))))
            for word, count in around.items():
                if count >= max(2, MIN_SHARE[AROUND] * len(rows)) and word not in words:
                    words[word] = (max(1, round(100 * count / len(rows))), AROUND)
        for side in self.nearest[:1]:
            for rank, (label, _, _) in enumerate(side[factor], start=1):
                word = search_form(label.replace(SPACE, " "))
                percent, reason = words.get(word, (0, AROUND))
                if reason == AROUND or (reason == TARGET and percent < RARE):
                    words[word] = (rank, NEAREST)
        words.pop("", None)
        return words


def token_label(token: str) -> str:
    """A token as the pages show it: every character visible, and at most `MAX_TOKEN` characters."""
    text = display(token)
    return text if len(text) <= MAX_TOKEN else text[: MAX_TOKEN - 1] + ELLIPSIS


def search_form(token: str) -> str:
    """A token as the search index has it: in lower case, without spaces around it, every character visible."""
    return visible(token.strip().lower())[:MAX_TOKEN]


def bucket(word: str) -> int:
    """Which file of the search index contains a word; words with the same first two characters are in the same file."""
    first, second = (ord(word[i]) if len(word) > i else 0 for i in (0, 1))
    return (31 * first + second) % N_BUCKETS


def rounded(value: Any) -> float:
    """The value to three significant figures."""
    return float(f"{float(value):.3g}")


def _nearest_by_factor(df: pd.DataFrame, n_factors: int) -> list[list[list[Any]]]:
    """By factor, the tokens of `lens.directions` (label, id, score); directions are named by factor."""
    nearest: list[list[list[Any]]] = [[] for _ in range(n_factors)]
    columns = (df[name].tolist() for name in ("direction", "token_string", "token_index", "score"))
    for direction, token, token_id, score in zip(*columns):
        nearest[int(direction)].append([token_label(token), token_id, rounded(score)])
    return nearest


def _similar_factors(directions: Float[Tensor, "n_factors d_model"]) -> list[list[list[Any]]]:
    """By factor, the other factors with the largest cosine, and the cosine."""
    unit = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    k = min(N_SIMILAR + 1, len(unit))
    similar = []
    for chunk in chunks(len(unit), 4 * len(unit)):
        cosine = unit[chunk] @ unit.T
        own = torch.arange(chunk.start, chunk.stop)
        cosine[own - chunk.start, own] = -2.0  # below every cosine: a factor is not similar to itself
        best = cosine.topk(k)
        for values, indices in zip(best.values.tolist(), best.indices.tolist()):
            similar.append([[i, round(value, 3)] for value, i in zip(values, indices) if value > -2][:N_SIMILAR])
    return similar


def _with_spaces(tokens: list[list[Any]], before: str, after: str) -> list[list[Any]]:
    """Tokens of a context with the spaces that the text has between them; WordPiece tokens do not contain spaces."""
    result = [*tokens]
    for side in (-1, 1):
        indices = [i for i, token in enumerate(tokens) if token[0] * side > 0]
        pieces = [tokens[i][1] for i in indices]
        spaced = [piece.removeprefix("##") if piece.startswith("##") else SPACE + piece for piece in pieces]
        plain_text, spaced_text = ("".join(parts).replace(SPACE, " ") for parts in (pieces, spaced))
        if side < 0:
            needs_spaces = not before.endswith(plain_text.lstrip()) and before.endswith(spaced_text.lstrip())
        else:
            needs_spaces = not after.startswith(plain_text) and after.startswith(spaced_text)
        if needs_spaces:
            for i, piece in zip(indices, spaced):
                result[i] = [tokens[i][0], piece, tokens[i][2]]
    return result


def _histogram_by_factor(activity_result: Activity | None) -> dict[int, dict[int, list[list[float]]]]:
    """By factor and layer, the bins of codes: the lower end and the number of codes."""
    by_factor: dict[int, dict[int, list[list[float]]]] = {}
    if activity_result is not None and activity_result.histogram is not None:
        columns = (activity_result.histogram[name].tolist() for name in ("factor", "layer", "code_from", "n"))
        for factor, layer, code_from, n in zip(*columns):
            by_factor.setdefault(factor, {}).setdefault(layer, []).append([rounded(code_from), n])
    return by_factor


def _saliency_by_context(df: pd.DataFrame | None) -> dict[tuple[int, int, int], list[list[Any]]]:
    """By (factor, layer, rank), the tokens around the target: offset, label, saliency."""
    by_context: dict[tuple[int, int, int], list[list[Any]]] = {}
    if df is not None:
        rows: Any = df[df["offset"].abs() <= WINDOW]
        rows = rows.drop_duplicates(["factor", "layer", "rank", "offset"])
        columns = (rows[name].tolist() for name in ("factor", "layer", "rank", "offset", "token_string", "saliency"))
        for factor, layer, rank, offset, token, value in zip(*columns):
            by_context.setdefault((factor, layer, rank), []).append([offset, token_label(token), rounded(value)])
    return by_context
