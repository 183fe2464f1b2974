"""Yun et al.: mid-level patterns in top contexts, and codes of constructed sentences that keep or break them."""

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from ..factors.pattern_shares import pattern_share
from ..factors.probes import probe, probe_differences
from ..plots.curves import plot_by_layer
from ..tables.frames import tidy
from .experiment import Experiment, Findings, Setting, figures
from .factor_corpus import Corpus, corpus, corpus_activity
from .pattern_sentences import PATTERNS, TABLE_4

SOURCE = "Yun et al. 2021, arXiv 2103.15949"
N_PER_HALF = 200  # contexts of a factor and layer
MIN_CONTEXTS = 20  # a factor with fewer contexts in a layer is not selected


@lru_cache(maxsize=1)
def selected_factors(setting: Setting) -> tuple[dict[str, tuple[int, int]], dict[str, pd.DataFrame]]:
    """By pattern, the factor and layer with the largest share on half of the texts, and the shares on the other half."""
    contexts: Any = corpus_activity(setting).contexts
    half = np.random.default_rng(setting.seed).permutation(len(corpus(setting).chunks)) % 2
    is_first = half[contexts["example"].to_numpy()] == 0
    selected, shares = {}, {}
    for name, pattern in PATTERNS.items():
        halves = []
        for part in (contexts[is_first], contexts[~is_first]):
            strongest = part[part.groupby(["factor", "layer"]).cumcount() < N_PER_HALF]
            halves.append(pattern_share(strongest, pattern.rule))
        candidates = halves[0][halves[0]["n"] >= min(MIN_CONTEXTS, int(halves[0]["n"].max()))]
        best: Any = candidates.loc[candidates["share"].idxmax()]
        selected[name] = (int(best["factor"]), int(best["layer"]))
        shares[name] = halves[1][halves[1]["factor"] == int(best["factor"])]
    return selected, shares


def patterns(setting: Setting) -> Findings:
    """The share of the selected factor's top contexts that follow each rule, by layer, on texts not used for the selection."""
    its = corpus(setting)
    selected, shares = selected_factors(setting)
    rows, blocks, strongest = [], {}, []
    contexts = corpus_activity(setting).contexts
    for name, table in shares.items():
        factor, layer = selected[name]
        for row in table.to_dict("records"):
            what = f"share of top contexts, {name}, factor {factor}, layer {row['layer']}"
            measures = {key: row[key] for key in ("low", "high", "control", "n")}
            rows.append({"measure": what, "value": row["share"], **measures})
        blank = np.full(len(table), np.nan)
        own = {"sample": "own", **{key: table[key].to_numpy() for key in ("layer", "share", "low", "high", "n")}}
        base = own | {"sample": "base", "share": table["control"].to_numpy(), "low": blank, "high": blank}
        blocks[name] = tidy(["sample", "layer", "share", "low", "high", "n"], [own, base] if len(table) else [])
        here = (contexts["factor"] == factor) & (contexts["layer"] == layer) & (contexts["rank"] < 5)
        strongest.append(contexts[here])
    seen = [name for name, table in shares.items() if np.any(table["low"].to_numpy() > table["control"].to_numpy())]
    notes = (
        *its.notes,
        "The rules: " + "; ".join(f"{name}: {pattern.meaning}" for name, pattern in PATTERNS.items()) + ".",
        "The factor of each pattern has the largest share on one half of the texts; the table has its strongest contexts (up to "
        f"{N_PER_HALF} in a layer) in the other half. Control: the contexts of all other factors. The paper's shares are of its own "
        "patterns, labelled by hand, and are not repeated here.",
        _listed("The lower end of the interval is above the control in some layer", seen),
        _listed("It is not above the control in any layer", [name for name in shares if name not in seen]),
    )
    panels = [[(name, block) for name, block in blocks.items() if len(block)]]
    grid = [panels[0][i : i + 3] for i in range(0, len(panels[0]), 3)]
    title = "Top contexts that follow a pattern"
    return Findings(
        figures("B:patterns", setting, rows),
        {"Strongest contexts of the selected factors": pd.concat(strongest, ignore_index=True)},
        lambda: plot_by_layer(grid, "share", "share of contexts", title, "contexts"),
        notes,
    )


