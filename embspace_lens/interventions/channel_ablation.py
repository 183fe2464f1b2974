"""What becomes of the logits when a vocabulary channel is taken out of what a neuron writes."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .. import errors
from ..circuits.channels import VocabularyChannels
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations, logits
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..weights.hook_points import stream_hook
from .targets import Unit, sites

LOGIT_BYTES = 2**27  # of logits made at a time


@torch.no_grad()
def channel_effects(
    lens: EmbeddingLens,
    found: VocabularyChannels,
    texts: Iterable[str],
    *,
    n_active: int = 20,
    seed: int = 0,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    r"""Take each channel out of its neuron, and see whose logits move: those of its own tokens, or of others.

    A neuron of activation a writes a w (times the factor that some models have behind their MLPs). Without its channel r it writes

    .. math:: a\,\big(w - (w \cdot \hat r)\,\hat r\big), \qquad \hat r = r / |r|

    at every token of a text. The effect on a token is by how much its logit moves, less the mean move of all the lens's
    tokens, in size, at the last token of the beginnings of texts where the neuron is most active.

    Args:
        lens: The lens that found the channels; its model runs.
        found: Channels of W_out.
        texts: Any texts; from each, a neuron takes the one place where it is most active.
        n_active: How many such places count for a neuron.
        seed: Of the random tokens.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text in tokens; the model's context by default.

    Returns:
        One row per (layer, neuron, weight, channel, sample), in a mixture of experts with `expert`, with `moved`: the mean effect on the
        channel's `"own"` tokens, on the tokens of the neuron's `"other"` channels, and on as many `"random"` ones as its own;
        `low` and `high`, its 95 % interval over places, and `n`, their number. `moved` is missing where there is no other.

    Raises:
        EmbspaceError: If the channels are not W_out's, a norm stands behind the MLP, or the texts have no token.

    Example:
        >>> found = vocabulary_channels(lens, layer=0, neuron=3, n_channels=2, k=4)
        >>> channel_effects(lens, found, ["w2 w3 w4", "w5 w6"])["sample"].tolist()
        ['other', 'own', 'random', 'other', 'own', 'random']

    References:
        Avrahamy, Gur-Arieh & Geva (2026), Disentangling MLP Neuron Weights in Vocabulary Space. https://arxiv.org/abs/2604.06005
    """
    if found.weight != "W_out":
        raise errors.EmbspaceError(
            f"These are channels of {found.weight}; only those of W_out are written, and can be left out."
        )
    if isinstance(n_active, bool) or not isinstance(n_active, int | np.integer) or n_active < 2:
        raise errors.EmbspaceError(f"n_active={n_active!r} is not a number of places from 2 on.")
    keys = [name for name in ("layer", "expert", "neuron") if name in found.channels]
    numbers = found.channels[keys].drop_duplicates().to_numpy().tolist()
    neurons = [dict(zip(keys, row, strict=True)) for row in numbers]
    for layer in {row["layer"] for row in neurons}:
        if norm := lens.weights.norm("W_out", layer).name:
            raise errors.unsupported(
                f"The effect of channels in block {layer} of {lens.name}",
                f"{norm} stands behind the MLP, and what a neuron adds depends on all the others",
            )
    places = _most_active(lens, neurons, texts, int(n_active), batch_tokens, max_tokens)
    generator = torch.Generator().manual_seed(seed)

    def blocks() -> Iterator[dict[str, Any]]:
        for row, rows in zip(tqdm(neurons, desc="channel effects", unit="neuron", disable=None, leave=False), places):
            at, mine = _of(found.channels, row), _of(found.tokens, row)
            channels = found.channels["channel"].to_numpy()[at]
            own = found.tokens["token_index"].to_numpy()[mine].reshape(len(channels), -1)
            unit = Unit("neuron", row["layer"], expert=row.get("expert", -1), neuron=row["neuron"])
            moved = _moved(lens, unit, rows, found.directions[torch.tensor(at)])
            for i, channel in enumerate(channels):
                others = np.setdiff1d(np.delete(own, i, axis=0), own[i])
                random = _random(lens, own[i], generator)
                for sample, tokens in zip(("other", "own", "random"), (others, own[i], random), strict=True):
                    yield row | {"channel": channel, "sample": sample, "weight": ["W_out"]} | _mean(moved[i], tokens)

    columns = [*keys, "weight", "channel", "sample", "moved", "low", "high", "n"]
    return tidy(columns, blocks())


def _of(table: pd.DataFrame, row: dict[str, int]) -> np.ndarray:
    """Which rows of a table are a neuron's."""
    return np.logical_and.reduce([table[name].to_numpy() == value for name, value in row.items()])


