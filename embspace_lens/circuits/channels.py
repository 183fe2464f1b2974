"""Vocabulary channels (ROTATE): sparse directions near a neuron's weight, computed one after another."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.checks import check_choice, check_integer, check_k, check_number
from ..tables.frames import tidy
from ..tables.selection import Select, select
from ..weights.parameter_names import MLP, Side, side_of
from .kurtosis import CANDIDATES, Candidate, centred, excess_kurtosis, long_rows, maximize_kurtosis, objective, outliers

LONG_QUANTILE, LONG_MASK = 0.99, 1e-4  # mask of the tokens with the longest embeddings
EARLIER_MASK = 0.01  # mask of the tokens of a neuron's earlier channels
VALUES = ("similarity", "kurtosis", "skew", "explained", "objective", "n_tokens")


@dataclass(frozen=True, eq=False, repr=False)
class VocabularyChannels:
    """The vocabulary channels of neurons.

    Attributes:
        name: The model's name.
        weight: The weight of the neurons that was read.
        channels: One row per (layer, neuron, weight, channel), in a mixture of experts with `expert`, with `similarity` (cosine
            with the neuron), `kurtosis` and `skew` of its scores without the mask, `explained` (share of the neuron's squared
            length in the span of its channels up to this one), `objective` and `n_tokens` (the number of outlier tokens).
        tokens: One row per (layer, neuron, weight, channel, rank), with `token_index`, `token_string` and the lens's `score`.
            Tokens come from the side of the heavier tail; if a channel suppresses tokens, their scores are negative.
        directions: One residual vector per row of `channels`, with the neuron's norm.
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
    candidate: Candidate = "kurtosis",
) -> VocabularyChannels:
    r"""Decompose neurons into directions that each promote or suppress a few tokens strongly.

    A channel of a neuron's weight w is a direction r of w's length that is close to w and whose scores have heavy tails:

    .. math:: \max_{|r| = |w|} \lambda \operatorname{slog} \kappa\big((rE) \circ m\big) - \big(1 - \cos(w, r)\big),
              \qquad \operatorname{slog}(x) = \operatorname{sign}(x) \log(1 + |x|)

    where κ is the excess kurtosis over the lens's tokens. The mask m is 1e-4 for the tokens with the longest 1 % of
    embeddings, 0.01 for the outlier tokens of the neuron's earlier channels, and 1 for all others. Outliers are tokens whose
    score without the mask lies more than `threshold` standard deviations from the mean; where |skew| > 10, only the longer
    tail counts. A channel without outliers masks nothing, so the next channel is equal to it.

    Objective, masks and the choice among candidates are those of the authors' code. Four things differ:

    - The optimiser: conjugate gradients from two starting points (`circuits.kurtosis`) instead of AdamW on a learned Householder
      reflection of w. The candidates are the two local maxima; the original's are every hundredth step of AdamW.
    - The space is that of the lens. The original projects all three weights through W_U (through W_E in the first blocks of
      Llama): use a lens with `space="unembed"`.
    - Norms are folded as in the lens. The original reads the weights as stored: use a lens with `fold_ln=False`.
    - The tokens are those of the lens. The original leaves out a list of under-trained tokens of Gemma, and reads all others.

    Under-trained tokens are outliers of most directions, so they fill the first channels. Use a lens with a vocabulary of
    words.

    Args:
        lens: The model's lens; its tokens, space and score are used.
        layer: Which blocks; all by default.
        neuron: Which neurons of each block; all by default.
        expert: Which experts of a mixture; −1 for dense and shared MLPs.
        weight: `"W_out"`, `"W_in"` or `"W_gate"`.
        n_channels: The number of channels of each neuron; the paper uses 50.
        k: The number of tokens listed for each channel.
        kurtosis_weight: λ.
        threshold: The number of standard deviations from which a token is an outlier; the paper uses 4 for Gemma, 6 for Llama.
        candidate: Which of the optimiser's two results is the channel: the one with the larger absolute `"kurtosis"` of its
            scores without the mask, as in the original; or the one with the larger `"objective"`.

    Returns:
        A `VocabularyChannels`, with the tables `channels` and `tokens`, and the `directions`.

    Raises:
        EmbspaceError: If the model has no such layer, neuron or weight, or an option is out of range.

    Example:
        >>> result = vocabulary_channels(lens, layer=0, neuron=[3, 5], n_channels=2, k=4)
        >>> result.directions.shape == (len(result.channels), lens.weights.d_model)
        True

    References:
        Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space. https://arxiv.org/abs/2604.06005
        Their code: https://github.com/AsafAvr/rotating-neurons, `docs/method.md` and `rotate/pursuit.py`.
    """
    weight = check_choice("weight", weight, MLP)
    k = check_k(k, lens.space.n_tokens)
    search = _ChannelSearch(
        lens,
        side_of(weight),
        check_integer("n_channels", n_channels, minimum=1),
        k,
        check_number("kurtosis_weight", kurtosis_weight, above=0),
        check_number("threshold", threshold, above=0),
        check_choice("candidate", candidate, CANDIDATES),
    )
    keys = ["layer", *lens.expert_column, "neuron", "weight", "channel"]
    channels: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    directions = [torch.zeros(0, lens.weights.d_model, dtype=torch.float32)]
    mlps = _selected_neurons(lens, layer, neuron, expert)
    n_neurons = sum(len(mlp.neurons) for mlp in mlps)
    with tqdm(total=n_neurons, desc="channels", unit="neuron", disable=None, leave=False) as bar:
        for mlp in mlps:
            vectors = lens.weights.directions(weight, mlp.layer, mlp.expert)
            # Twice the usual memory: in every step, each chunk of neurons makes all rows of the embedding again.
            for chunk in chunks(len(mlp.neurons), 4 * lens.space.n_tokens, scale=2.0):
                neurons = mlp.neurons[chunk]
                batch = search(vectors[torch.as_tensor(neurons, device=vectors.device)])
                row, channel = (index.ravel() for index in np.indices((len(neurons), n_channels)))
                values = {name: column.flatten(0, 1) for name, column in batch.items()}
                keys_of_mlp = {"layer": mlp.layer, "expert": mlp.expert, "weight": weight}
                channels.append(keys_of_mlp | {"neuron": neurons[row], "channel": channel} | values)
                tokens.append(
                    keys_of_mlp
                    | {
                        "neuron": np.repeat(neurons[row], k),
                        "channel": np.repeat(channel, k),
                        "rank": np.tile(np.arange(k), len(row)),
                        "token_index": values["token_index"].flatten(),
                        "score": values["score"].flatten(),
                    }
                )
                directions.append(values["direction"])
                bar.update(len(neurons))
    return VocabularyChannels(
        lens.name,
        weight,
        tidy([*keys, *VALUES], channels),
        tidy([*keys, "rank", "token_index", "token_string", "score"], tokens, lens.vocabulary.array, kind="tokens"),
        torch.cat(directions),
    )


