"""Which neurons and heads write a factor: those whose outputs have the largest cosine with its direction."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..display.tokens import display
from ..errors import EmbspaceError
from ..weights.indices import weight_indices

N_NEURONS, N_HEADS, N_TOKENS = 5, 3, 3
N_RANDOM = 100  # random directions, as a control


def neuron_writers(lens: Any, directions: Float[Tensor, "n_factors d_model"]) -> list[list[list[Any]]]:
    r"""For each direction v, the neurons whose row of `W_out` has the largest cosine with it.

    Args:
        lens: The lens from whose weights and space are read.
        directions: The factors' directions.

    Returns:
        By factor, lists of name, cosine and best tokens of the row; empty if the weights cannot be read.
    """
    unit = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    names: list[str] = []
    best = torch.zeros(len(unit), 0)
    chosen = torch.zeros(len(unit), 0, dtype=torch.int64)
    rows_by_name: dict[str, Tensor] = {}
    try:
        for index in weight_indices(lens.weights, "W_out", required=False):
            rows = lens.weights.directions("W_out", *index).detach().float().cpu()
            cosine = unit @ torch.nn.functional.normalize(rows, dim=1).T
            values, neurons = cosine.topk(min(N_NEURONS, len(rows)), dim=1)
            prefix = f"L{index.layer}" + (f"E{index.expert}" if index.expert >= 0 else "")
            first = len(names)
            names += [f"{prefix}N{neuron}" for neuron in range(len(rows))]
            best, order = torch.cat([best, values], dim=1).topk(min(N_NEURONS, best.shape[1] + values.shape[1]), dim=1)
            chosen = torch.cat([chosen, neurons + first], dim=1).gather(1, order)
            kept = set(chosen.flatten().tolist())
            rows_by_name |= {names[i]: rows[i - first] for i in kept if i >= first}
    except EmbspaceError:  # weights that cannot be read
        return [[] for _ in unit]
    if not names:
        return [[] for _ in unit]
    used = sorted({names[i] for i in chosen.flatten().tolist()})
    vectors = torch.stack([rows_by_name[name] for name in used])
    table = lens.directions(vectors, names=used, k=min(N_TOKENS, lens.space.n_tokens), largest=True)
    tokens: dict[str, list[str]] = {}
    for name, token in zip(table["direction"], table["token_string"]):
        tokens.setdefault(name, []).append(display(token))
    return [
        [[names[i], round(value, 3), tokens[names[i]]] for value, i in zip(values, indices)]
        for values, indices in zip(best.tolist(), chosen.tolist())
    ]


def head_writers(lens: Any, directions: Float[Tensor, "n_factors d_model"]) -> list[list[list[Any]]]:
    r"""For each direction v, the heads of which some output has the largest cosine with it.

    The outputs of a head are the row space of its `W_O`. With an orthonormal basis Q of it, the largest cosine is

    .. math:: \max_x \cos(v, x W_O) = \lVert Q^\top v \rVert / \lVert v \rVert

    Args:
        lens: The lens whose weights are read.
        directions: The factors' directions.

    Returns:
        By factor, lists of name and cosine; empty if the weights cannot be read.
    """
    unit = torch.nn.functional.normalize(directions.float().cpu(), dim=1)
    names, cosines = [], []
    try:
        for index in weight_indices(lens.weights, "W_O", required=False):
            for head, rows in enumerate(lens.weights.W_O(index.layer).detach().float().cpu()):
                basis = torch.linalg.qr(rows.T).Q
                names.append(f"L{index.layer}H{head}")
                cosines.append((unit @ basis).norm(dim=1))
    except EmbspaceError:  # weights that cannot be read
        return [[] for _ in unit]
    if not names:
        return [[] for _ in unit]
    best = torch.stack(cosines, dim=1).topk(min(N_HEADS, len(names)), dim=1)
    return [
        [[names[i], round(value, 3)] for value, i in zip(values, indices)]
        for values, indices in zip(best.values.tolist(), best.indices.tolist())
    ]


def random_cosines(lens: Any, d_model: int) -> list[float]:
    """The control: the mean of the best neuron's cosine, and of the best head's, over random directions."""
    directions = torch.randn(N_RANDOM, d_model, generator=torch.Generator().manual_seed(0))
    means = []
    for by_direction in (neuron_writers(lens, directions), head_writers(lens, directions)):
        best = [writers[0][1] for writers in by_direction if writers]
        means.append(round(sum(best) / len(best), 2) if best else 0.0)
    return means
