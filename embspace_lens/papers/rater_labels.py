"""Yun et al.: the labels of human raters. A sheet is written; agreement is computed from filled sheets."""

from typing import Any

import numpy as np

from ..factors.ratings import rater_agreement, rating_sheet, read_ratings
from ..files import make_folder, whole
from .experiment import Experiment, Findings, Setting, figures
from .factor_corpus import corpus, corpus_activity, shown_contexts

N_ITEMS, N_CONTROLS = 100, 20  # at scale 1
SHEET, KEY = "rating-sheet.csv", "rating-key.csv"


def raters(setting: Setting) -> Findings:
    """Write the sheet for raters and its key; measure the agreement of the filled sheets in the folder `ratings` of the data."""
    its, shown = corpus(setting), shown_contexts(setting)
    curves: Any = corpus_activity(setting).importance.pivot(index="factor", columns="layer", values="importance")
    active = curves[curves.max(axis=1) > 0]
    n_items = min(setting.size(N_ITEMS, 30), len(active))
    chosen = active.sample(n_items, random_state=setting.seed).idxmax(axis=1)
    at_peak: Any = shown[shown["layer"] == shown["factor"].map(chosen)]
    folder = make_folder(setting.folder / f"ratings-{its.key}")
    key = rating_sheet(at_peak, folder / SHEET, n_controls=setting.size(N_CONTROLS, 10), seed=setting.seed)
    with whole(folder / KEY) as partial:
        key.to_csv(partial, index=False)
    filled = {} if setting.data is None else {path.stem: path for path in sorted(setting.data.glob("ratings/*.csv"))}
    kappa: dict[str, Any] = {"measure": "agreement of raters, mean Cohen's kappa of pairs"}
    labelled: dict[str, Any] = {"measure": "share of items with a common pattern, by the raters"}
    details = {"Key of the sheet": key}
    if filled:
        agreement = rater_agreement(filled)
        mean = agreement["kappa"].astype("float64").mean() if len(agreement) else np.nan
        kappa |= {"value": mean, "n": len(agreement)}
        sample = key.set_index("item")["sample"]
        ratings = [read_ratings(path) for path in filled.values()]
        found = {
            name: [r[(sample.reindex(r.index) == name).to_numpy()] != "none" for r in ratings]
            for name in ("own", "shuffled")
        }
        n_rated = sum(map(len, found["own"]))
        shares = {
            name: np.mean(np.concatenate(each)) if sum(map(len, each)) else np.nan for name, each in found.items()
        }
        labelled |= {"value": shares["own"], "control": shares["shuffled"], "n": n_rated}
        details["Agreement of raters"] = agreement
        state = f"{len(filled)} filled sheets were read."
    else:
        state = "There are no filled sheets: put one CSV for each rater into the folder ratings of the data folder, and run again."
    notes = (
        *its.notes,
        f"The sheet is {folder / SHEET}, its key is {folder / KEY}. The sheet has no factor, layer or code; its items are in random "
        f"order with seed {setting.seed}. {state}",
        "Chance agreement is part of kappa. The control of the share is the items with contexts of several factors.",
    )
    return Findings(figures("B:raters", setting, [kappa, labelled]), details, None, notes)


EXPERIMENTS = [
    Experiment(
        name="B:raters",
        title="Labels of factors by human raters",
        source="Yun et al. 2021, arXiv 2103.15949, §4",
        protocol="Raters label factors by their top contexts, blind to factor and layer. Control: items with contexts of several factors.",
        run=raters,
        demo_scale=0.004,
        needs=("reviews",),
    )
]