class _SelectedNeurons(NamedTuple):
    """The selected neurons of one MLP."""

    layer: int
    expert: int
    neurons: np.ndarray


def _selected_neurons(lens: EmbeddingLens, layer: Select, neuron: Select, expert: Select) -> list[_SelectedNeurons]:
    """The MLPs that have any of the selected neurons."""
    mlps = lens.weights.mlps(layer, expert)
    widths = [lens.weights.d_mlp(*mlp) for mlp in mlps]
    selected = np.array(
        select("neuron", neuron, max(widths, default=0), lens.name, "neurons in its widest MLP"), dtype=int
    )
    neurons = [_SelectedNeurons(*mlp, selected[selected < width]) for mlp, width in zip(mlps, widths)]
    return [mlp for mlp in neurons if len(mlp.neurons)]


class _ChannelSearch:
    """Finds the channels of a batch of neurons, one channel after another."""

    def __init__(
        self,
        lens: EmbeddingLens,
        side: Side,
        n_channels: int,
        k: int,
        kurtosis_weight: float,
        threshold: float,
        candidate: Candidate,
    ) -> None:
        self.space = lens.space
        self.side: Side = side
        self.rows = self.space.rows(side)
        pinv = self.space.inverse == "pinv" and side == "read"
        self.inverse = self.rows.inverse_gram if pinv else None  # symmetric, so it is its own transpose
        self.n_channels, self.k = n_channels, k
        self.kurtosis_weight, self.threshold, self.candidate = kurtosis_weight, threshold, candidate
        lengths = torch.cat([tile.norm(dim=1) for tile in self.rows.tiles()])
        # Scores are divided by the mean length, so that their fourth powers stay in range.
        self.scale = lengths.mean().clamp(min=torch.finfo(lengths.dtype).tiny)
        self.mask = torch.ones_like(lengths)
        self.mask[long_rows(lengths, LONG_QUANTILE)] = LONG_MASK

    def _project(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_tokens"]:
        """Scores over tokens, divided by the mean length of the embeddings."""
        x = x if self.inverse is None else x @ self.inverse.to(x)
        return self.rows.scores(x) / self.scale

    def _combine(self, coefficients: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n d_model"]:
        """The transpose of `_project`."""
        x = self.rows.combine(coefficients) / self.scale
        return x if self.inverse is None else x @ self.inverse.to(x)

    def _scores(self, directions: Float[Tensor, "n d_model"], tokens: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The lens's scores of k tokens for each direction."""
        x = self.space.vectors(directions, self.side)
        rows = self.rows[tokens.flatten()].view(*tokens.shape, -1)
        return (rows * x[:, None]).sum(-1)

    @torch.no_grad()
    def __call__(self, vectors: Float[Tensor, "n d_model"]) -> dict[str, Tensor]:
        """The values of each neuron's channels, `[n, n_channels, …]`."""
        w = vectors.to(device=self.rows.device, dtype=torch.promote_types(self.rows.dtype, vectors.dtype))
        mask = self.mask.to(w).repeat(len(w), 1)
        lengths = w.norm(dim=1)
        channels: list[dict[str, Tensor]] = []
        for _ in range(self.n_channels):
            options: Any = {"kurtosis_weight": self.kurtosis_weight, "candidate": self.candidate}
            u = maximize_kurtosis(w, mask, self._project, self._combine, **options)
            scores = self._project(u)
            c = centred(scores)  # without the mask, as in the original
            is_outlier, skew = outliers(c, self.threshold)
            similarity = (u * normalize(w, dim=1)).sum(1)
            masked_kurtosis = excess_kurtosis(centred(scores * mask))
            top = (c * torch.where(skew < 0, -1, 1)[:, None]).topk(self.k, dim=1).indices
            channels.append(
                {
                    "direction": u * lengths[:, None],
                    "similarity": similarity,
                    "kurtosis": excess_kurtosis(c),
                    "skew": skew,
                    "objective": objective(masked_kurtosis, similarity, self.kurtosis_weight),
                    "n_tokens": is_outlier.sum(1),
                    "token_index": self.space.token_ids.to(top.device)[top],
                    "score": self._scores(u * lengths[:, None], top),
                }
            )
            mask[is_outlier] = EARLIER_MASK
        batch = {name: torch.stack([values[name] for values in channels], dim=1).cpu() for name in channels[0]}
        batch["explained"] = _explained(batch["direction"], w.cpu())
        return batch


def _explained(
    directions: Float[Tensor, "n n_channels d_model"], w: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n n_channels"]:
    """For each channel, the share of w's squared length in the span of the channels up to it."""
    basis = torch.linalg.qr(directions.transpose(1, 2))[0]  # has at most d_model columns
    share = (
        einsum(normalize(w, dim=1), basis, "n d_model, n d_model rank -> n rank").square().cumsum(dim=1).clamp(max=1)
    )
    return torch.nn.functional.pad(share, (0, directions.shape[1] - share.shape[1]), value=1.0)
