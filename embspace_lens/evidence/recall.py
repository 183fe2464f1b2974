"""Recall of hidden states: are the tokens of a state those of the parameters that were active?"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import token_batches
from ..forward.runs import collect_activations
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.checks import check_k
from ..tables.frames import tidy
from ..tables.selection import Select, weight_names
from ..weights.configuration import device_of
from ..weights.effective import MLP, side_of
from ..weights.hook_points import state_hook
from .layer_directions import directions, layers_with
from .token_lists import bootstrap_interval, check_seeds, middle, partners

WEIGHTS = ("W_in", "W_gate", "W_out", "W_V", "W_O")
TARGETS = ("final", "layer")
HOOKS = {"mlp": "mlp.hook_post", "attn": "attn.hook_z"}


@dataclass
class _Seen:
    """What the forward passes leave, token by token: texts, and for hook points the ids that were on top there."""

    example: list[Tensor] = field(default_factory=list)
    top: dict[str, list[Tensor]] = field(default_factory=dict)


def hidden_state_recall(
    lens: EmbeddingLens,
    texts: Iterable[str],
    *,
    weight: Any = None,
    layer: Select = None,
    target: str | Sequence[str] | None = None,
    k: int = 50,
    n_active: int = 5,
    seeds: int = 20,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    r"""Measure how many of a hidden state's top tokens are top tokens of the parameters that were most active there.

    At every token of the texts, the n_active units of largest activation in a block stand for what it did:

    .. math:: R = \frac{1}{k} \left| \operatorname{top}_k(xE) \cap \bigcup_{i \in \mathrm{active}} \operatorname{top}_k(w_i) \right|

    averaged over tokens. x is the output of that block (`"layer"`) or of the last one (`"final"`), read as this lens reads
    what is written: behind the final norm's gain and centring; its bias, the same for every token, is left out. A neuron's
    activation is what W_out's row is multiplied by (`mlp.hook_post`), a sub-head's its entry of z (`attn.hook_z`), for
    W_in and W_V as for W_out and W_O. The control compares each state with the parameters of another token of the texts.

    This runs the model; all else in the package only reads it. What is kept in memory grows with the texts, by some
    (2 n_active + k) numbers a token and layer.

    Args:
        lens: The model, which must have a tokenizer.
        texts: Any texts; longer ones are cut at the model's context.
        weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_V"`, `"W_O"`, or several; all that can be had by default. Activations of
            the experts of a mixture cannot.
        layer: Which blocks; all of them by default.
        target: `"layer"`, `"final"`, or both.
        k: How many tokens of each parameter, and of the state.
        n_active: How many units stand for a block.
        seeds: How many permutations make the control.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text in tokens; the model's context by default.

    Returns:
        One row per (target, layer, weight, sample) with `recall`, `low`, `high` and `n`, the number of tokens. For `sample`
        `"aligned"` the interval is a bootstrap over the texts, missing if there is one alone; for `"permuted"` it holds the
        middle 95 % of the permutations.

    Raises:
        EmbspaceError: If there are no texts or no tokenizer, the model lacks the weight, or fewer than k tokens are read.

    Example:
        >>> found = evidence.hidden_state_recall(lens, ["w2 w3 w4", "w5 w6"], layer=0, weight="W_out", k=5)
        >>> found["target"].tolist()
        ['final', 'final', 'layer', 'layer']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.1. https://arxiv.org/abs/2209.02535
    """
    k, seeds = check_k(k, lens.space.n_tokens), check_seeds(seeds)
    targets = TARGETS if target is None else [target] if isinstance(target, str) else list(target)
    for name in targets:
        if name not in TARGETS:
            raise errors.choice("target", name, TARGETS)
    plan = _plan(lens, layer, weight, n_active)
    last = lens.weights.n_layers - 1
    state_of = {number: state_hook(lens.model, number) for number in {*plan, last}}
    states = {state_of[number] for number in plan if "layer" in targets}
    states |= {state_of[last]} if "final" in targets else set()
    seen = _run(lens, texts, plan, states, k, n_active, batch_tokens, max_tokens)

    example = torch.cat(seen.example)
    orders = [torch.arange(len(example)), *(partners(len(example), seed) for seed in range(seeds))]

    def blocks() -> Iterator[dict[str, Any]]:
        sites = [(number, name) for number, names in plan.items() for name in names]
        for number, name in tqdm(sites, desc="recall", unit="weight", disable=None, leave=False):
            top, place = _top_of_active(lens, name, number, torch.cat(seen.top[_hook(number, name)]), k)
            for which in sorted(set(targets)):
                states = torch.cat(seen.top[state_of[last if which == "final" else number]])
                recalls = _recalls(top, place, states, orders, lens.space.d_vocab)
                keys = {"target": which, "layer": number, "weight": [name] * 2}
                yield _aligned_and_permuted(recalls, example) | keys

    frame = tidy(["target", "layer", "weight", "sample", "recall", "low", "high", "n"], blocks())
    return frame.sort_values(["target", "layer", "weight", "sample"], kind="stable", ignore_index=True)


def _hook(layer: int, weight: str) -> str:
    return f"blocks.{layer}.{HOOKS['mlp' if weight in MLP else 'attn']}"


def _plan(lens: EmbeddingLens, layer: Select, weight: Any, n_active: Any) -> dict[int, list[str]]:
    """Which weights to measure in which block; what the model lacks is left out unless it was asked for by name."""
    weights = lens.weights
    plan: dict[int, list[str]] = {}
    for name in weight_names(weight, WEIGHTS):
        for number in layers_with(lens, name, layer, weight is not None):
            if name not in MLP or len(weights.experts(number)) < 2:
                plan.setdefault(number, []).append(name)
            elif weight is not None:
                raise errors.unsupported(
                    f"{name} of block {number} of {lens.name}",
                    "the activations of a mixture's experts have no hook point; W_V and W_O can be measured",
                )
    if not plan:
        layers_with(lens, "W_O", layer, True)  # says what the model, or this layer of it, is without
    for number, names in plan.items():
        for name in names:
            n_units = weights.d_mlp(number) if name in MLP else weights.W_O(number).shape[:2].numel()
            if isinstance(n_active, bool) or not isinstance(n_active, int | np.integer) or not 1 <= n_active <= n_units:
                raise errors.EmbspaceError(
                    f"n_active={n_active!r} is not between 1 and {n_units:,}, the units of {name} in block {number}."
                )
    return dict(sorted(plan.items()))


@torch.no_grad()
def _run(
    lens: EmbeddingLens,
    texts: Iterable[str],
    plan: dict[int, list[str]],
    states: set[str],
    k: int,
    n_active: int,
    batch_tokens: int,
    max_tokens: int | None,
) -> _Seen:
    """Run the texts once, and keep of every hook point only what was on top: units, or tokens of a state."""
    model = lens.model
    seen = _Seen()
    units = {_hook(number, name) for number, names in plan.items() for name in names}
    # Behind the last state nothing need run: it is fetched, and all else is reduced on its way there.
    layers = [layer for layer in range(lens.weights.n_layers) if state_hook(model, layer) in states]
    end = state_hook(model, max([*layers, *plan]))

    def reduce(name: str, own: Tensor) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            x = value[own.to(value.device)]
            if name in states:
                top = lens.space.top(x, "write", k)[1]
            else:
                top = x.flatten(1).topk(n_active, dim=1).indices
            found[name] = top.cpu().int()

        return hook

    with tqdm(desc="texts", unit="token", unit_scale=True, disable=None, leave=False) as progress:
        for batch in token_batches(model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
            own = batch.mask.to(device_of(model))
            found: dict[str, Tensor] = {}
            hooks = [(name, reduce(name, own)) for name in sorted(units | states)]
            collect_activations(model, batch, [end], hooks=hooks)
            missing = sorted((units | states) - set(found))
            if missing:
                raise errors.EmbspaceError(
                    f"Nothing passed {', '.join(missing)}: {lens.name} does not use that hook point. Choose other weights."
                )
            seen.example.append(batch.example[batch.mask.nonzero()[:, 0]])
            for name, top in found.items():
                seen.top.setdefault(name, []).append(top)
            progress.update(int(own.sum()))
    if not seen.example:
        raise errors.EmbspaceError("texts holds no token: there is nothing to run the model on.")
    return seen


def _top_of_active(
    lens: EmbeddingLens, name: str, layer: int, active: Int[Tensor, "n n_active"], k: int
) -> tuple[Int[Tensor, "used k"], Int[Tensor, "n n_active"]]:
    """The top tokens of each unit that was ever among the active ones, and which of these were, token by token."""
    x = next(directions(lens.weights, name, layer))
    used, place = active.unique(return_inverse=True)
    if int(used[-1]) >= len(x):
        raise errors.unsupported(
            f"{name} of block {layer} of {lens.name}", f"{_hook(layer, name)} is not {len(x)} wide, as the weight is"
        )
    return lens.space.top(x[used.long().to(x.device)], side_of(name), k)[1], place


def _recalls(
    top: Int[Tensor, "used k"],
    place: Int[Tensor, "n n_active"],
    states: Int[Tensor, "n k"],
    orders: Sequence[Int[Tensor, " n"]],
    d_vocab: int,
) -> Float[Tensor, "orders n"]:
    """The recall of each token's state, and of other tokens' states in its stead: in several orders, for lists are dear."""
    found = torch.empty(len(orders), len(states), dtype=torch.float64)
    for rows in chunks(len(states), d_vocab):
        tokens = top[place[rows]].flatten(1)
        listed = torch.zeros(len(tokens), d_vocab, dtype=torch.bool).scatter_(1, tokens, True)
        for i, order in enumerate(orders):
            found[i, rows] = listed.gather(1, states[order[rows]].long()).sum(1).double()
    return found / states.shape[1]


def _aligned_and_permuted(recalls: Float[Tensor, "orders n"], example: Int[Tensor, " n"]) -> dict[str, Any]:
    """Both samples as two rows: tokens as they are, which come first, and permuted."""
    aligned, permuted = recalls[0], recalls[1:].mean(dim=1).tolist()
    _, text = example.unique(return_inverse=True)
    totals = torch.zeros(int(text.max()) + 1, dtype=torch.float64).index_add_(0, text, aligned)
    intervals = np.array([bootstrap_interval(totals, text.bincount()), middle(permuted)])
    return {
        "sample": ["aligned", "permuted"],
        "recall": [aligned.mean().item(), np.mean(permuted)],
        "low": intervals[:, 0],
        "high": intervals[:, 1],
        "n": len(aligned),
    }
