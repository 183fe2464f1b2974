"""The order in which dictionaries and blocks read the residual stream and write to it."""

import re
from typing import NamedTuple

from .. import errors
from ..tables.selection import Select
from ..weights.effective import Weights
from .dictionary import Features

BEFORE_ATTENTION = ("hook_resid_pre", "hook_in", "hook_attn_in", "ln1")
"""Points of a block where the stream holds the output of the block before; prefixes of names of hook points."""

BEFORE_MLP = ("hook_resid_mid", "hook_mlp_in", "mlp.hook_in", "ln2")
"""Points of a block where the stream holds the output of its attention too."""

AFTER_MLP = ("hook_resid_post", "hook_out")
"""Points of a block where the stream holds the outputs of its attention and its MLP."""

OUTPUT_OF_ATTENTION = ("hook_attn_out", "attn.hook_out", "ln1_post")
"""The output of a block's attention, which is added to the stream after it."""

OUTPUT_OF_MLP = ("hook_mlp_out", "mlp.hook_out", "ln2_post")
"""The output of a block's MLP, which is added to the stream after it."""

STEPS = (  # what precedes attention, what lies between attention and the MLP, and what follows the MLP
    (2, OUTPUT_OF_MLP),
    (1, OUTPUT_OF_ATTENTION),
    (2, AFTER_MLP),
    (1, BEFORE_MLP),
    (0, BEFORE_ATTENTION),
)


class Place(NamedTuple):
    """A point of the forward pass.

    Attributes:
        time: Twice the number of the block, plus 0 before its attention, 1 between attention and MLP, 2 after the MLP.
        output: The sublayer whose output the point holds, `"attn"` or `"mlp"`; empty for the residual stream.
    """

    time: int
    output: str = ""


def place_of(hook: str, weights: Weights | None = None) -> Place | None:
    """Where in the forward pass a hook point is; None if it is unknown, or inside a component.

    Args:
        hook: The hook point.
        weights: The model's weights, which show whether a block's MLP reads the same vector as its attention.
    """
    if hook in ("hook_embed", "embed.hook_out", "hook_pos_embed"):
        return Place(0)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None:
        return None
    layer, point = int(match[1]), match[2]
    step = next((step for step, points in STEPS if any(_is_at(point, name) for name in points)), None)
    if step is None:
        return None
    is_output_of_mlp = any(_is_at(point, name) for name in OUTPUT_OF_MLP)
    is_output = is_output_of_mlp or any(_is_at(point, name) for name in OUTPUT_OF_ATTENTION)
    if step == 1 and not is_output and weights is not None and _is_parallel(weights, layer):
        step = 0
    return Place(2 * layer + step, ("mlp" if is_output_of_mlp else "attn") if is_output else "")


def _is_at(point: str, name: str) -> bool:
    """Whether a point is a hook point of this name, or one of a module of this name."""
    return point == name or point.startswith(f"{name}.")


def _is_parallel(weights: Weights, layer: int) -> bool:
    """Whether a block's MLP reads the stream through the norm of its attention, and so without the attention's output."""
    if layer not in weights.layers_with("mlp") or layer not in weights.layers_with("attn"):
        return False
    return weights.norm("W_in", layer).name == "ln1" == weights.norm("W_Q", layer).name


def written_at(features: Features, weights: Weights | None = None) -> Place | None:
    """Where a dictionary's decoder writes."""
    return place_of(features.output_hook or features.hook, weights)


def check_direct(source: Features, target: Features, weights: Weights | None = None) -> None:
    """Check that the target reads the stream after the source has written to it, if both places are known.

    Raises:
        EmbspaceError: If it does not.
    """
    written, read = written_at(source, weights), place_of(target.hook, weights)
    if read is not None and read.output:
        raise errors.reads_a_sublayer(target.name, target.hook)
    if written is not None and read is not None and written.time > read.time:
        raise errors.read_before_written(source.name, source.output_hook or source.hook, target.name, target.hook)


def layers_between(source: Features, target: Features, circuit: str, weights: Weights, layer: Select) -> list[int]:
    """The blocks whose attention reads what the source writes and, for `"ov"`, writes what the target reads.

    For `"qk"`, attention reads both dictionaries.

    Args:
        source: The dictionary that is attended to.
        target: For `"ov"` the dictionary that reads, for `"qk"` the one that attends.
        circuit: `"ov"` or `"qk"`.
        weights: The model's weights.
        layer: Which blocks; all that are in order by default.

    Raises:
        EmbspaceError: If a given block is out of order; or no block is given, and a place is unknown or no block is in order.
    """
    if circuit == "ov":
        starts, end = [written_at(source, weights)], place_of(target.hook, weights)
        if end is not None and end.output == "mlp":
            raise errors.reads_a_sublayer(target.name, target.hook)
    else:
        starts, end = [written_at(source, weights), written_at(target, weights)], None

    def is_in_order(index: int) -> bool:
        is_after = all(start is None or start.time <= 2 * index for start in starts)
        if end is None:
            return is_after
        return is_after and (2 * index + 1 == end.time if end.output else 2 * index + 1 <= end.time)

    between = [index for index in weights.select_layers(None, "attn") if is_in_order(index)]
    if layer is not None:
        selected = weights.select_layers(layer, "attn")
        if wrong := [index for index in selected if index not in between]:
            raise errors.layer_out_of_order(circuit, wrong, between)
        return selected
    if starts[0] is None:
        raise errors.layer_needed(source.name)
    if None in starts or (circuit == "ov" and end is None):
        raise errors.layer_needed(target.name)
    if not between:
        raise errors.no_layers_between(source.name, target.name, circuit)
    return between
