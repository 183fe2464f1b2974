"""Models of the zoo with their oracle's weights, and the comparison of `Weights` with the oracle.

Raw bridges must equal the oracle. In compatibility mode TransformerLens rewrites the weights without changing the
function. Weights that read from the residual stream must still equal the folded and centred ones of the oracle. Other
weights may change in the following ways. In models with LayerNorm, W_E, W_pos, W_O and W_out may lose their component along the all-ones
direction, which LayerNorm removes anyway. W_U may lose its mean over the vocabulary, which does not affect a softmax,
and may contain Cohere's positive logit scale.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import zoo
from oracle import Effective, oracle
from torch import Tensor, nn

from embspace_lens.errors import EmbspaceError
from embspace_lens.weights.effective import Weights

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
TOKENS = torch.arange(5, 5 + 2 * 9).view(2, 9)  # without special tokens: in some models 0 and 1 are padding


def skipping(names: list[str], *reasons: dict[str, str]) -> list:
    """The architectures as test parameters; those that the installed versions lack are skipped with a reason."""
    reason_of = {
        name: reason for reasons_by_name in (*reasons, zoo.UNAVAILABLE) for name, reason in reasons_by_name.items()
    }
    return [pytest.param(n, marks=pytest.mark.skip(reason=reason_of[n])) if n in reason_of else n for n in names]


@dataclass
class Case:
    """A booted model, and the weights that must be read from it."""

    model: nn.Module
    folded: Effective
    stored: Effective


def fresh(name: str, state: str = "raw", dtype: torch.dtype = torch.float32) -> Case:
    """A model of the zoo for one test, which may change it."""
    hf_model = zoo.ZOO[name]().to(dtype)
    folded, stored = oracle(name, hf_model), oracle(name, hf_model, fold=False)
    model = zoo.boot(hf_model)
    return Case(zoo.compat(model) if state == "compat" else model, folded, stored)


@functools.cache
def shared(name: str) -> Case:
    """A raw model that tests share and must not change."""
    return fresh(name)


@functools.cache
def activations(name: str) -> dict[str, Tensor]:
    """All activations of a raw bridge on TOKENS, in float64."""
    with torch.no_grad():
        cache = shared(name).model.run_with_cache(TOKENS)[1]
    return {
        hook: cache[hook].double()
        for hook in cache.keys()
        if isinstance(cache[hook], Tensor) and cache[hook].is_floating_point()
    }


# -- comparison


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative distance of two tensors of the same shape."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def centred(weight: Tensor, dim: int = -1) -> Tensor:
    return weight - weight.mean(dim, keepdim=True)


def unit(weight: Tensor) -> Tensor:
    return weight / weight.norm()


def changes(x: Tensor) -> Tensor:
    """[batch, pos, …] minus its first position: biases cancel."""
    return (x - x[:, :1])[:, 1:]


def normalised(x: Tensor, module: nn.Module, layer_norm: bool) -> Tensor:
    """The output of a norm for `x`, before the gain."""
    while "_original_component" in module._modules:
        module = module._modules["_original_component"]
    eps = next(
        (getattr(module, name) for name in ("eps", "variance_epsilon", "norm_eps") if hasattr(module, name)), 1e-5
    )
    x = centred(x) if layer_norm else x
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def readings(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """All weights that can be read, by name."""
    for name in ("W_E", "W_U", "W_pos"):
        try:
            yield name, getattr(weights, name)
        except EmbspaceError:
            pass
    for layer in weights.layers_with("attn"):
        for name in ATTENTION:
            try:
                yield f"{layer} {name}", getattr(weights, name)(layer)
            except EmbspaceError:
                pass
    for layer in weights.layers_with("mlp"):
        for expert in weights.experts(layer):
            for name in ("W_in", "W_gate", "W_out"):
                try:
                    yield f"{layer} {expert} {name}", getattr(weights, name)(layer, expert)
                except EmbspaceError:
                    pass


def expectations(effective: Effective) -> Iterator[tuple[str, Tensor]]:
    """The weights of the oracle, under the same names."""
    yield "W_E", effective.W_E
    yield "W_U", effective.W_U
    if effective.W_pos is not None:
        yield "W_pos", effective.W_pos
    for layer, heads in effective.attention.items():
        for name, weight in heads.items():
            yield f"{layer} {name}", weight
    for layer, experts in effective.mlp.items():
        for expert, weights in experts.items():
            for name, weight in weights.items():
                yield f"{layer} {expert} {name}", weight


def check_all(weights: Weights, effective: Effective, *, processed: bool = False, tolerance: float = 1e-5) -> None:
    """The model has exactly the weights of the oracle."""
    actual, expected = dict(readings(weights)), dict(expectations(effective))
    assert not (missing := sorted(expected.keys() - actual.keys())), missing
    assert not (unexpected := sorted(actual.keys() - expected.keys())), unexpected
    errors = {}
    for name, weight in actual.items():
        assert not weight.requires_grad, name
        expected_weight = expected[name]
        if processed and name == "W_U":
            weight, expected_weight = unit(centred(weight)), unit(centred(expected_weight))
        elif processed and effective.layer_norm and name.endswith(("W_E", "W_pos", "W_O", "W_out")):
            weight, expected_weight = centred(weight), centred(expected_weight)
        errors[name] = error(weight, expected_weight)
    large_errors = {name: value for name, value in errors.items() if not value <= tolerance}
    assert not large_errors, large_errors