def probes(setting: Setting) -> Findings:
    """The code at the same word in sentences that keep and break each pattern, against all other factors and shuffled words."""
    its = corpus(setting)
    selected, _ = selected_factors(setting)
    rows, details, significant = [], [], []
    for name, pattern in PATTERNS.items():
        factor, layer = selected[name]
        codes: Any = probe(its.factors, its.model, pattern.sentences, layers=[layer], seed=setting.seed)
        own = codes[codes["factor"] == factor]
        details.append(own)
        differences = probe_differences(own, seed=setting.seed)
        means: Any = codes.groupby(["factor", "variant"])["code"].mean().unstack()
        others = means[(means.index != factor) & (means.max(axis=1) > 0)]  # factors that are active at these words
        for row in differences.to_dict("records"):
            control = float((others["kept"] - others[row["variant"]]).mean())
            what = f"code of kept − {row['variant']}, {name}, factor {factor}, layer {layer}"
            measures = {key: row[key] for key in ("value", "low", "high", "n")}
            rows.append({"measure": what, "control": control, **measures})
            if row["variant"] == "broken" and row["p_value"] < 0.05:
                significant.append(name)
    rows += _variations(its, *selected["adjective list"])
    notes = (
        *its.notes,
        "Pairs of sentences keep or break a pattern at the same word; shuffled has the words of the first in random order. Control: the "
        "mean over all other factors that are active at these words.",
        _listed("Codes are higher where the pattern is kept (sign-flip test, p < .05)", significant),
        _listed("No such difference is found for", [name for name in PATTERNS if name not in significant]),
        "The last rows follow table 4 of the paper (factor 35, layer 8) with sentences of our own. Codes are in units of the hidden "
        "states, so only their order can be compared with the published ones. The paper's row with masked adjectives is left out, "
        "because the demo models have no unknown token. Control: all other factors that are active in one of these sentences.",
    )
    return Findings(figures("B:probe", setting, rows), {"Codes": pd.concat(details, ignore_index=True)}, None, notes)


def _variations(its: Corpus, factor: int, layer: int) -> list[dict[str, Any]]:
    """The code of the original list of adjectives and of each variation, beside those of table 4."""
    pairs = [(variation.sentence, variation.sentence) for variation in TABLE_4]
    codes: Any = probe(its.factors, its.model, pairs, layers=[layer], n_shuffles=1)
    kept = codes[codes["variant"] == "kept"].pivot(index="factor", columns="example", values="code")
    others = kept[(kept.index != factor) & (kept.max(axis=1) > 0)]
    rows = []
    for i, variation in enumerate(TABLE_4):
        what = f"code of {variation.change}, factor {factor}, layer {layer}"
        measures = {"value": float(kept.loc[factor, i]), "control": float(others[i].mean()), "n": 1}
        rows.append({"measure": what, "published": variation.published} | measures)
    return rows


def _listed(claim: str, names: list[str]) -> str:
    """For which patterns a claim holds."""
    return f"{claim}: {', '.join(names) if names else 'none'}."


EXPERIMENTS = [
    Experiment(
        name="B:patterns",
        title="Mid-level patterns in top contexts",
        source=f"{SOURCE}, §4",
        protocol="The share of the top contexts of a layer that follow a stated rule, for the factor that follows it most on other texts. "
        "Control: the contexts of all other factors.",
        run=patterns,
        demo_scale=0.004,
        needs=("reviews",),
    ),
    Experiment(
        name="B:probe",
        title="Constructed sentences that keep or break a pattern",
        source=f"{SOURCE}, table 4",
        protocol="The code of the pattern's factor at the same word of matched sentences, and of sentences with shuffled words. Control: the "
        "same for all other active factors.",
        run=probes,
        demo_scale=0.004,
        needs=("reviews",),
    ),
]
