"""What the site says of each factor, as plain data: numbers, and text that is visible and harmless."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..display.tokens import ELLIPSIS, SPACE, display, visible
from ..factors import Activity, Factors
from ..factors import level as level_of

NEAREST, NEIGHBOURS, WORDS = 10, 8, 12
WINDOW = 10  # places either side of a target at which saliency is shown
LONGEST = 80  # characters of a token
ROOM = 240  # characters of text on either side of a target
BUCKETS = 251
SPARK = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TARGET, NEAR, AROUND = 0, 1, 2  # why a search finds a factor
LEAST = {TARGET: 0.01, AROUND: 0.05}  # shares of contexts under which a word is not indexed
_WORD = re.compile(r"\w+")


class Book:
    """All that is known of a dictionary's factors, asked for factor by factor.

    Args:
        factors: The dictionary.
        seen: Importance and contexts, if texts were read.
        nearest: `lens.directions` of the factors, highest and lowest scores, if a lens was given.
        saliency: A table of `saliency`.
        reach: A table of `reach_of`, for the levels.
    """

    def __init__(
        self,
        factors: Factors,
        seen: Activity | None,
        nearest: tuple[pd.DataFrame, pd.DataFrame] | None,
        saliency: pd.DataFrame | None,
        reach: pd.DataFrame | None,
    ) -> None:
        self.n_factors = factors.n_factors
        self.layers: list[int] = sorted(set(seen.importance["layer"])) if seen is not None else []
        self.curves = np.zeros((self.n_factors, len(self.layers)))
        self.levels: Any = None
        self._contexts: Any = None
        if seen is not None:
            found = seen.importance.pivot(index="factor", columns="layer", values="importance")
            self.curves = found.reindex(range(self.n_factors), fill_value=0.0).to_numpy(dtype=float)
            if len(self.layers) > 1:
                self.levels = level_of(seen.importance, seen.contexts, reach).set_index("factor")
                known = self.levels.reindex(range(self.n_factors))  # of factors that were left out nothing is said
                self.levels = known.assign(level=known["level"].fillna(""))
            self._contexts = {
                name: seen.contexts[name].to_numpy()
                for name in (
                    "factor",
                    "layer",
                    "code",
                    "before",
                    "token_string",
                    "token_index",
                    "after",
                    "example",
                    "pos",
                )
            }
            self._first = np.searchsorted(self._contexts["factor"], np.arange(self.n_factors + 1))
        self.nearest = [_by_factor(df, self.n_factors) for df in nearest] if nearest is not None else []
        self.neighbours = _neighbours(factors.directions)
        self._salient = _salient(saliency)
        self._counts: dict[tuple[int, int], Counter[tuple[str, int]]] = {}

    def places(self, factor: int, layer: int) -> range:
        """The rows of the contexts of a factor in a layer."""
        if self._contexts is None:
            return range(0)
        first, last = self._first[factor : factor + 2]
        return range(*(first + np.searchsorted(self._contexts["layer"][first:last], [layer, layer + 1])).tolist())

    def targets(self, factor: int, layer: int) -> "Counter[tuple[str, int]]":
        """How often each token is the target, commonest first."""
        key = (factor, layer)
        if key not in self._counts:
            rows = self.places(factor, layer)
            tokens = (self._contexts[name][rows.start : rows.stop].tolist() for name in ("token_string", "token_index")) if len(rows) else ((), ())  # fmt: skip
            self._counts = {key: Counter(zip(*tokens))}  # the last one alone is asked for again
        return self._counts[key]

    def peak(self, factor: int) -> int:
        """The place among the layers where a factor is strongest."""
        return int(self.curves[factor].argmax()) if self.layers else -1

    def head(self, factor: int) -> dict[str, Any]:
        """What a factor's page shows first."""
        peak = self.peak(factor)
        words, n = [], []
        for layer in self.layers:
            found = self.targets(factor, layer)
            n.append(sum(found.values()))
            words.append([[shown(token), count] for (token, _), count in found.most_common(WORDS)])
        top = words[peak][0][0] if self.layers and words[peak] else ""
        found = {
            "curve": [_short(value) for value in self.curves[factor]],
            "peak": peak,
            "top": top,
            "words": words,
            "n": n,
            "nearest": [side[factor] for side in self.nearest],
            "neighbours": self.neighbours[factor],
            "level": "",
        }
        if self.levels is not None:
            row = self.levels.loc[factor]
            found |= {"level": row["level"], "reach": None if np.isnan(row["reach"]) else _short(row["reach"])}
        return found

    def contexts(self, factor: int, layer: int) -> list[list[Any]]:
        """Contexts, strongest first: code, text before, target, text after, and where; saliency where it was computed."""
        rows, table = self.places(factor, layer), self._contexts
        found = []
        for rank, i in enumerate(rows):
            before, after = visible(table["before"][i])[-ROOM:], visible(table["after"][i])[:ROOM]
            row = [_short(table["code"][i]), before, shown(table["token_string"][i]), after, int(table["example"][i]), int(table["pos"][i])]  # fmt: skip
            salient = self._salient.get((factor, layer, rank))
            found.append([*row, _spaced(salient, before, after)] if salient else row)
        return found

    def overview(self) -> dict[str, Any]:
        """One row a factor: level, sharpness, peak, importance, its curve in characters, and tokens by number."""
        numbers: dict[str, int] = {}

        def number(token: str) -> int:
            return numbers.setdefault(token, len(numbers))

        rows = []
        for factor in range(self.n_factors):
            peak = self.peak(factor)
            counts = self.targets(factor, self.layers[peak]) if self.layers else Counter()
            common = [number(shown(token)) for (token, _), _ in counts.most_common(3)]
            near = [number(chip[0]) for chip in self.nearest[0][factor][:3]] if self.nearest else []
            curve = self.curves[factor]
            strongest = float(curve.max(initial=0.0))
            spark = "".join(SPARK[round(max(0.0, value) / (strongest or 1.0) * (len(SPARK) - 1))] for value in curve)
            sharp = round(100 * counts.most_common(1)[0][1] / sum(counts.values())) if counts else -1
            level = self.levels.loc[factor, "level"] if self.levels is not None else ""
            rows.append([level[:1], sharp, peak, _short(strongest), spark, near, common])
        return {"tokens": list(numbers), "rows": rows}

    def words(self, factor: int) -> dict[str, tuple[int, int]]:
        """The words that a search finds the factor by: each with a share of contexts in percent, and why."""
        found: dict[str, tuple[int, int]] = {}

        def note(word: str, share: float, why: int) -> None:
            percent = max(1, round(100 * share))
            if word and (word not in found or found[word][0] < percent):
                found[word] = (percent, why)

        for layer in self.layers:
            counts = self.targets(factor, layer)
            n = sum(counts.values())
            for (token, _), count in counts.items():
                if count >= LEAST[TARGET] * n:
                    note(searched(token), count / n, TARGET)
        if self.layers:
            rows = self.places(factor, self.layers[self.peak(factor)])
            around = Counter(
                word
                for i in rows
                for word in set(_WORD.findall((self._contexts["before"][i] + " " + self._contexts["after"][i]).lower()))
            )
            for word, count in around.items():
                if count >= max(2, LEAST[AROUND] * len(rows)) and word not in found:
                    found[word] = (max(1, round(100 * count / len(rows))), AROUND)
        for side in self.nearest[:1]:
            for chip in side[factor]:
                found.setdefault(searched(chip[0].replace("␣", " ")), (1, NEAR))
        found.pop("", None)
        return found


