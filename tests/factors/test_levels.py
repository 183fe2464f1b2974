"""Levels of factors on constructed curves, and the reach that corrects them."""

import numpy as np
import pytest
import torch
import zoo
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors, activity, level, reach_of, saliency
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


def test_level_depends_on_the_onset():
    table = curves([4, 3, 2, 1], [1, 1, 4, 3], [0, 0, 1, 4], [1, 2, 3, 4], [0, 0, 0, 0])
    df = level(table, targets([5, 5, 5, 6], [7, 8], [9], [9]))
    check_tidy(df, ["factor"], list(df))
    assert df["level"].tolist() == ["word", "pattern", "long range", "word", ""], "a dead factor has no level"
    assert df["onset"].tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3, np.nan], nan_ok=True)
    assert df["peak"].tolist() == pytest.approx([0, 2 / 3, 1, 1, np.nan], nan_ok=True)
    assert df["purity"].tolist()[:3] == [0.75, 0.5, 1.0] and df["token_string"].tolist() == ["w5", "w7", "w9", "w9", ""]
    assert np.isnan(df["purity"].iloc[4]) and df["token_index"].iloc[4] == -1


def test_reach_corrects_the_level():
    table = curves([4, 3, 2, 1], [0, 0, 1, 4], [4, 3, 2, 1])
    reach = tidy(["factor", "reach"], [{"factor": f, "reach": r} for f, r in ((0, 5.0), (1, 1.0), (2, 1.0))])
    df = level(table, targets([5], [6], [7]), reach)
    assert df["level"].tolist() == ["pattern", "pattern", "word"] and df["reach"].tolist() == [5, 1, 1]


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
