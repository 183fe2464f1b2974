"""One update of a dictionary equals the formula in a plain loop."""

import torch

from embspace_lens.factors.dictionary_update import unit_rows, update_directions


def test_update_equals_a_plain_loop_and_lowers_the_loss():
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(300, 100, generator=generator) * (torch.rand(300, 100, generator=generator) < 0.2)
    x = torch.randn(300, 8, generator=generator)
    A, B = codes.T @ codes, codes.T @ x
    A[3], A[:, 3], B[3] = 0, 0, 0  # never active: not updated
    before = unit_rows(torch.randn(100, 8, generator=generator))
    slow = before.clone().double()
    for c in range(100):
        if A[c, c] > 0:
            target = slow[c] + (B[c].double() - A[c].double() @ slow) / A[c, c].double()
            slow[c] = target / target.norm()
    fast = before.clone()
    update_directions(fast, A, B)
    torch.testing.assert_close(fast, slow.float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(fast[3], before[3])

    def loss(directions):
        return float((directions.T @ A @ directions).trace() / 2 - (directions.T @ B).trace())

    assert loss(fast) < loss(before)
