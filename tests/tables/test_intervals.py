"""Intervals: the bootstrap compared with the normal approximation, and the exact interval of a proportion."""

import numpy as np
import pytest
import torch

from embspace_lens.tables.intervals import bootstrap_interval, central_interval, proportion_interval


def test_bootstrap_interval_is_that_of_the_mean():
    x = torch.randn(400, dtype=torch.float64)
    low, high = bootstrap_interval(x)
    assert low <= x.mean() <= high
    assert (high - low) == pytest.approx(2 * 1.96 * x.std().item() / 20, rel=0.1)


def test_groups_are_resampled_as_groups():
    """100 groups of 50 equal values contain as much information as 100 values."""
    x = torch.randn(100, dtype=torch.float64)
    values, groups = bootstrap_interval(x), bootstrap_interval(50 * x, torch.full((100,), 50))
    assert groups == pytest.approx(values)


@pytest.mark.parametrize(("n_successes", "n"), [(0, 7), (7, 7), (3, 7), (60, 83), (500, 1000)])
def test_interval_of_a_proportion_is_the_limit_of_the_bootstrap(n_successes, n):
    outcomes = np.arange(n) < n_successes
    resampled = bootstrap_interval(outcomes, n_resamples=20_000)
    assert proportion_interval(n_successes, n) == pytest.approx(resampled, abs=1.01 / n)  # one outcome more or less


def test_one_observation_has_no_interval():
    assert np.isnan(bootstrap_interval([1.0])).all() and np.isnan(proportion_interval(1, 1)).all()


def test_central_interval_holds_the_middle():
    assert central_interval(np.arange(1001)) == pytest.approx((25, 975))
