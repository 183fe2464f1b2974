"""Checks return the value in its plain type, or raise a message that states what is allowed."""

import numpy as np
import pytest
import torch

from embspace_lens import EmbspaceError
from embspace_lens.tables.checks import check_choice, check_integer, check_k, check_number, check_probability
from embspace_lens.tables.selection import select


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3), np.array(3)])
def test_scalars_of_any_library_become_integers(value):
    assert type(check_integer("x", value)) is int


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_integer("x", 2.0), "x=2.0 is not an integer."),
        (lambda: check_integer("x", True, minimum=0), "x=True is not an integer of 0 or more."),
        (lambda: check_integer("x", 7, maximum=6), "x=7 is not an integer up to 6."),
        (lambda: check_integer("x", "1", minimum=0, maximum=6), "x='1' is not an integer from 0 to 6."),
        (lambda: check_k(2000, 1500, "rows"), "k=2000 is not an integer from 1 to 1,500, the number of rows."),
        (lambda: check_number("x", float("nan")), "x=nan is not a finite number."),
        (lambda: check_number("x", 0, above=0), "x=0 is not a finite number above 0."),
        (lambda: check_number("x", None, minimum=0.5), "x=None is not a finite number of 0.5 or more."),
        (lambda: check_probability("x", 1.5), "x=1.5 is not a finite number from 0 to 1."),
        (lambda: check_choice("x", "b", ("a1", "c")), "x='b' is not one of 'a1', 'c'."),
    ],
)
def test_messages_state_what_is_allowed(check, message):
    with pytest.raises(EmbspaceError) as caught:
        check()
    assert str(caught.value) == message


def test_bounds_are_included():
    assert check_integer("x", 0, minimum=0, maximum=0) == 0
    assert check_probability("x", 1) == 1.0 and check_probability("x", np.float32(0)) == 0.0
    assert check_number("x", 0.1, above=0) == 0.1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, [0, 1, 2, 3]), (2, [2]), (slice(1, None), [1, 2, 3]), ([3, 1, 3], [1, 3]), (range(2), [0, 1]), ([], [])],
)
def test_selected_indices_are_ascending(value, expected):
    assert select("layer", value, 4, "model", "layers") == expected
