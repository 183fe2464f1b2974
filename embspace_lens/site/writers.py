"""Which neurons and heads write a factor: those whose outputs have the largest cosine with its direction."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EmbspaceError
from ..weights.indices import weight_indices
from ..weights.parameter_names import Side
from .site_data import token_label

N_NEURONS, N_HEADS, N_TOKENS, N_LINKS = 5, 3, 6, 5
N_RANDOM = 100  # random directions, as a control

Writer = list[Any]
"""Name, cosine, the tokens that the component writes, the tokens that it reads."""


def neuron_writers(lens: Any, directions: Float[Tensor, "n_factors d_model"]) -> list[list[Writer]]:
    """For each direction, the neurons that write it: see `best_neurons`."""
    return best_neurons(lens, directions, "W_out")


def best_neurons(
    lens: Any,
    directions: Float[Tensor, "n_factors d_model"],
    weight: Literal["W_out", "W_in"],
    layers: Collection[int] | None = None,
) -> list[list[Writer]]:
    """For each direction, the neurons whose row of `W_out`, or column of `W_in`, has the largest cosine with it.

    Args:
        lens: The lens from whose weights and space are read.
        directions: The directions.
        weight: `"W_out"` for the neurons that write the direction, `"W_in"` for those that read it.
        layers: The blocks of the neurons; all by default.

    Returns:
        By factor, lists of name, cosine, the best tokens of the row of `W_out`, and the best tokens of the column of `W_in`;
        empty if the weights cannot be read.
    """
    unit = _unit(directions)
    names: list[str] = []
    best = torch.zeros(len(unit), 0)
    chosen = torch.zeros(len(unit), 0, dtype=torch.int64)
    written: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}
    try:
        for index in weight_indices(lens.weights, "W_out", required=False):
            if layers is not None and index.layer not in layers:
                continue
            rows = lens.weights.directions("W_out", *index).detach().float().cpu()
            columns = lens.weights.directions("W_in", *index).detach().float().cpu()
            scored = rows if weight == "W_out" else columns
            values, neurons = (unit @ _unit(scored).T).topk(min(N_NEURONS, len(rows)), dim=1)
            prefix = f"L{index.layer}" + (f"E{index.expert}" if index.expert >= 0 else "")
            first = len(names)
            names += [f"{prefix}N{neuron}" for neuron in range(len(rows))]
            best, order = torch.cat([best, values], dim=1).topk(min(N_NEURONS, best.shape[1] + values.shape[1]), dim=1)
            chosen = torch.cat([chosen, neurons + first], dim=1).gather(1, order)
            kept = sorted(i for i in set(chosen.flatten().tolist()) if i >= first)
            written |= {i: rows[i - first] for i in kept}
            read |= {i: columns[i - first] for i in kept}
    except EmbspaceError:  # weights that cannot be read
        return [[] for _ in unit]
    used = sorted(set(chosen.flatten().tolist()))
    tokens_written = dict(zip(used, _best_tokens(lens, [written[i] for i in used], "write")))
    tokens_read = dict(zip(used, _best_tokens(lens, [read[i] for i in used], "read")))
    return [
        [[names[i], round(value, 3), tokens_written[i], tokens_read[i]] for value, i in zip(values, indices)]
        for values, indices in zip(best.tolist(), chosen.tolist())
    ]


def head_writers(lens: Any, directions: Float[Tensor, "n_factors d_model"]) -> list[list[Writer]]:
    r"""For each direction v, the heads of which some output has the largest cosine with it.

    The outputs of a head are the row space of its `W_O`. With an orthonormal basis Q of it, the output with the largest cosine is

    .. math:: Q Q^\top v, \qquad \max_x \cos(v, x W_O) = \lVert Q^\top v \rVert / \lVert v \rVert

    Args:
        lens: The lens from whose weights and space are read.
        directions: The factors' directions.

    Returns:
        By factor, lists of name, cosine, the best tokens of this output, and the best tokens of the direction
        :math:`W_V W_O v`, to which the head must attend to write v; empty if the weights cannot be read.
    """
    unit = _unit(directions)
    names: list[str] = []
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    try:
        for index in weight_indices(lens.weights, "W_O", required=False):
            weights = (getattr(lens.weights, name)(index.layer).detach().float().cpu() for name in ("W_V", "W_O"))
            for head, (W_V, W_O) in enumerate(zip(*weights)):
                basis = torch.linalg.qr(W_O.T).Q
                names.append(f"L{index.layer}H{head}")
                outputs.append(unit @ basis @ basis.T)
                inputs.append(unit @ (W_V @ W_O).T)
    except EmbspaceError:  # weights that cannot be read
        return [[] for _ in unit]
    if not names:
        return [[] for _ in unit]
    cosines = torch.stack([output.norm(dim=1) for output in outputs], dim=1)
    best, chosen = (part.tolist() for part in cosines.topk(min(N_HEADS, len(names)), dim=1))
    pairs = [(factor, i) for factor, indices in enumerate(chosen) for i in indices]
    tokens_written = dict(zip(pairs, _best_tokens(lens, [outputs[i][factor] for factor, i in pairs], "write")))
    tokens_read = dict(zip(pairs, _best_tokens(lens, [inputs[i][factor] for factor, i in pairs], "read")))
    return [
        [
            [names[i], round(value, 3), tokens_written[factor, i], tokens_read[factor, i]]
            for value, i in zip(values, indices)
        ]
        for factor, (values, indices) in enumerate(zip(best, chosen))
    ]


def with_other_factors(by_factor: list[list[Writer]]) -> list[list[Writer]]:
    """The same lists; each neuron, or head, is followed by the other factors in whose lists it is, by descending cosine."""
    factors_of: dict[str, list[tuple[float, int]]] = {}
    for factor, writers in enumerate(by_factor):
        for name, cosine, *_ in writers:
            factors_of.setdefault(name, []).append((-cosine, factor))
    first = {name: [factor for _, factor in sorted(pairs)[: N_LINKS + 1]] for name, pairs in factors_of.items()}
    return [
        [[*writer, [other for other in first[writer[0]] if other != factor][:N_LINKS]] for writer in writers]
        for factor, writers in enumerate(by_factor)
    ]


def random_directions(d_model: int) -> Float[Tensor, "n d_model"]:
    """The control: random directions."""
    return torch.randn(N_RANDOM, d_model, generator=torch.Generator().manual_seed(0))


def mean_best(by_direction: list[list[Writer]]) -> float:
    """The mean of the best cosine of each direction."""
    best = [writers[0][1] for writers in by_direction if writers]
    return round(sum(best) / len(best), 2) if best else 0.0


def random_cosines(lens: Any, d_model: int) -> list[float]:
    """The control: the mean of the best neuron's cosine, and of the best head's, over random directions."""
    directions = random_directions(d_model)
    return [mean_best(neuron_writers(lens, directions)), mean_best(head_writers(lens, directions))]


def _unit(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """The rows with length 1."""
    return torch.nn.functional.normalize(rows.detach().float().cpu(), dim=1)


def _best_tokens(lens: Any, vectors: Sequence[Float[Tensor, " d_model"]], side: Side) -> list[list[str]]:
    """The labels of the best tokens of each vector."""
    tokens: list[list[str]] = [[] for _ in vectors]
    if vectors:
        k = min(N_TOKENS, lens.space.n_tokens)
        table = lens.directions(torch.stack(list(vectors)), names=range(len(vectors)), side=side, k=k)
        for i, token in zip(table["direction"], table["token_string"]):
            tokens[i].append(token_label(token))
    return tokens
