"""Rank correlations: compared with scipy and slow loops, exact p-values, and errors."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from host_tools import in_glossary_order
from scipy import stats
from tables import check_tidy
from unchecked import unchecked_types

from embspace_lens import EmbspaceError, agreement


def tables_of(n, seed=0, noise=0.0):
    """Scores and effects of n heads; their ranks agree without noise."""
    a = np.random.default_rng(seed).normal(size=n)
    b = a**3 + noise * np.random.default_rng(seed + 1).normal(size=n)
    keys = dict(layer=np.arange(n) // 4, head=np.arange(n) % 4)
    return pd.DataFrame(keys | {"score": a}), pd.DataFrame(keys | {"value": b})


def test_correlation_equals_scipys_and_intervals_equal_slow_loops():
    a, b = tables_of(40, noise=2.0)
    table = agreement(a, b.sample(frac=1, random_state=0), n_resamples=3000)
    check_tidy(table, ["sample"], in_glossary_order(["sample", "correlation", "low", "high", "p_value", "n"]))
    expected = stats.spearmanr(a["score"], b["value"])
    paired, permuted = (table.iloc[i] for i in (0, 1))
    assert paired["correlation"] == pytest.approx(expected.statistic, abs=1e-6) and paired["n"] == 40
    rng = np.random.default_rng(5)
    draws = [rng.integers(40, size=40) for _ in range(1000)]
    slow = [stats.spearmanr(a["score"].to_numpy()[i], b["value"].to_numpy()[i]).statistic for i in draws]
    np.testing.assert_allclose([paired["low"], paired["high"]], np.quantile(slow, [0.025, 0.975]), atol=0.05)
    assert abs(permuted["correlation"]) < 0.05
    np.testing.assert_allclose([permuted["low"], permuted["high"]], [-1.96 / 39**0.5, 1.96 / 39**0.5], atol=0.05)


def test_p_values_are_small_for_both_signs_and_uniform_for_noise():
    agree = agreement(*tables_of(30)).iloc[0]
    assert agree["correlation"] == pytest.approx(1) and agree["p_value"] < 0.001 and agree["low"] > 0.99
    a, b = tables_of(30)
    disagree = agreement(a, b.assign(value=-b["value"])).iloc[0]
    assert disagree["correlation"] == pytest.approx(-1) and disagree["p_value"] < 0.001
    p_values = [agreement(a, tables_of(30, seed=seed)[1], n_resamples=300).iloc[0]["p_value"] for seed in range(1, 41)]
    assert 0.2 < np.mean(p_values) < 0.8 and np.mean(np.less(p_values, 0.05)) < 0.2


def test_several_rows_of_a_component_are_averaged():
    a, b = tables_of(12, noise=1.0)
    twice = pd.concat([b.assign(value=b["value"] - 3), b.assign(value=b["value"] + 3)])
    pd.testing.assert_frame_equal(agreement(a, twice), agreement(a, b))


def test_p_values_are_exact_for_few_components():
    a, b = tables_of(5, noise=1.0)
    paired, permuted = agreement(a, b).to_dict("records")
    x, y = a["score"].to_numpy(), b["value"].to_numpy()
    all_correlations = [stats.spearmanr(x, y[list(order)]).statistic for order in permutations(range(5))]
    at_least, at_most = (
        np.greater_equal(all_correlations, paired["correlation"] - 1e-9),
        np.less_equal(all_correlations, paired["correlation"] + 1e-9),
    )
    assert paired["p_value"] == pytest.approx(min(1, 2 * min(at_least.mean(), at_most.mean())))
    assert permuted["correlation"] == pytest.approx(0, abs=1e-6)


def test_intervals_are_finite_if_bootstrap_samples_are_constant():
    """Of five components with four equal effects, many bootstrap samples have only equal effects."""
    a, b = tables_of(5)
    table = agreement(a, b.assign(value=[0.0, 0.0, 0.0, 0.0, 1.0]))
    assert table[["low", "high"]].notna().all(axis=None)


def test_result_depends_only_on_the_seed():
    a, b = tables_of(12, noise=1.0)
    pd.testing.assert_frame_equal(agreement(a, b, seed=3), agreement(a, b, seed=3))
    assert not agreement(a, b, seed=3).equals(agreement(a, b, seed=4))


def test_invalid_arguments_raise():
    a, b = tables_of(12)
    for call, message in (
        (
            lambda: agreement(a, b, on="layers"),
            "zero_pass has no column 'layers'. Its columns are 'layer', 'head', 'score'",
        ),
        (lambda: agreement(a, b.head(3)), "3 components are in both tables; a rank correlation needs at least 5"),
        (lambda: agreement(a.head(0), b), "0 components are in both tables"),
        (lambda: agreement(a, b.assign(value=np.nan)), "0 components are in both tables"),
        (lambda: agreement(a.assign(score="x"), b), "Column 'score' of zero_pass has dtype"),
        (lambda: agreement([1], b), "zero_pass is a list. Give a table"),  # pyright: ignore[reportArgumentType]
        (lambda: agreement(a, b, on=[]), "on is empty. Give the keys of a component"),
        (lambda: agreement(a, b, n_resamples=0), "n_resamples=0 is not an integer of 1 or more"),
        (lambda: agreement(a.assign(score=1.0), b), "The zero_pass score is the same for all 12 components"),
    ):
        with unchecked_types(), pytest.raises(EmbspaceError, match=message):
            call()
