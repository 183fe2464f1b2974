"""Directions that are made on demand: any rows of them are those of the whole weight, and only these become float32."""

import pandas as pd
import pytest
import torch
import zoo

from embspace_lens import EmbeddingLens
from embspace_lens.search.tiles import PART_SCALE, chunk_bytes, chunk_rows
from embspace_lens.weights import direction_rows
from embspace_lens.weights.effective import Weights

NAMES = [name for name in ("gpt2", "llama", "gemma2", "olmo2", "mixtral", "deepseek_v3") if name in zoo.ZOO]
INDICES = [3, slice(1, 4), [2, 0], torch.tensor([3, 3, 1])]


@pytest.mark.parametrize("name", NAMES)
def test_any_rows_are_those_of_the_whole_weight(name):
    weights = Weights(zoo.boot(zoo.ZOO[name]()))
    for weight in ("W_in", "W_out", "W_Q", "W_K", "W_V", "W_O"):
        expert = weights.experts(1)[-1] if weight in ("W_in", "W_out") else -1
        rows, whole = weights.direction_rows(weight, 1, expert), weights.directions(weight, 1, expert)
        assert (len(rows), rows.shape) == (len(whole), whole.shape)
        assert all(torch.equal(rows[index], whole[index]) for index in INDICES)


def test_any_heads_are_those_of_the_whole_circuit():
    weights = Weights(zoo.boot(zoo.ZOO["llama"]()))
    for name, form, distance in (("W_OV", weights.W_OV(0), None), ("W_QK", weights.W_QK(0, 2), 2)):
        circuits = weights.circuits(name, 0, distance)
        for head in range(weights.n_heads):
            left, right = circuits[head]
            torch.testing.assert_close(left @ right.mT, form[head].AB)


@pytest.mark.parametrize("side", ["read", "write"])
def test_folding_is_the_formula(side):
    norm = direction_rows.Norm("ln1", torch.randn(6), centres=True)
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    folded = direction_rows.fold(x, norm, side, "W")
    assert norm.gain is not None
    gain, centre = torch.diag(norm.gain.double()), torch.eye(6, dtype=torch.float64) - 1 / 6
    expected = x.double() @ gain @ centre if side == "read" else x.double() @ centre @ gain
    torch.testing.assert_close(folded.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fold_ln", [True, False])
def test_a_large_weight_is_never_float32_as_a_whole(monkeypatch, fold_ln):
    """The parts of an MLP of 48 neurons hold 8 neurons or fewer, and give the same table."""
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["llama"]()).to(torch.bfloat16), fold_ln=fold_ln)
    tables = {"neurons": lambda: lens.neurons(k=3), "some": lambda: lens.neurons(neuron=[0, 9, 10, 11, 40], k=3)}
    tables |= {"search": lambda: lens.search(5, weight=["W_in", "W_out"], k=100)}
    whole = {name: read() for name, read in tables.items()}
    n_rows, fold = [], direction_rows.fold
    monkeypatch.setattr(direction_rows, "fold", lambda x, *args: n_rows.append(len(x)) or fold(x, *args))
    with chunk_bytes(4 * zoo.D_MODEL):
        assert chunk_rows(4 * zoo.D_MODEL, scale=PART_SCALE) == 8
        for name, read in tables.items():
            pd.testing.assert_frame_equal(read(), whole[name])
    assert 0 < max(n_rows) <= 8


def test_the_gate_of_a_large_mlp_is_read_in_parts():
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["mixtral"]()))
    with chunk_bytes(4 * zoo.D_MODEL):
        in_parts = lens.neurons(layer=1, k=2)
    pd.testing.assert_frame_equal(in_parts, lens.neurons(layer=1, k=2))


def test_statistics_of_parts_are_those_of_the_whole_mlp():
    from embspace_lens.circuits import neuron_statistics

    lens = EmbeddingLens(zoo.boot(zoo.ZOO["llama"]()))
    with chunk_bytes(4 * zoo.D_MODEL):
        in_parts = neuron_statistics(lens)
    pd.testing.assert_frame_equal(in_parts, neuron_statistics(lens), atol=1e-6)
