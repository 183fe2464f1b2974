"""Labels by human raters: a sheet of contexts without factor, layer and code, and the agreement of filled sheets."""

import csv
import io
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..files import write_whole
from ..forward.texts import read_table
from ..tables.checks import check_integer
from ..tables.frames import tidy
from .pattern_shares import CLOSE, OPEN

KEY = ["factor", "layer", "sample", "item"]
AGREEMENT = ["rater_a", "rater_b", "share", "control", "kappa", "n"]
SHEET = ("item", "context", "rating")
RATINGS = ("word", "pattern", "long range", "none")
OWN, SHUFFLED = "own", "shuffled"


def rating_sheet(
    contexts: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    n_contexts: int = 10,
    n_controls: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Write a CSV in which raters label the contexts of factors, and return the key that identifies its items.

    An item is a factor in one layer, shown by a random order of some of its contexts. Raters write word, pattern, long range
    or none into the column `rating` of the item's first row: what the contexts have in common. Items are in random order, and
    the file has neither factor nor layer nor code. Control items hold contexts of several factors; raters who follow
    the contexts rate them none.

    Args:
        contexts: Rows of `top_contexts` or `activity(…).contexts`: every (factor, layer) in it is an item.
        path: The file to write.
        n_contexts: How many contexts of each item are shown, the strongest ones.
        n_controls: How many control items there are.
        seed: Seed of the orders and of the control items.

    Returns:
        One row per (item): `factor`, `layer` and `sample`, which is own or, for a control, shuffled with factor and layer −1.

    Raises:
        EmbspaceError: If the table is empty or lacks a column, or the file cannot be written.

    Example:
        >>> from embspace_lens.factors import Factors, top_contexts
        >>> contexts = top_contexts(Factors(torch.eye(32), l1=0.01), model, ["w2 w3 w4"], layers=[0], n=2)
        >>> key = rating_sheet(contexts, tmp_path / "sheet.csv", n_controls=1)
        >>> (tmp_path / "sheet.csv").read_text("utf-8").splitlines()[0], (key["sample"] == "shuffled").sum()
        ('item,context,rating', np.int64(1))
    """
    for name in ("factor", "layer", "rank", "before", "token_string", "after"):
        if name not in contexts.columns:
            raise errors.table_lacks_column("contexts", name, "top_contexts or activity(…).contexts")
    if contexts.empty:
        raise errors.empty_table()
    n_contexts = check_integer("n_contexts", n_contexts, minimum=1)
    n_controls = check_integer("n_controls", n_controls, minimum=0)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    texts = [_cell(*row) for row in zip(*(contexts[name] for name in ("before", "token_string", "after")))]
    shown: Any = contexts.assign(context=texts)[contexts["rank"] < n_contexts]
    items: list[tuple[int, int, str, list[str]]] = [
        (int(factor), int(layer), OWN, part["context"].tolist())
        for (factor, layer), part in shown.groupby(["factor", "layer"])
    ]
    by_item = [lines for *_, lines in items]
    for _ in range(n_controls):
        drawn = [by_item[i] for i in rng.integers(len(by_item), size=n_contexts)]
        items.append((-1, -1, SHUFFLED, [str(rng.choice(lines)) for lines in drawn]))
    order = rng.permutation(len(items))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(SHEET)
    keys = []
    for item, index in enumerate(order):
        factor, layer, sample, lines = items[index]
        keys.append({"item": item, "factor": factor, "layer": layer, "sample": sample})
        writer.writerows([item, lines[i], ""] for i in rng.permutation(len(lines)))
    write_whole(path, buffer.getvalue().encode())
    return tidy(KEY, keys)


def rater_agreement(sheets: Mapping[str, str | os.PathLike[str]]) -> pd.DataFrame:
    r"""Measure how far raters agree, pair by pair, on filled sheets of `rating_sheet`.

    .. math:: \kappa = (p_o - p_e) / (1 - p_e)

    Here p_o is the share of items with equal ratings and p_e the share that is expected by chance from how often each rater uses
    each rating. The mean of κ over all pairs is Light's kappa of several raters.

    Args:
        sheets: The filled CSV of each rater, by the rater's name.

    Returns:
        One row per (rater_a, rater_b): `share` p_o and `control` p_e over the `n` items that both have rated, and `kappa`,
        Cohen's kappa; NaN without such items, or if both used a single rating.

    Raises:
        EmbspaceError: If a sheet cannot be read, lacks a column or has another rating; or scikit-learn is not installed.

    Example:
        >>> for name, ratings in (("ann", "word,none"), ("ben", "word,word")):
        ...     rows = [f"{item},x,{rating}" for item, rating in enumerate(ratings.split(","))]
        ...     _ = (tmp_path / f"{name}.csv").write_text("\n".join(["item,context,rating", *rows]), "utf-8")
        >>> rater_agreement({name: tmp_path / f"{name}.csv" for name in ("ann", "ben")})[["share", "kappa", "n"]].values.tolist()
        [[0.5, 0.0, 2.0]]

    References:
        Cohen (1960), A coefficient of agreement for nominal scales. Light (1971), Measures of response agreement for qualitative data.
    """
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError as reason:
        raise errors.missing_extra("scikit-learn", "factors") from reason
    ratings = {name: read_ratings(path) for name, path in sheets.items()}
    rows = []
    for a, b in combinations(sorted(ratings), 2):
        both = ratings[a].index.intersection(ratings[b].index)
        first, second = ratings[a].loc[both], ratings[b].loc[both]
        frequencies = [
            each.value_counts(normalize=True).reindex(list(RATINGS), fill_value=0.0) for each in (first, second)
        ]
        expected = float((frequencies[0] * frequencies[1]).sum()) if len(both) else np.nan
        kappa = cohen_kappa_score(first, second) if len(both) and expected < 1 else np.nan
        share = float((first == second).mean()) if len(both) else np.nan
        measures = {"share": share, "control": expected, "kappa": kappa, "n": len(both)}
        rows.append({"rater_a": a, "rater_b": b} | measures)
    return tidy(AGREEMENT, rows)


def read_ratings(path: str | os.PathLike[str]) -> pd.Series:
    """The rating of each item of a filled sheet: the first in its rows; items without a rating are left out."""
    table = read_table(Path(path), ["item", "rating"])
    filled: Any = table.assign(rating=table["rating"].fillna("").astype(str).str.strip().str.lower())
    filled = filled[filled["rating"] != ""]
    unknown = sorted(set(filled["rating"]) - set(RATINGS))
    if unknown:
        raise errors.choice("rating", unknown[0], RATINGS)
    return filled.drop_duplicates("item").set_index("item")["rating"]


def _cell(before: str, target: str, after: str) -> str:
    """A context on one line, with its target marked; a spreadsheet does not read it as a formula."""
    text = " ".join(f"{before}{OPEN}{target}{CLOSE}{after}".split())
    return f" {text}" if text[:1] in "=+-@" else text
