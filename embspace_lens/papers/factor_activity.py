"""Yun et al.: importance of factors over layers, top contexts, and saliency."""

import re
from typing import Any

import numpy as np
import pandas as pd

from ..factors.levels import EARLY, LATE, level, reach_of
from ..factors.lime import saliency as lime_saliency
from ..factors.pattern_shares import pattern_share
from ..plots.importance_curves import plot_importance
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval, proportion_interval
from .experiment import Experiment, Findings, Setting, figures
from .factor_corpus import N_SHOWN, corpus, corpus_activity, shown_contexts

SOURCE = "Yun et al. 2021, arXiv 2103.15949"
DEPTHS = ("early", "middle", "late")  # thirds of the depth
N_PER_DEPTH = 2  # curves in the figure
N_SHUFFLES = 200
WORD_SHARES = {  # how many of the top 200 contexts of the paper's factor 30 have each word, at depths 0, 4/11 and 10/11
    "left": (198, 155, 120),
    "leave": (np.nan, 29, 35),
    "leaving": (np.nan, 15, 36),
}
WORD_DEPTHS = (0, 4 / 11, 10 / 11)
N_SAMPLES, N_FEW_SAMPLES = 2001, 300  # of the paper; of the factor site
N_EXPLAINED = 200  # contexts explained at scale 1


def importance(setting: Setting) -> Findings:
    """Where the importance of factors rises, against curves with their layers in random order."""
    its, result = corpus(setting), corpus_activity(setting)
    curves: Any = result.importance.pivot(index="factor", columns="layer", values="importance")
    values = curves.to_numpy()[curves.max(axis=1) > 0]
    depths = _depth_of_onset(values)
    rng = np.random.default_rng(setting.seed)
    shuffled = [_depth_of_onset(rng.permuted(values, axis=1)) for _ in range(N_SHUFFLES)]
    rows = []
    for depth, name in enumerate(DEPTHS):
        n_here = int((depths == depth).sum())
        low, high = proportion_interval(n_here, len(depths))
        control = np.mean([(each == depth).mean() for each in shuffled])
        measures = {"value": n_here / len(depths), "low": low, "high": high, "control": control, "n": len(depths)}
        rows.append({"measure": f"share of factors that reach half of their importance {name}"} | measures)
    levels = level(result.importance, result.contexts)
    chosen = _factors_by_depth(values, curves, levels)
    selected: Any = result.importance[result.importance["factor"].isin(chosen)]
    notes = (
        *its.notes,
        "The paper shows curves and no counts. Control: the layers of each curve in random order.",
        f"{len(curves) - len(values)} of {len(curves)} factors are never active on these texts and are left out.",
    )
    details = {
        "Codes by layer": result.measures,
        "Curves of the figure": levels[levels["factor"].isin(chosen)].reset_index(drop=True),
    }
    return Findings(figures("B:importance", setting, rows), details, lambda: plot_importance(selected, levels), notes)


def contexts(setting: Setting) -> Findings:
    """The words of one factor's top contexts by layer, against the top contexts of all other factors."""
    its = corpus(setting)
    shown: Any = shown_contexts(setting)
    n_left = sum(len(re.findall(r"(?i)\bleft\b", chunk)) for chunk in its.chunks)
    n_shown = min(N_SHOWN, max(n_left, 1))  # in a small corpus there are not 200 contexts of the word
    shown = shown[shown["rank"] < n_shown]
    layer_of = [round(depth * (len(its.layers) - 1)) for depth in WORD_DEPTHS]
    shares = {word: pattern_share(shown, rf"(?i)«\W*{word}»") for word in WORD_SHARES}
    first: Any = shares["left"][shares["left"]["layer"] == its.layers[0]]
    first = first[first["n"] >= first["n"].max() / 2]  # a share of few contexts is large by chance
    factor = int(first.loc[first["share"].idxmax(), "factor"])
    rows = []
    for word, counts in WORD_SHARES.items():
        table = shares[word].set_index(["factor", "layer"])
        for layer, count in zip(layer_of, counts):
            measured = table.loc[(factor, layer)].to_dict() if (factor, layer) in table.index else {"n": 0}
            value = measured.pop("share", np.nan)
            what = f"share of the top {n_shown} contexts with the target {word}, factor {factor}, layer {layer}"
            rows.append({"measure": what, "value": value, "published": count / N_SHOWN, **measured})
    of_factor: Any = shown[shown["factor"] == factor]
    targets = of_factor.value_counts(["factor", "layer", "token_index", "token_string"])
    targets = targets.rename("n").reset_index().sort_values(["layer", "n"], ascending=[True, False])
    commonest = targets.groupby("layer").head(5)
    strongest = of_factor[of_factor["rank"] < 3]
    notes = (
        *its.notes,
        f"Factor {factor} has the largest share of left among its top contexts in layer {its.layers[0]}; the paper's is factor "
        "30. The paper's layers 0, 4 and 10 of 12 stand beside the layers of the same depth. Control: all other factors.",
        f"left occurs {n_left:,} times in these texts; as many contexts are counted, at most {N_SHOWN} (the paper's number).",
        _verdict(
            f"the top contexts of factor {factor} in the first layer are of the word left",
            float(first["share"].max()) >= 0.5,
        ),
    )
    details = {
        "Commonest targets": tidy(["factor", "layer", "token_index", "token_string", "n"], [commonest.to_dict("list")]),
        "Strongest contexts": strongest.reset_index(drop=True),
    }
    return Findings(figures("B:contexts", setting, rows), details, None, notes)


