"""The names of weights, and which side of the residual stream each is on."""

from typing import Literal, NamedTuple

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
MLP = ("W_in", "W_gate", "W_out")
CIRCUITS = ("W_OV", "W_QK")
FACTORS = {"W_OV": ("W_V", "W_O"), "W_QK": ("W_Q", "W_K")}
"""The parameters whose product a circuit is."""

WRITING = ("W_O", "W_out")
"""Weights whose rows are added to the residual stream. The columns of all others read from it."""

Side = Literal["read", "write"]
Sublayer = Literal["attn", "mlp"]


def side_of(weight: str) -> Side:
    """Whether a parameter's directions `"read"` from the residual stream or `"write"` to it."""
    return "write" if weight in WRITING else "read"


def sublayer_of(weight: str) -> Sublayer:
    """Whether a parameter belongs to attention or to the MLP."""
    return "mlp" if weight in MLP else "attn"


class WeightIndex(NamedTuple):
    """Where a weight exists: its block, and its expert in a mixture (−1 for attention, dense and shared MLPs)."""

    layer: int
    expert: int
