"""Rows are computed in chunks that fit the memory budget."""

import torch
from laws import check_ranking

from embspace_lens.search.duplicates import distinct_rows
from embspace_lens.search.pairs import top_pairs
from embspace_lens.search.tiles import Rows, Subset, chunk_bytes, chunk_rows, chunks
from embspace_lens.search.tokens import top_tokens


class CountedRows:
    """Rows that count how many of them are computed, in total and in one chunk."""

    def __init__(self, rows):
        self.rows, self.largest_chunk, self.n_made = rows, 0, 0

    shape = property(lambda self: tuple(self.rows.shape))
    device = property(lambda self: self.rows.device)

    def __getitem__(self, index):
        rows = self.rows[index].float()
        self.largest_chunk, self.n_made = max(self.largest_chunk, len(rows)), self.n_made + len(rows)
        return rows


def test_chunks_cover_all_rows_within_the_budget():
    with chunk_bytes(1000):
        assert chunk_rows(10) == 96 and chunk_rows(100) == 10 and chunk_rows(10**6) == 1
        assert chunk_rows(10, scale=2) == 192
        parts = list(chunks(250, 10))
        assert [(part.start, part.stop) for part in parts] == [(0, 96), (96, 192), (192, 250)]
    assert chunk_rows(2**20) == 16, "16 MiB by default"


def test_searches_hold_few_rows_in_memory():
    A, B = CountedRows(torch.randn(4000, 64).bfloat16()), CountedRows(torch.randn(3000, 64))
    assert isinstance(A, Rows)
    left, right = torch.randn(64, 8), torch.randn(64, 8)
    expected = top_pairs(A, left, right, B, 10)
    A.n_made = A.largest_chunk = B.n_made = B.largest_chunk = 0
    with chunk_bytes(2**16):  # 256 rows of width 64
        check_ranking(top_pairs(A, left, right, B, 10), expected)
    assert A.largest_chunk <= 1024 and B.largest_chunk <= 1024, "the sample for the basis"
    assert A.n_made < 1.5 * 4000
    B.n_made = B.largest_chunk = 0
    progress = []
    with chunk_bytes(2**16):
        top_tokens(torch.randn(20, 64), B, 5, progress=lambda done, total: progress.append((done, total)))
    assert B.largest_chunk <= 256 and B.n_made < 1.5 * 3000
    assert progress[-1] == (3000, 3000) and len(progress) == 12


def test_equal_rows_are_grouped_by_their_bits(device):
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [2.0, 1.0]], device=device)
    for dtype in (torch.float32, torch.float64):
        first, group = distinct_rows(rows.to(dtype))
        assert first.tolist() == [0, 1, 3] and group.tolist() == [0, 1, 0, 2, 1]


def test_a_subset_contains_the_selected_rows():
    rows = torch.randn(10, 3)
    subset = Subset(rows, torch.tensor([7, 1, 4]))
    assert subset.shape == (3, 3)
    assert torch.equal(subset[1:], rows[[1, 4]]) and torch.equal(subset[torch.tensor([0])], rows[[7]])
