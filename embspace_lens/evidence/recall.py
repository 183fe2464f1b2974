"""Recall of hidden states: the top tokens of a state that are top tokens of the most active weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import token_batches
from ..forward.runs import collect_activations
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..tables.checks import check_choice, check_integer, check_k
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval, central_interval
from ..tables.selection import Select, weight_names
from ..weights.configuration import device_of
from ..weights.experts import NO_EXPERT
from ..weights.final_norm import apply_final_norm
from ..weights.hook_points import head_hook, neuron_hook, state_hook
from ..weights.parameter_names import MLP, side_of
from .layer_directions import directions_of, layers_of
from .token_lists import cyclic_permutation

WEIGHTS = ("W_in", "W_gate", "W_out", "W_V", "W_O")
Target = Literal["final", "layer"]
TARGETS: tuple[Target, ...] = ("final", "layer")


@dataclass
class _TopIndices:
    """What is kept of the forward passes, one row per token.

    Attributes:
        example: The text that each token is in, batch by batch.
        top: By hook point, batch by batch: the most active neurons or sub-heads, or the top tokens of a state.
    """

    example: list[Int[Tensor, " n"]] = field(default_factory=list)
    top: dict[str, list[Int[Tensor, "n n_top"]]] = field(default_factory=dict)


def hidden_state_recall(
    lens: EmbeddingLens,
    texts: Iterable[str],
    *,
    weight: str | Sequence[str] | None = None,
    layer: Select = None,
    target: Target | Sequence[Target] | None = None,
    k: int = 50,
    n_active: int = 5,
    seeds: int = 20,
    final_norm: bool = False,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    r"""Measure how many top tokens of a hidden state are top tokens of the weights that were most active.

    At every token of the texts, the n_active neurons (or sub-heads) with the largest activation represent a block:

    .. math:: R = \frac{1}{k} \left| \operatorname{top}_k(xE) \cap \bigcup_{i \in \mathrm{active}} \operatorname{top}_k(w_i) \right|

    The recall is the mean over tokens. x is the output of the same block (`"layer"`) or of the last block (`"final"`), scored
    as the lens scores writing weights: with the final norm's gain and centring, without its bias. A neuron's activation is
    the factor of its W_out row (`mlp.hook_post`), a sub-head's activation is its entry of z (`attn.hook_z`), also for W_in
    and W_V. The permuted control compares each state with the weights that were most active at another token.

    This function runs the model. It keeps about 2 n_active + k integers per token and layer in memory.

    Args:
        lens: The model's lens; the model must have a tokenizer.
        texts: Any texts; longer ones are cut at the context window.
        weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_V"`, `"W_O"`, or several; by default all that can be measured. The
            activations of a mixture's experts cannot be measured.
        layer: Which blocks; all of them by default.
        target: `"layer"`, `"final"`, or several; both by default.
        k: How many tokens of each weight's direction, and of the state.
        n_active: How many neurons or sub-heads represent a block.
        seeds: The number of permutations in the shuffled control.
        final_norm: Score hidden states behind the final norm with its bias, as the authors do, whose parameters are raw. This
            needs a lens with `fold_ln=False`, in which the norm's gain is not part of E.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text in tokens; the model's context window by default.

    Returns:
        One row per (target, layer, weight, sample), with `recall`, `low`, `high` and `n`, the number of tokens. For `sample`
        `"aligned"` the interval is a 95 % bootstrap interval over texts, NaN for one text; for `"permuted"` it holds the
        middle 95 % of the permutations.

    Raises:
        EmbspaceError: If there are no texts or no tokenizer, the model lacks the weight, fewer than k tokens are read, or
            `final_norm` is set for a lens that folds norms.

    Example:
        >>> df = hidden_state_recall(lens, ["w2 w3 w4", "w5 w6"], layer=0, weight="W_out", k=5)
        >>> df["target"].tolist()
        ['final', 'final', 'layer', 'layer']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.2. https://arxiv.org/abs/2209.02535
    """
    k, seeds = check_k(k, lens.space.n_tokens), check_integer("seeds", seeds, minimum=2)
    names = TARGETS if target is None else [target] if isinstance(target, str) else list(target)
    targets = sorted({check_choice("target", name, TARGETS) for name in names})
    if final_norm and lens.weights.fold_ln:
        raise errors.final_norm_is_folded(lens.name)
    hooks = _select_hooks(lens, layer, weight, n_active)
    last = lens.weights.n_layers - 1
    layers = {index for index, _ in hooks}
    state_of = {index: state_hook(lens.model, index) for index in {*layers, last}}
    states = {state_of[index] for index in layers} if "layer" in targets else set()
    states |= {state_of[last]} if "final" in targets else set()
    end = state_of[last if "final" in targets else max(layers)]  # the forward pass stops there
    tops = _run(lens, texts, set(hooks.values()), states, end, k, n_active, final_norm, batch_tokens, max_tokens)

    example = torch.cat(tops.example)
    orders = [torch.arange(len(example)), *(cyclic_permutation(len(example), seed) for seed in range(seeds))]

    def blocks() -> Iterator[dict[str, Any]]:
        for (index, name), hook in tqdm(hooks.items(), desc="recall", unit="weight", disable=None, leave=False):
            active = torch.cat(tops.top[hook])
            lists, list_index = _lists_of_active(lens, name, index, hook, active, k)
            for one in targets:
                state_tokens = torch.cat(tops.top[state_of[last if one == "final" else index]])
                recalls = _recalls(lists, list_index, state_tokens, orders, lens.space.d_vocab)
                yield _aligned_and_permuted(recalls, example) | {"target": one, "layer": index, "weight": [name] * 2}

    columns = ["target", "layer", "weight", "sample", "recall", "low", "high", "n"]
    frame = tidy(columns, blocks(), kind="recall")
    return frame.sort_values(["target", "layer", "weight", "sample"], kind="stable", ignore_index=True)


def _select_hooks(
    lens: EmbeddingLens, layer: Select, weight: str | Sequence[str] | None, n_active: Any
) -> dict[tuple[int, str], str]:
    """The hook point of the activations of each (layer, weight) to measure, in the order of layers.

    Weights that the model lacks are left out, or raise an error if they were named.
    """
    weights = lens.weights
    names = weight_names(weight, WEIGHTS)
    hooks: dict[tuple[int, str], str] = {}
    for name in names:
        for index in layers_of(weights, name, layer, required=weight is not None):
            if name not in MLP:
                hooks[index, name] = head_hook(weights, index)
            elif weights.experts(index) == [NO_EXPERT]:
                hooks[index, name] = neuron_hook(weights, index)
            elif weight is not None:
                raise errors.no_expert_activations(lens.name, index, name)
    if not hooks:
        raise errors.nothing_to_measure(lens.name, names)
    for index, name in hooks:
        kind = "neurons" if name in MLP else "sub-heads"
        n_units = weights.d_mlp(index) if name in MLP else weights.stored("W_O", index).shape[:2].numel()
        count_of = f"{kind} of {name} in block {index}"
        check_integer("n_active", n_active, minimum=1, maximum=n_units, count_of=count_of)
    return dict(sorted(hooks.items(), key=lambda item: (item[0][0], names.index(item[0][1]))))


@torch.no_grad()
def _run(
    lens: EmbeddingLens,
    texts: Iterable[str],
    active_hooks: set[str],
    state_hooks: set[str],
    end: str,
    k: int,
    n_active: int,
    final_norm: bool,
    batch_tokens: int,
    max_tokens: int | None,
) -> _TopIndices:
    """Run the texts once; at every hook point, keep only the indices of the most active units, or of a state's top tokens."""
    names = sorted(active_hooks | state_hooks)
    tops = _TopIndices()

    def keep_top(name: str, mask: Bool[Tensor, "batch pos"], batch_top: dict[str, Tensor]) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            x = value[mask.to(value.device)]
            if name in state_hooks:
                x = apply_final_norm(lens.weights, x) if final_norm else x
                top = lens.space.top(x, "write", k)[1]
            else:
                top = x.flatten(1).topk(n_active, dim=1).indices
            batch_top[name] = top.cpu().int()

        return hook

    with tqdm(desc="texts", unit="token", unit_scale=True, disable=None, leave=False) as bar:
        for batch in token_batches(lens.model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
            mask = batch.mask.to(device_of(lens.model))
            batch_top: dict[str, Tensor] = {}
            hooks = [(name, keep_top(name, mask, batch_top)) for name in names]
            collect_activations(lens.model, batch, [end], hooks=hooks)
            missing = [name for name in names if name not in batch_top]
            if missing:
                raise errors.hooks_not_fired(lens.name, missing)
            tops.example.append(batch.example[batch.mask.nonzero()[:, 0]])
            for name, top in batch_top.items():
                tops.top.setdefault(name, []).append(top)
            bar.update(int(mask.sum()))
    if not tops.example:
        raise errors.no_tokens()
    return tops


def _lists_of_active(
    lens: EmbeddingLens, name: str, layer: int, hook: str, active: Int[Tensor, "n n_active"], k: int
) -> tuple[Int[Tensor, "n_used k"], Int[Tensor, "n n_active"]]:
    """The top tokens of each direction that is among the most active ones anywhere, and their indices token by token."""
    x = next(directions_of(lens.weights, name, layer))
    used, list_index = active.unique(return_inverse=True)
    if int(used[-1]) >= len(x):
        raise errors.bad_activation_width(lens.name, hook, name, len(x))
    return lens.space.top(x[used.long().to(x.device)], side_of(name), k)[1], list_index


def _recalls(
    lists: Int[Tensor, "n_used k"],
    list_index: Int[Tensor, "n n_active"],
    state_tokens: Int[Tensor, "n k"],
    orders: Sequence[Int[Tensor, " n"]],
    d_vocab: int,
) -> Float64[Tensor, "n_orders n"]:
    """The recall of the state of each token, and of the states of other tokens under several permutations.

    All permutations share one token mask, which is the expensive part.
    """
    recalls = torch.empty(len(orders), len(state_tokens), dtype=torch.float64)
    for rows in chunks(len(state_tokens), d_vocab):
        tokens = lists[list_index[rows]].flatten(1)
        mask = torch.zeros(len(tokens), d_vocab, dtype=torch.bool).scatter_(1, tokens, True)
        for i, order in enumerate(orders):
            recalls[i, rows] = mask.gather(1, state_tokens[order[rows]].long()).sum(1).double()
    return recalls / state_tokens.shape[1]


def _aligned_and_permuted(recalls: Float[Tensor, "n_orders n"], example: Int[Tensor, " n"]) -> dict[str, Any]:
    """The two rows of one target, layer and weight: tokens in their own order, which is the first, and permuted."""
    aligned, permuted = recalls[0], recalls[1:].mean(dim=1).tolist()
    _, text = example.unique(return_inverse=True)
    totals = torch.zeros(int(text.max()) + 1, dtype=torch.float64).index_add_(0, text, aligned)
    intervals = np.array([bootstrap_interval(totals, text.bincount()), central_interval(permuted)])
    return {
        "sample": ["aligned", "permuted"],
        "recall": [aligned.mean().item(), np.mean(permuted)],
        "low": intervals[:, 0],
        "high": intervals[:, 1],
        "n": len(aligned),
    }
