"""Pairs of wide rows: leading coordinates bound the scores, and change nothing in the result."""

import pytest
import torch
from laws import check_ranking
from reference import dense_pairs

from embspace_lens.search import pairs
from embspace_lens.search.coordinates import SortedCoordinates
from embspace_lens.search.leading_coordinates import LeadingCoordinates, LeadingScreen, leading_widths
from embspace_lens.search.pairs import top_pairs
from embspace_lens.search.tiles import chunk_bytes

D = 256


def decaying(n, clusters=20, power=0.7):
    """Unit rows around centres, with a decaying spectrum in a random basis."""
    scale = torch.arange(1, D + 1).float().pow(-power)
    rows = (torch.randn(clusters, D)[torch.randint(clusters, (n,))] + 0.7 * torch.randn(n, D)) * scale
    return torch.nn.functional.normalize(rows, dim=1) @ torch.linalg.qr(torch.randn(D, D)).Q


def related(n, m):
    """Two dictionaries in one basis."""
    rows = decaying(n + m)
    return rows[:n].clone(), rows[n:].clone()


@pytest.fixture
def used_widths(monkeypatch):
    """How many tiles each width decided; None for those that it could not."""
    counts = {}
    entries = LeadingScreen.entries

    def count(self, *args):
        result = entries(self, *args)
        counts[result is not None] = counts.get(result is not None, 0) + 1
        return result

    monkeypatch.setattr(LeadingScreen, "entries", count)
    return counts


def test_only_wide_products_have_leading_widths():
    assert leading_widths(64) == () and leading_widths(128) == ()
    assert leading_widths(768) == (96, 192, 384)


def test_leading_coordinates_bound_every_score(screen_dtype):
    A, B = related(300, 200)
    sides = [
        SortedCoordinates(rows, torch.eye(D), 0, 512, resident=True, dtype=screen_dtype, widths=(8, 32, 128))
        for rows in (A, B)
    ]
    x, y = (LeadingCoordinates(side, 0, 512) for side in sides)
    score = x.all.double() @ y.all.double().T
    for width in (8, 32, 128):
        for side, part in zip(sides, (x, y), strict=True):
            tail = part.all[:, width:].double().norm(dim=1)
            assert (part.leading(width)[:, -1].double() >= tail).all()
            assert side.max_tail[width][0] >= tail.max()
        bound = x.leading(width).double() @ y.leading(width).double().T
        margin = sum(x.norm[0] * y.max_coarse_slack[0] for x, y in (sides, sides[::-1]))
        assert (bound >= score - 1.01 * margin - 1e-6).all()


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 100, 3000])
def test_pairs_of_wide_rows_equal_brute_force(largest, k, used_widths, device):
    A, B = (rows.to(device) for rows in related(1400, 4300))
    eye = torch.eye(D, device=device)
    found = top_pairs(A, eye, eye, B, k, largest=largest)
    score, row, column = dense_pairs(A if largest else -A, eye, eye, B, k)
    check_ranking(found, (score if largest else -score, row, column))
    assert k > 100 or used_widths[True] > 0, "leading coordinates decide some tiles"


def test_pairs_of_random_wide_rows_equal_brute_force(device):
    """Rows without structure: the rest of the coordinates is too large for leading coordinates to decide anything."""
    A, B, eye = torch.randn(700, D, device=device), torch.randn(2500, D, device=device), torch.eye(D, device=device)
    check_ranking(top_pairs(A, eye, eye, B, 50), dense_pairs(A, eye, eye, B, 50))


@pytest.mark.parametrize("budget", [2**12, 2**24])
def test_ties_of_wide_rows_are_ranked_by_key(budget):
    """Products of small integers are exact."""
    A, B = torch.randint(-1, 2, (600, D)).float(), torch.randint(-1, 2, (2300, D)).float()
    A[::7], B[::5] = A[0], A[0]
    A[::9] = 0
    eye = torch.eye(D)
    with chunk_bytes(budget):
        for k in (1, 2000):
            check_ranking(top_pairs(A, eye, eye, B, k), dense_pairs(A, eye, eye, B, k))


def test_coordinates_that_do_not_fit_are_computed_again(monkeypatch):
    A, B = related(1200, 2200)
    eye = torch.eye(D)
    expected = top_pairs(A, eye, eye, B, 40)
    monkeypatch.setattr(pairs, "WIDE_COORDINATE_BUDGETS", (1 / 64, 1 / 32))
    check_ranking(top_pairs(A, eye, eye, B, 40), expected)


def test_width_that_leaves_too_many_entries_is_left_out():
    screen = LeadingScreen(D)
    x, y = (
        LeadingCoordinates(SortedCoordinates(rows, torch.eye(D), 0, 512, resident=True, widths=screen.widths), 0, 512)
        for rows in (torch.randn(512, D), torch.randn(512, D))
    )
    no_tail = dict.fromkeys(screen.widths, 0.0)
    assert screen.entries(x, y, slice(0, 512), no_tail, 1.0, 10) is None
    entries = screen.entries(x, y, slice(0, 512), no_tail, 1.0, 512 * 512)
    assert entries is not None and len(entries[0]) > 10
    large_tail = dict.fromkeys(screen.widths, 1.0)
    assert screen.entries(x, y, slice(0, 512), large_tail, 1.0, 512 * 512) is None


@pytest.mark.parametrize("budget", [2**14, 2**24])
def test_progress_ends_with_all_pairs(budget):
    A, B = torch.randn(1500, 32), torch.randn(5000, 32)
    eye, steps = torch.eye(32), []
    with chunk_bytes(budget):
        top_pairs(A, eye, eye, B, 5, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (1500 * 5000, 1500 * 5000) and steps == sorted(steps) and len(steps) > 2
