"""Sparse codes reach the requested gap, and equal those of other methods."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import codes_by_subsets, fista, sparse_code_objective

from embspace_lens.errors import EmbspaceError
from embspace_lens.factors import sparse_codes
from embspace_lens.search.tiles import chunk_bytes


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def problem(n=40, n_factors=60, d_model=16, seed=0, common=0.0):
    """Vectors and a dictionary; `common` adds a shared direction to both, as in hidden states."""
    generator = torch.Generator().manual_seed(seed)
    shared = common * torch.randn(d_model, generator=generator)
    x = 3 * torch.randn(n, d_model, generator=generator) + 3 * shared
    return x, unit(torch.randn(n_factors, d_model, generator=generator) + shared)


def relative_gap(x, directions, codes, l1):
    """The duality gap by its definition, in float64: the residual, scaled until no product with a direction exceeds l1."""
    gaps = []
    for vector, code, primal in zip(x.double(), codes.double(), sparse_code_objective(x, directions, codes, l1)):
        residual = vector - code @ directions.double()
        theta = residual * min(1.0, l1 / max(1e-300, float((directions.double() @ residual).max())))
        gaps.append((primal - float(vector @ theta - theta @ theta / 2)) / max(1e-300, float(vector @ vector) / 2))
    return torch.tensor(gaps)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("common", [0.0, 3.0])
@pytest.mark.parametrize("l1", [0.05, 0.5, 3.0])
def test_codes_reach_the_requested_gap(gap, common, l1):
    x, directions = problem(common=common)
    codes, reached = sparse_codes(x, directions, l1, gap=gap)
    assert codes.dtype == torch.float32 and (codes >= 0).all()
    assert reached.max() <= gap
    assert (reached <= relative_gap(x, directions, codes, l1) * 1.001 + 1e-8).all(), (
        "the gap is at most that of the plain bound"
    )
    best, _ = sparse_codes(x.double(), directions.double(), l1, gap=1e-12)
    objectives, best_objectives = (torch.tensor(sparse_code_objective(x, directions, c, l1)) for c in (codes, best))
    assert (objectives - best_objectives <= reached.double() * x.double().square().sum(1) / 2 + 1e-6).all(), (
        "the gap is an upper bound"
    )


@pytest.mark.parametrize("l1", [0.05, 0.5, 3.0])
def test_codes_satisfy_the_optimality_conditions(l1):
    x, directions = problem(common=2.0)
    x, directions = x.double(), directions.double()
    codes, gap = sparse_codes(x, directions, l1, gap=1e-12)
    assert codes.dtype == torch.float64 and gap.max() <= 1e-12
    product = (x - codes @ directions) @ directions.T
    assert (product <= l1 + 1e-6).all(), "no inactive direction would lower the objective"
    assert (product[codes > 0] - l1).abs().max() < 1e-6, "the gradient of active codes is zero"


def test_each_vector_reaches_its_own_gap():
    """Small and large vectors in one batch: each gap is relative to its own vector."""
    x, directions = problem()
    scale = torch.logspace(-2, 2, len(x))[:, None]
    codes, gap = sparse_codes(x * scale, directions, 0.01, gap=1e-5)
    assert gap.max() <= 1e-5 and (codes.sum(1) > 0).all()


def test_gap_is_reported_where_it_cannot_be_reached():
    x, directions = problem()
    codes, gap = sparse_codes(x, directions, 0.5, gap=1e-14)
    assert codes.dtype == torch.float32
    assert 1e-14 < gap.max() < 1e-5
    _, gap = sparse_codes(x, directions, 0.5, gap=1e-6, max_iterations=1)
    assert gap.max() > 1e-6, "one pass is not enough"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), l1=st.floats(0.01, 5), n_factors=st.integers(1, 7), d_model=st.integers(1, 4))
def test_codes_equal_the_best_subset(seed, l1, n_factors, d_model):
    x, directions = problem(1, n_factors, d_model, seed)
    codes, gap = sparse_codes(x.double(), directions.double(), l1, gap=1e-10)
    assert gap.max() <= 1e-10
    best = codes_by_subsets(x[0].tolist(), directions.tolist(), l1)
    (objective,) = sparse_code_objective(x, directions, codes, l1)
    assert objective == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_objective_is_at_most_that_of_fista():
    x, directions = problem(common=1.0)
    codes, _ = sparse_codes(x.double(), directions.double(), 0.5, gap=1e-9)
    slow = fista(x.double(), directions.double(), 0.5)
    objectives, fista_objectives = (torch.tensor(sparse_code_objective(x, directions, c, 0.5)) for c in (codes, slow))
    assert (objectives <= fista_objectives + 1e-9).all()
    torch.testing.assert_close(objectives, fista_objectives, rtol=1e-3, atol=0)


def test_codes_equal_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is an extra")
    x, directions = problem(n=12, common=1.0)
    l1 = 0.5
    codes, _ = sparse_codes(x.double(), directions.double(), l1, gap=1e-10)
    for vector, code in zip(x.double(), codes):
        lasso = linear_model.Lasso(l1 / x.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
        lasso.fit(directions.double().T.numpy(), vector.numpy())
        torch.testing.assert_close(code, torch.from_numpy(lasso.coef_), atol=1e-4, rtol=1e-4)


def test_result_is_independent_of_batches_and_chunks():
    """Alone, together, in another order, in other chunks: codes are equal up to rounding, and within their gap."""
    x, directions = problem(n=60, n_factors=200, common=2.0)
    together, gap = sparse_codes(x, directions, 0.3, gap=1e-5)
    alone = torch.cat([sparse_codes(row[None], directions, 0.3, gap=1e-5).codes for row in x])
    order = torch.randperm(len(x))
    shuffled = torch.empty_like(together)
    shuffled[order] = sparse_codes(x[order], directions, 0.3, gap=1e-5).codes
    with chunk_bytes(4 * 200 * 7):
        chunked, chunked_gap = sparse_codes(x, directions, 0.3, gap=1e-5)
    best = torch.tensor(sparse_code_objective(x, directions, together, 0.3))
    for codes_of_other_chunks in (alone, shuffled, chunked):
        torch.testing.assert_close(codes_of_other_chunks, together, atol=2e-3, rtol=1e-3)
        objective = torch.tensor(sparse_code_objective(x, directions, codes_of_other_chunks, 0.3))
        assert ((objective - best).abs() <= 1e-5 * x.square().sum(1) / 2).all()
    assert max(gap.max(), chunked_gap.max()) <= 1e-5


def test_codes_are_deterministic():
    x, directions = problem(n=60, n_factors=200, common=2.0)
    assert torch.equal(sparse_codes(x, directions, 0.3).codes, sparse_codes(x, directions, 0.3).codes)


def test_warm_start_saves_passes_and_gives_the_same_codes():
    x, directions = problem(n_factors=200, common=2.0)
    codes, _ = sparse_codes(x, directions, 0.3, gap=1e-6)
    warm_codes, gap = sparse_codes(x, directions, 0.3, gap=1e-6, warm=codes, max_iterations=1)
    assert gap.max() <= 1e-6
    torch.testing.assert_close(warm_codes, codes, atol=1e-3, rtol=1e-3)
    _, gap_without_warm_start = sparse_codes(x, directions, 0.3, gap=1e-6, max_iterations=1)
    assert gap_without_warm_start.max() > 1e-6
    unrelated = 5 * torch.rand_like(codes) * (torch.rand_like(codes) < 0.1)
    from_unrelated, gap = sparse_codes(x, directions, 0.3, gap=1e-6, warm=unrelated)
    assert gap.max() <= 1e-6
    torch.testing.assert_close(from_unrelated, codes, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_input_gives_the_codes_of_its_float32_values(dtype):
    x, directions = problem()
    codes, gap = sparse_codes(x.to(dtype), directions, 0.5)
    assert codes.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert gap.max() <= 1e-4
    expected = sparse_codes(x.to(dtype).float(), directions, 0.5).codes
    torch.testing.assert_close(codes.float(), expected, atol=1e-3, rtol=1e-3)


def test_numpy_input_is_accepted_and_progress_is_reported():
    x, directions = problem()
    steps = []
    codes, _ = sparse_codes(x.numpy(), directions.numpy(), 0.5, progress=lambda *step: steps.append(step))
    assert steps[-1] == (len(x), len(x))
    assert torch.equal(codes, sparse_codes(x, directions, 0.5).codes)


def test_zero_vectors_and_empty_input_have_no_active_codes():
    x, directions = problem(n=3)
    x[1] = 0
    codes, gap = sparse_codes(x, directions, 0.5)
    assert not codes[1].any() and gap[1] == 0 and codes[0].any()
    codes, gap = sparse_codes(x[:0], directions, 0.5)
    assert codes.shape == (0, 60) and gap.shape == (0,)


def test_codes_are_zero_above_the_largest_product():
    x, directions = problem()
    l1 = 1.01 * float((x @ directions.T).max())
    codes, gap = sparse_codes(x, directions, l1)
    assert not codes.any() and not gap.any()
    assert sparse_codes(x, directions, l1 / 1.02).codes.any()


def test_equal_and_opposite_directions_are_solved():
    x, directions = problem()
    single, _ = sparse_codes(x, directions, 0.5, gap=1e-6)
    doubled = torch.cat([directions, directions, directions, -directions])
    codes, gap = sparse_codes(x, doubled, 0.5, gap=1e-6)
    assert gap.max() <= 1e-6
    signed_directions = torch.cat([directions, -directions])
    expected, _ = sparse_codes(x, signed_directions, 0.5, gap=1e-6)
    codes = codes.view(len(x), 4, -1)
    torch.testing.assert_close(codes[:, :3].sum(1), expected[:, :60], atol=5e-3, rtol=1e-3)
    assert not torch.equal(single, expected[:, :60])


def test_directions_may_have_any_length():
    x, directions = problem()
    directions = directions * torch.logspace(-1, 1, len(directions))[:, None]
    directions[5] = 0
    codes, gap = sparse_codes(x, directions, 0.5, gap=1e-5)
    assert gap.max() <= 1e-5 and not codes[:, 5].any()


def test_singular_gram_matrices_are_solved():
    """With a tiny penalty, working sets span the space and Gram matrices are singular."""
    x, directions = problem(n=20, n_factors=120, d_model=6)
    codes, gap = sparse_codes(x.double(), directions.double(), 1e-4, gap=1e-8)
    assert gap.max() <= 1e-8
    assert ((codes > 1e-9).sum(1) <= 7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.tensor([[float("nan"), 0.0]])}, "NaN or infinite values in hidden states"),
        ({"directions": torch.tensor([[float("inf"), 0.0]])}, "NaN or infinite values in directions"),
        ({"x": torch.ones(1, 3)}, "width 3, but the dictionary's residual stream has d_model=2"),
        ({"x": torch.ones(2)}, r"shape \(2,\). Expected \[n, d_model\]"),
        ({"directions": torch.ones(2)}, r"shape \(2,\). Expected \[n_factors, d_model\]"),
        ({"directions": torch.ones(0, 2)}, r"shape \(0, 2\)"),
        ({"x": torch.full((1, 2), 1e20)}, "largest absolute value of hidden states is 1e\\+20"),
        ({"l1": 0.0}, "l1=0.0 is not a finite number above 0"),
        ({"l1": float("nan")}, "l1=nan"),
        ({"l1": "1"}, "l1='1'"),
        ({"gap": -1.0}, "gap=-1.0"),
        ({"max_iterations": 0}, "max_iterations=0 is not an integer of 1 or more"),
        ({"warm": torch.ones(1, 5)}, r"warm has shape \(1, 5\)"),
        ({"warm": torch.tensor([[float("nan"), 0.0]])}, "NaN or infinite values in warm"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_invalid_input_is_refused(change, message):
    arguments = {"x": torch.ones(1, 2), "directions": torch.eye(2), "l1": 0.5} | change
    with pytest.raises(EmbspaceError, match=message):
        sparse_codes(**arguments)


def test_autocast_and_gradients_do_not_change_codes():
    x, directions = problem()
    expected = sparse_codes(x, directions, 0.5).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, gap = sparse_codes(x.requires_grad_(), directions, 0.5)
    assert torch.equal(codes, expected) and not codes.requires_grad and gap.max() <= 1e-4