def shown(token: str) -> str:
    """A token as the pages have it: visible, and no longer than a line."""
    text = display(token)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + ELLIPSIS


def searched(token: str) -> str:
    """A token as a search looks for it: no spaces around it, in lower case, visible."""
    return visible(token.strip().lower())[:LONGEST]


def bucket(word: str) -> int:
    """In which file of the index a word stands; words with the same two first characters stand together."""
    first, second = (ord(word[place]) if len(word) > place else 0 for place in (0, 1))
    return (31 * first + second) % BUCKETS


def _short(value: float) -> float:
    """Three significant figures."""
    return float(f"{float(value):.3g}")


def _by_factor(df: pd.DataFrame, n_factors: int) -> list[list[list[Any]]]:
    """Tokens of `lens.directions`, by the number that names the direction: visible text, id, score."""
    found: list[list[list[Any]]] = [[] for _ in range(n_factors)]
    columns = (df[name].tolist() for name in ("direction", "token_string", "token_index", "score"))
    for direction, token, token_id, score in zip(*columns):
        found[int(direction)].append([shown(token), token_id, _short(score)])
    return found


def _neighbours(directions: Float[Tensor, "n_factors d_model"]) -> list[list[list[Any]]]:
    """The factors at the smallest angles, each with its cosine."""
    unit = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    k = min(NEIGHBOURS + 1, len(unit))
    found = []
    for first in range(0, len(unit), 1024):
        rows = unit[first : first + 1024]
        cosine = rows @ unit.T
        cosine[torch.arange(len(rows)), first + torch.arange(len(rows))] = -2.0  # not itself
        best = cosine.topk(k)
        for values, places in zip(best.values.tolist(), best.indices.tolist()):
            found.append([[place, round(value, 3)] for value, place in zip(values, places) if value > -2][:NEIGHBOURS])
    return found


def _spaced(tokens: list[list[Any]], before: str, after: str) -> list[list[Any]]:
    """Tokens of a tokenizer whose pieces carry no spaces, such as WordPiece, with those that the text has between them."""
    found = [*tokens]
    for side in (-1, 1):
        places = [i for i, token in enumerate(tokens) if token[0] * side > 0]
        pieces = [tokens[i][1] for i in places]
        parted = [piece.removeprefix("##") if piece.startswith("##") else SPACE + piece for piece in pieces]
        joined, spaced = ("".join(some).replace(SPACE, " ") for some in (pieces, parted))
        if side < 0:
            parts = not before.endswith(joined.lstrip()) and before.endswith(spaced.lstrip())
        else:
            parts = not after.startswith(joined) and after.startswith(spaced)
        if parts:
            for i, piece in zip(places, parted):
                found[i] = [tokens[i][0], piece, tokens[i][2]]
    return found


def _salient(df: pd.DataFrame | None) -> dict[tuple[int, int, int], list[list[Any]]]:
    """By context: what stands around a target, token by token, each with its offset and saliency."""
    found: dict[tuple[int, int, int], list[list[Any]]] = {}
    if df is not None:
        near: Any = df[df["offset"].abs() <= WINDOW]
        near = near.drop_duplicates(["factor", "layer", "rank", "offset"])
        columns = (near[name].tolist() for name in ("factor", "layer", "rank", "offset", "token_string", "saliency"))
        for factor, layer, rank, offset, token, value in zip(*columns):
            found.setdefault((factor, layer, rank), []).append([offset, shown(token), _short(value)])
    return found