def _mean(moved: Float[Tensor, "n d_vocab"], tokens: np.ndarray) -> dict[str, Any]:
    """The mean over places of the mean effect on the tokens, with its interval."""
    each = moved[:, torch.tensor(tokens)].mean(dim=1).double()
    half = 1.96 * each.std() / len(each) ** 0.5
    return {
        "moved": each.mean().item(),
        "low": (each.mean() - half).item(),
        "high": (each.mean() + half).item(),
        "n": len(each),
    }


def _random(lens: EmbeddingLens, own: np.ndarray, generator: torch.Generator) -> np.ndarray:
    ids = lens.space.token_ids
    ids = ids[~torch.isin(ids, torch.tensor(own))]
    return ids[torch.randperm(len(ids), generator=generator)[: len(own)]].numpy()


def _most_active(
    lens: EmbeddingLens,
    neurons: list[dict[str, int]],
    texts: Iterable[str],
    n_active: int,
    batch_tokens: int,
    max_tokens: int | None,
) -> list[list[Tensor]]:
    """For each neuron the beginnings of texts, up to the token where it is most active in size."""
    model = lens.model
    units = [Unit("neuron", row["layer"], expert=row.get("expert", -1), neuron=row["neuron"]) for row in neurons]
    where = sites(model, units)
    best: list[list[tuple[float, Tensor]]] = [[] for _ in units]
    for batch in token_batches(model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
        passed = collect_activations(model, batch, [site.hook for site in where])
        for site in where:
            if passed[site.hook].ndim != 3:
                raise errors.unsupported(f"Activations at {site.hook}", "an expert sees the tokens routed to it alone")
            size = site.read(passed[site.hook]).abs().cpu().masked_fill(~batch.mask[:, :, None], -1)
            value, pos = size.max(dim=1)
            for number, values, places in zip(site.numbers, value.T, pos.T, strict=True):
                top = values.topk(min(n_active, len(values))).indices.tolist()
                best[number] += [(values[i].item(), batch.tokens[i, : places[i] + 1].cpu()) for i in top]
                best[number] = sorted(best[number], key=lambda one: -one[0])[:n_active]
    if any(len(rows) < 2 for rows in best):
        raise errors.EmbspaceError("There are fewer than two texts with a token; give more.")
    return [[row for _, row in rows] for rows in best]


def _moved(
    lens: EmbeddingLens, unit: Unit, rows: list[Tensor], directions: Float[Tensor, "n_channels d_model"]
) -> Float[Tensor, "n_channels n d_vocab"]:
    """By how much each token's logit moves, less the lens's tokens' mean, without each channel."""
    model, weights = lens.model, lens.weights
    (site,) = sites(model, [unit])
    w = weights.directions("W_out", unit.layer, unit.expert)[unit.neuron]
    away = normalize(directions.to(w), dim=1)
    away = away * (away @ w)[:, None] * weights.residual_multiplier
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    number = torch.arange(len(rows))
    batch = TokenBatch(number, torch.zeros_like(number), tokens, tokens >= 0, length)
    at_once = max(1, LOGIT_BYTES // (4 * len(rows) * tokens.shape[1] * lens.space.d_vocab))

    def last_logits(some: Tensor) -> Tensor:
        """Logits at the rows' ends, `[n_some, n, d_vocab]`, each channel of some left out."""
        held: list[Tensor] = []
        copies = torch.arange(len(rows)).repeat(len(some))
        many = TokenBatch(*(getattr(batch, name)[copies] for name in batch.__dataclass_fields__))

        def keep(value: Tensor, hook: Any) -> None:
            held[:] = [site.read(value)]

        def leave_out(value: Tensor, hook: Any) -> Tensor:
            each = some.to(value).repeat_interleave(len(rows), dim=0)
            return value - held[0] * each[:, None]

        hooks = [(site.hook, keep), (stream_hook(weights, unit.layer, "hook_mlp_out"), leave_out)]
        made = logits(model, many, hooks=hooks)
        return made[torch.arange(len(made)), many.length - 1].float().view(len(some), len(rows), -1).cpu()

    clean = last_logits(torch.zeros_like(away[:1]))
    moved = torch.cat([clean - last_logits(some) for some in away.split(at_once)])
    read = moved[..., lens.space.token_ids]
    return (moved - read.mean(dim=-1, keepdim=True)).abs()
