"""The published optimiser of vocabulary channels: compared with a plain loop over one neuron."""

import torch
from reference import householder_channel

from embspace_lens.circuits.kurtosis import centred, excess_kurtosis
from embspace_lens.papers.householder_search import householder_channels, reflect


def problem(n=3, d=12, n_tokens=80):
    rows, w = torch.randn(n_tokens, d, dtype=torch.float64) ** 3, torch.randn(n, d, dtype=torch.float64)
    mask = torch.ones(n_tokens, dtype=torch.float64)
    mask[:3] = 1e-4
    return rows, w, mask


def test_reflections_keep_the_length():
    _, w, _ = problem()
    torch.testing.assert_close(reflect(torch.randn_like(w), w).norm(dim=1), w.norm(dim=1))


def test_batched_loop_equals_a_loop_over_one_neuron():
    rows, w, mask = problem()
    result = householder_channels(w, rows, mask, max_steps=350, seed=5)
    start = torch.randn(w.shape, generator=torch.Generator().manual_seed(5)).double()
    assert result.n_steps == 350
    for i in range(len(w)):
        # The batch minimises the mean loss; AdamW is invariant to the scale of the gradient up to its epsilon.
        candidates = torch.stack(householder_channel(w[i], rows, mask, start[i], 350))
        kurtosis = excess_kurtosis(centred(candidates @ rows.T)).abs()
        torch.testing.assert_close(result.by_kurtosis[i], candidates[kurtosis.argmax()], atol=1e-4, rtol=1e-4)


def test_batch_stops_after_convergence():
    rows, w, mask = problem(n=1)
    result = householder_channels(w, rows, mask, max_steps=10_000)
    assert 2_000 <= result.n_steps < 10_000