def saliency(setting: Setting) -> Findings:
    """How well two runs of LIME agree, against saliencies of other contexts; and how far salient tokens are from the target."""
    its, result = corpus(setting), corpus_activity(setting)
    curves: Any = result.importance.pivot(index="factor", columns="layer", values="importance")
    peaks = curves.idxmax(axis=1)
    at_peak: Any = result.contexts[
        (result.contexts["rank"] == 0) & (result.contexts["layer"] == result.contexts["factor"].map(peaks))
    ]
    n = min(setting.size(N_EXPLAINED, 6), len(at_peak))
    chosen: Any = at_peak.sample(n, random_state=setting.seed).sort_values(["factor", "layer"])

    def explain(n_samples: int, seed: int) -> pd.DataFrame:
        return lime_saliency(its.factors, its.model, its.chunks, chosen, n_samples=n_samples, seed=seed)

    full: Any = explain(N_SAMPLES, setting.seed)
    rows = []
    for n_samples, other in (
        (N_SAMPLES, explain(N_SAMPLES, setting.seed + 1)),
        (N_FEW_SAMPLES, explain(N_FEW_SAMPLES, setting.seed + 1)),
    ):
        own, control = _correlations(full, other)
        low, high = bootstrap_interval(own, seed=setting.seed)
        what = f"correlation of saliencies: {N_SAMPLES:,} samples and {n_samples:,} others"
        rows.append({"measure": what, "value": own.mean(), "low": low, "high": high, "control": control, "n": len(own)})
    reach = reach_of(full).set_index("factor")["reach"].reindex(chosen["factor"]).to_numpy()
    known = reach[~np.isnan(reach)]
    low, high = bootstrap_interval(known, seed=setting.seed)
    offsets: Any = full.groupby(["factor", "layer", "rank"])["offset"].apply(lambda each: each.abs().mean())
    what = "reach: mean distance of salient tokens from the target, in tokens"
    control = float(offsets.mean())
    rows.append({"measure": what, "value": known.mean(), "low": low, "high": high, "control": control, "n": len(known)})
    strongest: Any = full.sort_values("saliency", ascending=False).groupby(["factor", "layer", "rank"]).head(5)
    notes = (
        *its.notes,
        f"{n} contexts are explained: the strongest context of random factors in the layer of their largest importance.",
        "The paper shows saliency maps and no numbers. Control of the correlations: the saliencies of another context at the same "
        "offsets; control of the reach: the mean distance of all tokens that LIME replaces.",
    )
    strongest = strongest.sort_values(["factor", "layer", "rank", "offset"]).reset_index(drop=True)
    return Findings(figures("B:saliency", setting, rows), {"Five most salient tokens": strongest}, None, notes)


def _depth_of_onset(values: np.ndarray) -> np.ndarray:
    """The third of the depth (0, 1 or 2) in which each curve first reaches half of its maximum."""
    onset = (values >= values.max(axis=1, keepdims=True) / 2).argmax(axis=1) / max(values.shape[1] - 1, 1)
    return np.where(onset <= EARLY, 0, np.where(onset <= LATE, 1, 2))


def _factors_by_depth(values: np.ndarray, curves: Any, levels: pd.DataFrame) -> list[int]:
    """For each third of the depth, the factors with the largest importance."""
    active = curves.index[curves.max(axis=1) > 0].to_numpy()
    depths, largest = _depth_of_onset(values), values.max(axis=1)
    chosen = []
    for depth in range(len(DEPTHS)):
        here = np.flatnonzero(depths == depth)
        chosen += active[here[np.argsort(-largest[here], kind="stable")[:N_PER_DEPTH]]].tolist()
    return chosen


def _correlations(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, float]:
    """The correlation of two runs in each context, and the mean correlation of different contexts at equal offsets."""
    keys = ["factor", "layer", "rank"]
    a, b = (
        [part.set_index("offset")["saliency"] for _, part in run.groupby(keys, sort=True)] for run in (first, second)
    )
    own = np.array([_correlation(x, y) for x, y in zip(a, b)])
    others = np.array([_correlation(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if i != j])
    return own[~np.isnan(own)], float(np.nanmean(others)) if len(others) else np.nan


def _correlation(x: Any, y: Any) -> float:
    """The Pearson correlation over the offsets that both have; NaN if one is constant."""
    both = x.index.intersection(y.index)
    left, right = x.loc[both].to_numpy("float64"), y.loc[both].to_numpy("float64")
    if len(both) < 3 or left.std() == 0 or right.std() == 0:
        return float("nan")
    return float(np.corrcoef(left, right)[0, 1])


def _verdict(claim: str, holds: bool) -> str:
    """Whether the paper's effect appears on this model."""
    return f"On this model {claim}." if holds else f"It does not hold on this model that {claim}."


EXPERIMENTS = [
    Experiment(
        name="B:importance",
        title="Importance of factors over layers",
        source=f"{SOURCE}, §3",
        protocol="The importance of a factor in a layer is the mean of its largest codes there; the onset is the first layer with half of "
        "its maximum. Control: the layers of each curve in random order.",
        run=importance,
        demo_scale=0.004,
        needs=("reviews",),
    ),
    Experiment(
        name="B:contexts",
        title="Top contexts of a factor by layer",
        source=f"{SOURCE}, §4 (factor 30)",
        protocol="The words of the 200 strongest contexts of the factor for left, by layer. Control: the contexts of all other factors.",
        run=contexts,
        demo_scale=0.004,
        needs=("reviews",),
    ),
    Experiment(
        name="B:saliency",
        title="Saliency of tokens by LIME",
        source=f"{SOURCE}, §3",
        protocol="LIME with 2,001 samples and 30 features explains the code at the target of a context. Two runs with different "
        "samples are compared. Control: the saliencies of another context.",
        run=saliency,
        demo_scale=0.004,
        needs=("reviews",),
    ),
]
