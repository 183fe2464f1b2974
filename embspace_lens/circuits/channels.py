"""Vocabulary channels (ROTATE): the sparse directions near a neuron's weight, each with its own tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select, select, weight_names
from ..weights.effective import MLP, side_of
from .kurtosis import centred, climb, excess_kurtosis, long_rows, objective, stand_out

LONG, LONG_MASK = 0.99, 1e-4  # tokens with embeddings longer than those of 99 % hardly count
TAKEN_MASK = 0.01  # nor do those of a neuron's earlier channels
SCORE_BYTES = 2**25  # of one array of scores; some eight are alive at a time


@dataclass(frozen=True, eq=False, repr=False)
class VocabularyChannels:
    """The vocabulary channels of neurons.

    Attributes:
        name: The model.
        weight: Which weight of the neurons was read.
        channels: One row per (layer, neuron, weight, channel), in a mixture of experts with `expert`, with `similarity` (cosine
            with the neuron), `kurtosis` and `skew` of its masked scores, `explained` (share of the neuron's squared length in
            the span of its channels up to this one), `objective` and `n_tokens`, how many tokens stand out.
        tokens: One row per (layer, neuron, weight, channel, rank), with `token_index`, `token_string` and the lens's `score`:
            the tokens on the side of the heavier tail, so of negative scores where that is what the channel suppresses.
        directions: A residual vector of the neuron's length for each row of `channels`.
    """

    name: str
    weight: str
    channels: pd.DataFrame
    tokens: pd.DataFrame
    directions: Float[Tensor, "n_channels d_model"]

    def __repr__(self) -> str:
        n = self.channels.groupby([c for c in ("layer", "expert", "neuron") if c in self.channels]).ngroups
        return f"VocabularyChannels({self.name}: {len(self.channels)} channels of {n} neurons, {self.weight})"


def vocabulary_channels(
    lens: EmbeddingLens,
    layer: Select = None,
    neuron: Select = None,
    *,
    expert: Select = None,
    weight: str = "W_out",
    n_channels: int = 10,
    k: int = 10,
    kurtosis_weight: float = 0.3,
    threshold: float = 4.0,
) -> VocabularyChannels:
    r"""Take neurons apart into directions that each say a few tokens very clearly.

    A channel of a neuron's weight w is a direction r of w's length that stays near w and whose scores have heavy tails:

    .. math:: \max_{|r| = |w|} \lambda \operatorname{slog} \kappa\big((rE) \circ m\big) - \big(1 - \cos(w, r)\big),
              \qquad \operatorname{slog}(x) = \operatorname{sign}(x) \log(1 + |x|)

    with κ the excess kurtosis over the lens's tokens. The mask m is 1e-4 on tokens with very long embeddings (the longest
    1 %) and 0.01 on the tokens of the neuron's earlier channels, which so find others: those further than `threshold`
    standard deviations from the mean, on one side alone where |skew| > 10. A channel in which no token stands out is a
    neuron's last. Objective and masks are the original's; the optimiser is not (`kurtosis.climb`).

    Tokens that training hardly saw lie far out, and are what a channel finds first. Read a lens with a vocabulary of words.

    Args:
        lens: The model's lens; its tokens, space and score are what is read.
        layer: Which blocks; all of them by default.
        neuron: Which neurons of each.
        expert: Which experts of a mixture; −1 for what every token passes.
        weight: `"W_out"`, `"W_in"` or `"W_gate"`.
        n_channels: How many channels of each neuron at most; the original takes up to 50.
        k: How many tokens to show of each.
        kurtosis_weight: λ.
        threshold: How many standard deviations make a token stand out; the original uses 4 or 6.

    Returns:
        A `VocabularyChannels`, with the tables `channels` and `tokens`, and the `directions`.

    Raises:
        EmbspaceError: If the model has no such layer, neuron or weight, or an option makes no sense.

    Example:
        >>> found = vocabulary_channels(lens, layer=0, neuron=[3, 5], n_channels=2, k=4)
        >>> found.directions.shape == (len(found.channels), lens.weights.d_model)
        True

    References:
        Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space. https://arxiv.org/abs/2604.06005
    """
    (weight,) = weight_names([weight], MLP) or [weight]
    k = check_k(k, lens.space.n_tokens)
    if isinstance(n_channels, bool) or not isinstance(n_channels, int | np.integer) or n_channels < 1:
        raise errors.EmbspaceError(f"n_channels={n_channels!r} is not a positive number of channels.")
    if not (threshold > 0 and kurtosis_weight > 0):
        raise errors.EmbspaceError(
            f"threshold={threshold!r} and kurtosis_weight={kurtosis_weight!r} must be above zero."
        )
    search = _Search(lens, weight, int(n_channels), k, kurtosis_weight, threshold)
    units = _units(lens, layer, neuron, expert, weight)
    keys = ["layer", *(["expert"] if lens.weights.has_experts else []), "neuron", "weight", "channel"]
    blocks: list[tuple[dict[str, Any], dict[str, Any], Tensor]] = []
    with tqdm(total=sum(len(n) for _, _, n in units), desc="channels", unit="neuron", disable=None, leave=False) as bar:
        for number, one, neurons in units:
            vectors = lens.weights.directions(weight, number, one)
            for part in np.array_split(neurons, -(-len(neurons) // search.at_once)):
                block = search(vectors[torch.as_tensor(part, device=vectors.device)])
                at = {"layer": number, "expert": one, "weight": weight}
                blocks.append(_rows(block, part, k, at))
                bar.update(len(part))
    values = ["similarity", "kurtosis", "skew", "explained", "objective", "n_tokens"]
    return VocabularyChannels(
        lens.name,
        weight,
        tidy([*keys, *values], (channels for channels, _, _ in blocks)),
        tidy(
            [*keys, "rank", "token_index", "token_string", "score"],
            (tokens for _, tokens, _ in blocks),
            lens.vocabulary.array,
        ),
        torch.cat([directions for _, _, directions in blocks] or [torch.zeros(0, lens.weights.d_model)]),
    )


def _units(
    lens: EmbeddingLens, layer: Select, neuron: Select, expert: Select, weight: str
) -> list[tuple[int, int, np.ndarray]]:
    """Layer, expert and the chosen neurons of each MLP that there is to read."""
    mlps = lens.weights.mlps(layer, expert)
    widths = [lens.weights.d_mlp(*mlp) for mlp in mlps]
    chosen = select("neuron", neuron, max(widths, default=0), lens.name, "neurons in its widest MLP")
    units = [(*mlp, np.array([n for n in chosen if n < width], dtype=int)) for mlp, width in zip(mlps, widths)]
    return [(layer, expert, neurons) for layer, expert, neurons in units if len(neurons)]


class _Search:
    """Finds the channels of a batch of neurons, one after another."""

    def __init__(
        self, lens: EmbeddingLens, weight: str, n_channels: int, k: int, kurtosis_weight: float, threshold: float
    ) -> None:
        self.space, self.side = lens.space, side_of(weight)
        self.rows = self.space.rows(self.side)
        pinv = self.space.inverse == "pinv" and self.side == "read"
        self.inverse = self.rows.inverse_gram if pinv else None  # symmetric: its own transpose
        self.n_channels, self.k = n_channels, k
        self.kurtosis_weight, self.threshold = kurtosis_weight, threshold
        lengths = torch.cat([tile.norm(dim=1) for tile in self.rows.tiles()])
        self.unit = lengths.mean().clamp(min=torch.finfo(lengths.dtype).tiny)  # keeps fourth powers in range
        self.mask = torch.ones_like(lengths)
        self.mask[long_rows(lengths, LONG)] = LONG_MASK
        self.at_once = max(1, SCORE_BYTES // (lengths.element_size() * len(lengths)))

    def _project(self, x: Tensor) -> Tensor:
        x = x if self.inverse is None else x @ self.inverse.to(x)
        return self.rows.scores(x) / self.unit

    def _back(self, scores: Tensor) -> Tensor:
        x = self.rows.combine(scores) / self.unit
        return x if self.inverse is None else x @ self.inverse.to(x)

    def _scores(self, directions: Tensor, tokens: Tensor) -> Tensor:
        """The lens's score of a few tokens for each direction."""
        x = self.space.vectors(directions, self.side)
        rows = self.rows[tokens.flatten()].view(*tokens.shape, -1)
        return (rows * x[:, None]).sum(-1)

    @torch.no_grad()
    def __call__(self, vectors: Float[Tensor, "n d_model"]) -> dict[str, Tensor]:
        """Every value of each neuron's channels, `[n, n_channels, …]`, and which of them there are."""
        w = vectors.to(device=self.rows.device, dtype=torch.promote_types(self.rows.dtype, vectors.dtype))
        mask = self.mask.to(w).repeat(len(w), 1)
        lengths, going = w.norm(dim=1), torch.ones(len(w), dtype=torch.bool, device=w.device)
        found: list[dict[str, Tensor]] = []
        for _ in range(self.n_channels):
            u = climb(w, mask, self._project, self._back, kurtosis_weight=self.kurtosis_weight)
            c = centred(self._project(u) * mask)
            marked, skew = stand_out(c, self.threshold)
            marked &= mask == 1
            similarity = (u * torch.nn.functional.normalize(w, dim=1)).sum(1)
            kurtosis = excess_kurtosis(c)
            top = (c * torch.where(skew < 0, -1, 1)[:, None]).topk(self.k, dim=1).indices
            found.append(
                {
                    "found": going.clone(),
                    "direction": u * lengths[:, None],
                    "similarity": similarity,
                    "kurtosis": kurtosis,
                    "skew": skew,
                    "objective": objective(kurtosis, similarity, self.kurtosis_weight),
                    "n_tokens": marked.sum(1),
                    "token_index": self.space.token_ids.to(top.device)[top],
                    "score": self._scores(u * lengths[:, None], top),
                }
            )
            going &= marked.any(dim=1)
            if not going.any():
                break
            mask[marked] = TAKEN_MASK
        block = {name: torch.stack([values[name] for values in found], dim=1).cpu() for name in found[0]}
        block["explained"] = _explained(block["direction"], w.cpu())
        return block


