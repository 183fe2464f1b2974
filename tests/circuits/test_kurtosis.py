"""The optimiser of vocabulary channels: compared with brute force, autograd, the paper's optimiser, and loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import adamw_channel, channel_objective

from embspace_lens.circuits.kurtosis import (
    _conjugate_gradients,
    _line_search,
    _score_gradient,
    centred,
    excess_kurtosis,
    long_rows,
    maximize_kurtosis,
    objective,
    outliers,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n=6, d=12, n_tokens=80, seed=0):
    """Embeddings, vectors, and a mask that hides five tokens."""
    rows, w = noise(n_tokens, d, seed=seed), noise(n, d, seed=seed + 1)
    mask = torch.ones(n, n_tokens, dtype=torch.float64)
    mask[:, :5] = 1e-4
    return rows, w, mask


def maximize(rows, w, mask, **options):
    return maximize_kurtosis(w, mask, lambda x: x @ rows.T, lambda s: s @ rows, **options)


def objectives(rows, w, r, mask):
    return [channel_objective(a, b, rows.tolist(), m) for a, b, m in zip(r.tolist(), w.tolist(), mask.tolist())]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 2.0))
def test_line_search_finds_the_best_angle_of_a_fine_grid(seed, weight):
    c, q = (centred(noise(3, 40, seed=seed + i)) for i in range(2))
    cosine_u, cosine_p = noise(3, seed=seed + 2).abs().clamp(max=1), noise(3, seed=seed + 3).clamp(-1, 1)
    angle, best_value = _line_search(c, q, cosine_u, cosine_p, weight)
    for i in range(3):
        grid = []
        for t in np.linspace(-math.pi, math.pi, 501):
            kurtosis = excess_kurtosis((math.cos(t) * c[i] + math.sin(t) * q[i])[None])
            cosine = cosine_u[i] * math.cos(t) + cosine_p[i] * math.sin(t)
            grid.append(float(objective(kurtosis, cosine[None], weight)))
        scores = math.cos(angle[i]) * c[i] + math.sin(angle[i]) * q[i]
        cosine = cosine_u[i] * angle[i].cos() + cosine_p[i] * angle[i].sin()
        value = float(objective(excess_kurtosis(scores[None]), cosine, weight))
        assert value == pytest.approx(float(best_value[i]), abs=1e-9)
        assert float(best_value[i]) >= max(grid) - 1e-3


def test_score_gradient_equals_autograd():
    scores = noise(4, 50).pow(3).requires_grad_()
    objective(excess_kurtosis(centred(scores)), torch.zeros(()), 0.3).sum().backward()
    torch.testing.assert_close(_score_gradient(centred(scores.detach()), 0.3), scores.grad)


@pytest.mark.parametrize("seed", range(2))
def test_mean_objective_reaches_that_of_the_papers_optimiser(seed):
    rows, w, mask = problem(seed=10 * seed)
    optimised_vectors = maximize(rows, w, mask)
    adamw_vectors = torch.stack([adamw_channel(v, rows, m, 300) for v, m in zip(w, mask)])
    assert (
        np.mean(objectives(rows, w, optimised_vectors, mask))
        >= np.mean(objectives(rows, w, adamw_vectors, mask)) - 1e-3
    )
    assert min(np.subtract(objectives(rows, w, optimised_vectors, mask), objectives(rows, w, w, mask))) > 0


def test_result_is_the_better_of_two_starting_points(frequent_lens):
    w = torch.nn.functional.normalize(frequent_lens.weights.W_out(2)[:60], dim=1)
    rows = frequent_lens.space.rows("write")[:]
    mask = torch.ones(len(w), len(rows))
    shared_arguments = (mask, lambda x: x @ rows.T, lambda s: s @ rows)

    def value(u):
        return objective(excess_kurtosis(centred(u @ rows.T)), (u * w).sum(1), 0.3)

    first, first_value = _conjugate_gradients(w, w, *shared_arguments, 0.3, 1e-5, 100)
    start, _ = _conjugate_gradients(w, w, *shared_arguments, 0.1, 1e-5, 10)
    second, _ = _conjugate_gradients(w, start, *shared_arguments, 0.3, 1e-5, 100)
    torch.testing.assert_close(first_value, value(first), atol=1e-3, rtol=0)
    best = torch.maximum(value(first), value(second))
    torch.testing.assert_close(value(maximize_kurtosis(w, *shared_arguments)), best, atol=1e-3, rtol=0)
    assert (best > value(first) + 0.005).any(), "the second start is better for some vectors"
    assert (best > value(second) + 0.005).any(), "the first start is better for some vectors"


def test_result_is_a_local_maximum():
    rows, w, mask = problem()
    u = maximize(rows, w, mask, tolerance=1e-13, max_steps=500)
    r = u.clone().requires_grad_()
    c = centred((r @ rows.T) * mask)
    objective(excess_kurtosis(c), torch.cosine_similarity(r, w, dim=1), 0.3).sum().backward()
    assert r.grad is not None
    assert (r.grad - (r.grad * u).sum(1, keepdim=True) * u).norm(dim=1).max() < 1e-3
    torch.testing.assert_close(u.norm(dim=1), torch.ones(len(u), dtype=u.dtype))


def test_result_of_a_vector_is_independent_of_the_others_and_zero_for_zeros():
    rows, w, mask = problem()
    w[2] = 0
    together = maximize(rows, w, mask)
    alone = torch.cat([maximize(rows, v[None], m[None]) for v, m in zip(w, mask)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert not together[2].any()


def test_outliers_equal_slow_loops():
    c = centred(noise(5, 60).pow(3))
    c[4, 0] = 500  # a single token in 60 cannot raise the skew above 10
    is_outlier, skew = outliers(c, 2.0, one_sided_skew=5.0)
    for row, expected_outliers, row_skew in zip(c.tolist(), is_outlier.tolist(), skew.tolist()):
        deviation = math.sqrt(math.fsum(x * x for x in row) / len(row))
        z = [x / deviation for x in row]
        expected = math.fsum(x**3 for x in z) / len(z)
        assert row_skew == pytest.approx(expected)
        sign = math.copysign(1, expected)
        assert expected_outliers == [(x * sign if abs(expected) > 5 else abs(x)) > 2 for x in z]
    assert skew[4] > 5


def test_long_rows_are_those_above_the_quantile():
    assert long_rows(torch.arange(200.0), 0.99).tolist() == [198, 199]
    assert long_rows(torch.ones(200), 0.99).tolist() == []
