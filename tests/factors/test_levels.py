"""Levels of factors on constructed curves, targets and reaches."""

import math

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, activity, level, reach_of, saliency
from embspace_lens.factors.targets import sharpness
from embspace_lens.tables.frames import tidy

CONTEXTS = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]


def curves(*rows):
    """A table of importance: one curve per factor."""
    return tidy(
        ["factor", "layer", "importance"],
        [{"factor": f, "layer": layer, "importance": v} for f, row in enumerate(rows) for layer, v in enumerate(row)],
    )


def targets(*rows):
    """A table of contexts: the targets of each factor, the same in every layer."""
    blocks = [
        {"factor": f, "layer": layer, "rank": r, "code": 1.0, "example": 0, "pos": r, "token_index": t, "token_string": f"w{t}", "before": "", "after": ""}
        for f, row in enumerate(rows)
        for layer in range(4)
        for r, t in enumerate(row)
    ]  # fmt: skip
    return tidy(CONTEXTS, blocks)


def reaches(**values):
    """A table of reach: `f3=1.0` is factor 3."""
    return tidy(["factor", "reach"], [{"factor": int(name[1:]), "reach": value} for name, value in values.items()])


def test_level_without_reach_is_the_depth_of_the_peak():
    table = curves([4, 3, 2, 1], [1, 1, 4, 3], [0, 0, 1, 4], [1, 2, 3, 4], [0, 0, 0, 0], [1, 4, 1, 1])
    df = level(table, targets([5, 5, 5, 6], [7, 8], [9], [9]))
    check_tidy(df, ["factor"], list(df))
    assert df["level"].tolist() == ["early", "middle", "late", "late", "", "early"], "a dead factor has no level"
    assert df["onset"].tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3, np.nan, 1 / 3], nan_ok=True)
    assert df["peak"].tolist() == pytest.approx([0, 2 / 3, 1, 1, np.nan, 1 / 3], nan_ok=True)
    assert df["purity"].tolist()[:3] == [0.75, 0.5, 1.0]
    assert df["token_string"].tolist() == ["w5", "w7", "w9", "w9", "", ""]
    assert df["n_contexts"].tolist() == [4, 2, 1, 1, 0, 0] and df["n_texts"].tolist() == [1, 1, 1, 1, 0, 0]
    assert np.isnan(df["purity"].iloc[4]) and df["token_index"].iloc[4] == -1


def test_word_needs_purity_and_long_range_needs_measured_reach():
    falls, rises = [4, 3, 2, 1], [0, 0, 1, 4]
    table = curves(falls, falls, rises, rises, rises, falls)
    pure, mixed, few = [5] * 6, [5, 5, 6, 7, 8, 9], [5] * 4
    reach = reaches(f0=0.0, f1=0.0, f2=0.0, f3=9.0, f5=0.0)
    df = level(table, targets(pure, mixed, pure, mixed, mixed, few), reach)
    assert df["level"].tolist() == ["word", "pattern", "word", "long range", "late", "pattern"]
    assert df["reach"].tolist()[:4] == [0, 0, 0, 9] and np.isnan(df["reach"][4])
    assert level(table, targets(pure, mixed, pure, mixed, mixed, few), reaches(f0=5.0))["level"][0] == "long range"


def test_shuffled_targets_make_no_word_factors():
    rng = np.random.default_rng(0)
    planted = np.repeat(np.arange(100), 40)
    table, reach = curves(*[[4, 3, 2, 1]] * 100), reaches(**{f"f{i}": 0.0 for i in range(100)})
    words = level(table, targets(*planted.reshape(100, 40)), reach)
    assert set(words["level"]) == {"word"} and (words["sharpness"] == 1).all()
    shuffled = level(table, targets(*rng.permutation(planted).reshape(100, 40)), reach)
    assert set(shuffled["level"]) == {"pattern"} and shuffled["sharpness"].max() < 0.2


def test_weak_contexts_do_not_change_purity():
    """A factor of a rare word has few strong contexts; the rest of its top contexts have small codes."""
    contexts = targets([5] * 6 + list(range(10, 40)))
    weak = contexts["rank"] >= 6
    df = level(curves([4, 3, 2, 1]), contexts.assign(code=np.where(weak, 0.49, 1.0)), reaches(f0=0.0))
    assert df["purity"][0] == 1 and df["n_contexts"][0] == 6 and df["level"][0] == "word"
    assert level(curves([4, 3, 2, 1]), contexts, reaches(f0=0.0))["level"][0] == "pattern"


def test_sharpness_equals_entropy_in_a_loop():
    for counts in ([3, 1], [1, 1, 1], [10], [7, 2, 2, 1, 1, 1]):
        n = sum(counts)
        entropy = -sum(c / n * math.log(c / n) for c in counts)
        assert sharpness(counts) == pytest.approx(1 - entropy / math.log(n))
    assert math.isnan(sharpness([1])) and math.isnan(sharpness([]))


def test_tables_of_one_layer_or_without_columns_are_refused():
    with pytest.raises(EmbspaceError, match="two layers or more"):
        level(curves([1]), targets([5]))
    with pytest.raises(EmbspaceError, match="contexts has no column 'token_index'"):
        level(curves([1, 2]), curves([1, 2]))


def test_reach_equals_a_hand_computed_example():
    frame = tidy(
        ["factor", "layer", "rank", "offset", "saliency"],
        [
            {
                "factor": np.array([0, 0, 0, 0, 0, 1]),
                "layer": np.zeros(6, dtype=int),
                "rank": np.array([0, 0, 0, 1, 1, 0]),
                "offset": np.array([-9, -4, 0, -2, -1, 0]),
                "saliency": np.array([0.2, 1.0, 3.0, 2.0, -5.0, -1.0]),
            }
        ],
    )
    result = reach_of(frame)
    check_tidy(result, ["factor"], ["factor", "reach"])
    with pytest.raises(EmbspaceError, match="saliency has no column 'offset'"):
        reach_of(frame.drop(columns="offset"))
    assert result["reach"][0] == pytest.approx((1 + 2) / 2) and np.isnan(result["reach"][1])


def test_level_accepts_the_reach_of_saliency(tiny):
    pytest.importorskip("captum", reason="saliency needs captum")
    texts = ["w2 w3 w4 w5 w6 w7", "w9 w10 w11 w12", "w3 w4"]
    factors = Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)
    model = tiny("gpt2")
    result = activity(factors, model, texts, n=2, n_contexts=1)
    table = saliency(factors, model, texts, result.contexts, n_samples=20, replacement="w60")
    reach = reach_of(table)
    levels = level(result.importance, result.contexts, reach=reach)
    assert levels.set_index("factor")["reach"].dropna().round(5).isin(reach["reach"].round(5)).all()
