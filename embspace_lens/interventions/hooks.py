"""Rows of any table as interventions on a forward pass, and the activations of exactly those rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations as run_activations
from ..space.embeddings import as_tensor
from ..tables.frames import tidy
from ..weights.configuration import device_of
from ..weights.effective import Weights
from ..weights.hook_points import stream_hook
from .targets import Site, keys_of, sites, units_of

MODES = ("zero", "mean")
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
Hooks = list[tuple[str, Callable[..., Any]]]
"""What `run_with_hooks` takes as `fwd_hooks`."""


def ablation_hooks(
    df: pd.DataFrame, mode: Any = "zero", *, model: Any, vectors: Any = None, positions: Any = None
) -> Hooks:
    r"""Turn the units that a table names off, in forward passes of the model.

    With activations :math:`a` of the units (a neuron's after its activation function, a head's z, a sub-head's entry of q, k, v
    or z, a direction's coordinate of the residual stream after the block),

    .. math:: a \leftarrow 0, \qquad a \leftarrow \bar a, \qquad a \leftarrow \text{the values given}

    Args:
        df: Any table with `layer` and `neuron`, `head`, `head` and `subhead` (with `weight`), `direction` or `factor`. Units are
            taken once, however many rows they have.
        mode: `"zero"`; `"mean"` over all positions of all examples of the very forward pass; or a tensor of values, for the
            distinct units in the order of their keys: `[n_units]` (`[n_units, d_head]` for heads), with batch and position in front
            if they vary, or a single number. `activations` gives the mean over a corpus.
        model: The TransformerBridge or HookedTransformer that will run.
        vectors: For directions and factors: a mapping from their names to vectors, or a tensor whose rows they number.
        positions: Where to intervene, counted from 0 (from the end if negative); everywhere by default.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`. Nothing is left on the model.

    Raises:
        EmbspaceError: If the table names no unit of this model, if the host has no hook point at which an edit of it takes effect
            (neurons of a bridge's mixture of experts), or if values do not fit.

    Example:
        >>> hooks = ablation_hooks(lens.neurons(layer=0, neuron=[3, 5]), model=model)
        >>> [name for name, _ in hooks]
        ['blocks.0.mlp.hook_post']

    References:
        Wang et al. (2023), Interpretability in the Wild, §2.2 (mean ablation). https://arxiv.org/abs/2211.00593
    """
    if isinstance(mode, str) and mode not in MODES:
        raise errors.choice("mode", mode, MODES)
    values = None if isinstance(mode, str) else as_tensor(mode, "mode")

    def edit(site: Site, value: Tensor) -> Tensor:
        x = site.read(value)
        if values is not None:
            if values.ndim and site.shares(value):
                raise errors.EmbspaceError(
                    f"mode gives several values to one: query heads share key and value heads at {site.hook}. Name one head of a group."
                )
            own = _for_site(values, site).to(x)
            try:
                return own.expand_as(x)
            except RuntimeError as reason:
                raise errors.EmbspaceError(
                    f"mode has shape {tuple(own.shape)}, which does not fit {tuple(x.shape)} at {site.hook}."
                ) from reason
        if mode == "zero":
            return torch.zeros_like(x)
        leading = tuple(range(x.ndim - (2 if site.kind == "head" else 1)))
        return x.mean(dim=leading, keepdim=True).expand_as(x)

    found, n_units = _sites(model, df, vectors)
    if values is not None:
        _check_values(values, found, n_units)
    return [_hook(site, edit, positions) for site in found]


def scaling_hooks(df: pd.DataFrame, factor: float, *, model: Any, vectors: Any = None, positions: Any = None) -> Hooks:
    r"""Multiply the activations of the units that a table names.

    .. math:: a \leftarrow c\, a

    Args:
        df: As for `ablation_hooks`.
        factor: c; 1 changes nothing, 0 is zero ablation, −1 turns a unit round.
        model: The model that will run.
        vectors: As for `ablation_hooks`.
        positions: As for `ablation_hooks`.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`.

    Raises:
        EmbspaceError: As `ablation_hooks`; or if the factor is no finite number.

    Example:
        >>> hooks = scaling_hooks(lens.ov(layer=1, head=2, k=1), 0.5, model=model)
        >>> [name for name, _ in hooks]
        ['blocks.1.attn.hook_z']
    """
    scale = _number("factor", factor)
    return [
        _hook(site, lambda site, value: site.read(value) * scale, positions) for site in _sites(model, df, vectors)[0]
    ]


def steering_hooks(
    vectors: Any,
    layer: int | Sequence[int],
    *,
    model: Any,
    scale: float = 1.0,
    hook: str = "hook_resid_post",
    positions: Any = None,
) -> Hooks:
    r"""Add vectors to the residual stream.

    .. math:: x_\mathrm{layer} \leftarrow x_\mathrm{layer} + c\, v

    Args:
        vectors: `[d_model]`, added at each of the layers; or `[n_layers, d_model]`, one for each. Rows of `weights.W_out(layer)`,
            of an SAE's decoder, of `Factors.directions` or of a difference of means.
        layer: After which blocks; −1 is the embedding.
        model: The model that will run.
        scale: c.
        hook: `"hook_resid_post"`, the stream after the block; or `"hook_resid_pre"`, `"hook_resid_mid"`, `"hook_attn_out"`,
            `"hook_mlp_out"` of the block.
        positions: As for `ablation_hooks`.

    Returns:
        Pairs of hook point and function, for `model.run_with_hooks(tokens, fwd_hooks=…)`.

    Raises:
        EmbspaceError: If vectors or layers do not fit, or if edits at the hook point would be lost: `"hook_resid_mid"` of a
            TransformerBridge reaches the MLP alone.

    Example:
        >>> hooks = steering_hooks(lens.weights.W_out(0)[3], 0, model=model, scale=4)
        >>> [name for name, _ in hooks]
        ['blocks.1.hook_resid_pre']

    References:
        Turner et al. (2023), Steering Language Models With Activation Engineering. https://arxiv.org/abs/2308.10248
    """
    if hook not in STREAM:
        raise errors.choice("hook", hook, STREAM)
    weights = Weights(model)
    layers = _numbers_of_blocks(layer)
    added = as_tensor(vectors, "vectors") * _number("scale", scale)
    added = added.expand(len(layers), -1) if added.ndim == 1 else added
    if added.ndim != 2 or len(added) != len(layers):
        raise errors.EmbspaceError(
            f"vectors have shape {tuple(added.shape)} for {len(layers)} layers; give [d_model], or one row for each layer."
        )
    if added.shape[1] != weights.d_model:
        raise errors.bad_width(added.shape[1], weights.name, weights.d_model)
    if not torch.isfinite(added).all():
        raise errors.not_finite("the vectors given")

    def at(vector: Tensor) -> Callable[..., Tensor]:
        return lambda value, hook: _where(positions, value, value + vector.to(value))

    return [(stream_hook(weights, one, hook), at(vector)) for one, vector in zip(layers, added, strict=True)]


@torch.no_grad()
def activations(
    model: Any, tokens: Any, df: pd.DataFrame, *, vectors: Any = None, batch_tokens: int = 8192
) -> pd.DataFrame:
    r"""Measure how active exactly the units of a table are on a text, token by token.

    A neuron's activation is what its W_out row is multiplied by; a sub-head's its entry of q, k, v or z; a direction's the
    coordinate :math:`x \cdot v / |v|` of the residual stream after the block; a head's, having d_head numbers, the length
    :math:`|z W_O|` of what it writes, in front of a norm or a factor that the model has between it and the residual stream.

    Args:
        model: A TransformerBridge or a HookedTransformer.
        tokens: Ids `[batch, pos]` or `[pos]`, all of them counted; or texts, of which their own tokens are.
        df: As for `ablation_hooks`.
        vectors: As for `ablation_hooks`.
        batch_tokens: About how many tokens run at once.

    Returns:
        One row per (the table's keys, example, pos), with `activation`; the keys are those of `layer`, `expert`, `head`, `neuron`,
        `subhead`, `weight`, `direction` and `factor` that the table has, so that the two merge on them.

    Raises:
        EmbspaceError: As `ablation_hooks`; or if tokens are neither ids nor texts.

    Example:
        >>> found = activations(model, torch.tensor([[5, 6, 7]]), lens.neurons(layer=0, neuron=3, weight="W_out", k=1))
        >>> found[["neuron", "pos"]].values.tolist()
        [[3, 0], [3, 1], [3, 2]]
    """
    keys = keys_of(df)
    units = units_of(keys)
    distinct = list(dict.fromkeys(units))
    found = sites(model, distinct, vectors)
    lengths = {site.hook: _head_forms(model, site) for site in found if site.kind == "head"}
    columns = [*keys.columns, "example", "pos", "activation"]
    parts: list[Tensor] = []
    places: list[Tensor] = []
    with tqdm(desc="activations", unit="token", unit_scale=True, disable=None, leave=False) as bar:
        for batch in _batches(model, tokens, batch_tokens) if found else ():
            passed = run_activations(model, batch, [site.hook for site in found])
            own = batch.mask.to(device_of(model))
            block = torch.empty(len(distinct), int(batch.mask.sum()))
            for site in found:
                if passed[site.hook].shape[:2] != own.shape:
                    raise errors.unsupported(
                        f"Activations at {site.hook}",
                        "an expert sees the tokens routed to it alone, without their places",
                    )
                x = site.read(passed[site.hook])[own].float()
                if site.kind == "head":
                    x = torch.einsum("thd,hde,the->th", x, lengths[site.hook], x).clamp(min=0).sqrt()
                block[site.numbers] = x.T.cpu()
            parts.append(block)
            places.append(torch.stack([batch.example[:, None].expand_as(batch.tokens), batch.own_pos])[:, batch.mask])
            bar.update(block.shape[1])
    if not parts:
        return tidy(columns, [])
    table, (example, pos) = torch.cat(parts, dim=1).numpy(), torch.cat(places, dim=1).numpy()
    order = np.lexsort((pos, example))
    number = {unit: i for i, unit in enumerate(distinct)}
    rows = np.array([number[unit] for unit in units])
    block = {name: np.repeat(keys[name].to_numpy(), len(order)) for name in keys.columns}
    block |= {"example": np.tile(example[order], len(keys)), "pos": np.tile(pos[order], len(keys))}
    return tidy(columns, [block | {"activation": table[rows][:, order].ravel()}])


def _sites(model: Any, df: pd.DataFrame, vectors: Any) -> tuple[list[Site], int]:
    units = list(dict.fromkeys(units_of(keys_of(df))))
    return sites(model, units, vectors), len(units)


def _hook(site: Site, edit: Callable[[Site, Tensor], Tensor], positions: Any) -> tuple[str, Callable[..., Any]]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        return _where(positions, value, site.write(value, edit(site, value)))

    return site.hook, hook


def _where(positions: Any, value: Tensor, edited: Tensor) -> Tensor:
    """The edited value at the positions, the old one elsewhere."""
    if positions is None:
        return edited
    if value.ndim < 3:
        raise errors.EmbspaceError("positions cannot be told in an expert, which sees the tokens routed to it alone.")
    chosen = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
    try:
        chosen[positions if isinstance(positions, slice) else torch.as_tensor(positions).reshape(-1)] = True
    except (IndexError, TypeError, ValueError, RuntimeError) as reason:
        raise errors.EmbspaceError(f"positions={positions!r} are not places among {value.shape[1]} tokens.") from reason
    return torch.where(chosen.view(1, -1, *[1] * (value.ndim - 2)), edited, value)


def _check_values(values: Tensor, found: list[Site], n_units: int) -> None:
    """Refuse values whose shape cannot be one for each unit."""
    if not torch.isfinite(values).all():
        raise errors.not_finite("the values given as mode")
    if values.ndim == 0:
        return
    kinds = {site.kind == "head" for site in found}
    axis = -2 if kinds == {True} else -1
    if len(kinds) > 1 or values.ndim < -axis or values.shape[axis] != n_units:
        shape = f"[{n_units}, d_head]" if axis == -2 else f"[{n_units}]"
        raise errors.EmbspaceError(
            f"mode has shape {tuple(values.shape)} for {n_units} units; give {shape} (batch and position may stand in front), or one "
            "number. Heads and other units need a call each."
        )


def _for_site(values: Tensor, site: Site) -> Tensor:
    """The values of one site's units."""
    return (
        values
        if values.ndim == 0
        else values.index_select(-2 if site.kind == "head" else -1, torch.tensor(site.numbers))
    )


def _numbers_of_blocks(layer: Any) -> list[int]:
    given = layer.tolist() if hasattr(layer, "tolist") else layer  # tensors, arrays and their scalars
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for one in given:
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise errors.EmbspaceError(
                f"layer={one!r} is not the number of a block; give one, or several (−1 is the embedding)."
            )
    return [int(one) for one in given]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as reason:
        raise errors.EmbspaceError(f"{name}={value!r} is not a number.") from reason
    if not np.isfinite(number):
        raise errors.EmbspaceError(f"{name}={value!r} is not a finite number.")
    return number


def _head_forms(model: Any, site: Site) -> Float[Tensor, "n d_head d_head"]:
    """W_O W_Oᵀ of each head: z G zᵀ is the squared length of what a head adds, in front of any norm behind it."""
    weights = Weights(model)
    layer = int(site.hook.split(".")[1])
    W_O = weights.stored("W_O", layer)[site.place[0].to(device_of(model))].float()
    return W_O @ W_O.transpose(-1, -2)


def _batches(model: Any, tokens: Any, batch_tokens: int) -> Iterator[TokenBatch]:
    """Ids as they are, or texts."""
    if isinstance(tokens, str):
        tokens = [tokens]
    first = tokens[0] if isinstance(tokens, list | tuple) and tokens else None
    if isinstance(first, str) or (
        isinstance(tokens, Iterable) and not isinstance(tokens, Tensor | np.ndarray | list | tuple)
    ):
        yield from token_batches(model, tokens, batch_tokens=batch_tokens)
        return
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise errors.EmbspaceError(f"tokens cannot be made a tensor of ids: {reason}") from reason
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise errors.EmbspaceError(
            f"tokens are {ids.dtype} of shape {tuple(ids.shape)}; give ids [batch, pos], or a list of texts."
        )
    weights = Weights(model)
    d_vocab, n_ctx = weights.d_vocab, len(weights.W_pos) if weights.has_positions else ids.shape[1]
    if ids.shape[1] > n_ctx:
        raise errors.EmbspaceError(
            f"tokens are {ids.shape[1]} long, and the model has positions for {n_ctx}. Cut them."
        )
    for worst in (ids.min().item(), ids.max().item()) if ids.numel() else ():
        if not 0 <= worst < d_vocab:
            raise errors.EmbspaceError(f"Token {worst} is out of range: the model has tokens 0 to {d_vocab - 1}.")
    n, width = ids.shape
    for some in torch.arange(n).split(max(1, batch_tokens // max(width, 1))):
        part = ids[some].long()
        nought = torch.zeros(len(some), dtype=torch.long)
        yield TokenBatch(some, nought, part, torch.ones_like(part, dtype=torch.bool), nought + width)
