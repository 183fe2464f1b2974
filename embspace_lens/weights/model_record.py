"""Records of models: what readings ask of a model, as JSON, without the values of any weight."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from .. import errors
from ..checkpoints.recipes import NotRecordable, Recipe, recipe_of
from .architectures import Block, Norm
from .host import AttentionWeight, Host, MLPWeight, OuterWeight
from .latent_attention import is_latent
from .notes import collect_notes
from .parameter_names import ATTENTION, MLP
from .recorded_tokenizer import RecordedTokenizer

Record = dict[str, Any]

OUTER = ("W_E", "W_U", "W_pos")
NORMS = ("before_attn", "after_attn", "before_mlp", "after_mlp")
FACTS = (
    "name",
    "architecture",
    "is_bridge",
    "n_heads",
    "d_model",
    "n_ctx",
    "eps",
    "n_key_value_heads",
    "residual_multiplier",
    "is_encoder_decoder",
    "has_experts",
    "has_positions",
)
"""The attributes of a `Host` that are recorded as they are."""

MAX_WEIGHTS = 2000
"""Models with more weights, which have many experts, are not recorded: it would take as long as their boot."""


def record_of(host: Host) -> Record:
    """What readings ask of a model whose parameters stay in a `Checkpoint`.

    Weights that cannot be recorded are left out: products (multi-head latent attention), computed values, and weights that
    cannot be read.

    Raises:
        NotRecordable: If a norm cannot be recorded, the model has too many weights, or no tokenizer.
    """
    if host.tokenizer is None:
        raise NotRecordable
    blocks: list[Record] = []
    for block in host.blocks:
        blocks.append(_block_record(host, block))
        if sum(len(each["weights"]) for each in blocks) > MAX_WEIGHTS:
            raise NotRecordable
    return {
        "facts": {name: getattr(host, name) for name in FACTS},
        "notes": collect_notes(host),
        "outer": _weights({name: lambda name=name: host.outer(cast(OuterWeight, name)) for name in OUTER}),
        "final_norm": _norm_record(host.final_norm),
        "blocks": blocks,
        "tokens": RecordedTokenizer.record(host.tokenizer, host.outer("W_U").shape[1]),
    }


def _block_record(host: Host, block: Block) -> Record:
    reads: dict[str, Callable[[], Tensor | None]] = {}
    has_heads = block.attn is not None and not is_latent(block.attn)
    if has_heads:
        reads |= {name: lambda name=name: host.attention(block, cast(AttentionWeight, name)) for name in ATTENTION}
    experts = _experts(host, block)
    reads |= {
        weight_key(name, expert): lambda name=name, expert=expert: host.mlp(block, cast(MLPWeight, name), expert)
        for expert in experts or []
        for name in MLP
    }
    return {
        "attn": block.attn is not None,
        "mlp": block.mlp is not None,
        "is_latent": is_latent(block.attn),
        "has_head_norms": host.has_head_norms(block),
        "experts": experts,
        "norms": {name: _norm_record(getattr(block, name)) for name in NORMS},
        "weights": _weights(reads),
    }


def weight_key(name: str, expert: int) -> str:
    """The key of an MLP's weight in the record of its block."""
    return f"{name}/{expert}"


def _experts(host: Host, block: Block) -> list[int] | None:
    """The experts of a block's MLP; None if it has no MLP, or they are stored in an unknown way."""
    try:
        return None if block.mlp is None else host.experts(block)
    except errors.EmbspaceError:
        return None


def _weights(reads: dict[str, Callable[[], Tensor | None]]) -> dict[str, Recipe | None]:
    """The recipes of weights; None for a weight that does not exist (the W_gate of an ungated MLP)."""
    recipes: dict[str, Recipe | None] = {}
    for name, read in reads.items():
        try:
            weight = read()
            recipes[name] = None if weight is None else recipe_of(weight)
        except (errors.EmbspaceError, NotRecordable):
            continue
    return recipes


def _norm_record(norm: Norm) -> Record:
    fields = norm._asdict()
    for name in ("weight", "stored_bias"):
        fields[name] = None if fields[name] is None else recipe_of(fields[name])
    return fields