def _explained(directions: Float[Tensor, "n n_channels d_model"], w: Float[Tensor, "n d_model"]) -> Tensor:
    """The share of each w's squared length that lies in the span of its channels up to each."""
    unit = torch.nn.functional.normalize(w, dim=1)
    basis = torch.linalg.qr(directions.transpose(1, 2))[0]  # no more columns than d_model
    share = torch.einsum("nd,ndc->nc", unit, basis).square().cumsum(dim=1).clamp(max=1)
    return torch.nn.functional.pad(share, (0, directions.shape[1] - share.shape[1]), value=1.0)


def _rows(
    block: dict[str, Tensor], neurons: np.ndarray, k: int, at: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    """Blocks of both tables, and the directions, of the channels that there are."""
    keep = block.pop("found")
    number, channel = (index.numpy() for index in keep.nonzero(as_tuple=True))
    keys = {"neuron": neurons[number], "channel": channel}
    kept = {name: values[keep] for name, values in block.items()}
    tokens = {name: kept.pop(name).flatten() for name in ("token_index", "score")}
    tokens |= {name: np.repeat(values, k) for name, values in keys.items()}
    directions = kept.pop("direction")

    def named(columns: dict[str, Any], n: int) -> dict[str, Any]:
        return columns | {name: [value] * n for name, value in at.items()}

    return (
        named(kept | keys, len(number)),
        named(tokens | {"rank": np.tile(np.arange(k), len(number))}, len(number) * k),
        directions,
    )
