"""A host that answers from a record, so that neither transformers nor TransformerLens is imported until the model is needed."""

import warnings
from collections.abc import Callable
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.lazy_tensor import LazyTensor
from ..checkpoints.recipes import Recipe, tensor_of
from .architectures import Block, Norm
from .experts import NO_EXPERT
from .host import AttentionWeight, Host, MLPWeight, OuterWeight
from .model_record import NORMS, Record, weight_key
from .parameter_names import MLP, Sublayer
from .recorded_tokenizer import RecordedTokenizer


class RecordedBlock(Block):
    """A block whose norms are recorded, and whose modules are those of the booted model."""

    host: "RecordedHost"

    def __getattribute__(self, name: str) -> Any:
        if name in ("attn", "mlp", "shared"):
            return getattr(self.host.booted.blocks[self.layer], name)
        return super().__getattribute__(name)


class RecordedHost(Host):
    """The parameters of a model as its `Host` gives them, from a record. What is not recorded is read from the model.

    Args:
        record: The result of `record_of`.
        checkpoint: The parameters.
        load: Loads the model, at the first use of something that is not recorded.
        is_offloaded: Whether the model's weights stay in the checkpoint; otherwise they are read as a loaded model holds them.

    Raises:
        Exception: If the record is damaged, or of another checkpoint.
    """

    def __init__(self, record: Record, checkpoint: Checkpoint, load: Callable[[], Any], is_offloaded: bool) -> None:
        self._record, self._stored, self._load, self._is_offloaded = record, checkpoint, load, is_offloaded
        self._facts: Any = SimpleNamespace(**record["facts"])
        self.name, self.architecture, self.is_bridge = self._facts.name, self._facts.architecture, self._facts.is_bridge
        self.n_heads, self.d_model = self._facts.n_heads, self._facts.d_model
        self.notes = record["notes"]
        self.checkpoint = checkpoint if is_offloaded else None
        self.blocks = [self._recorded_block(layer, fields) for layer, fields in enumerate(record["blocks"])]
        self._final_norm = self._recorded_norm(record["final_norm"])
        self.tokenizer = RecordedTokenizer(**record["tokens"], load=lambda: self.model.tokenizer)

    @cached_property
    def booted(self) -> Host:
        """The host of the model, whose warnings were issued before."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Host(self._load())

    def __getattr__(self, name: str) -> Any:
        if name not in ("model", "cfg", "hf_config", "text_config"):
            raise AttributeError(name)
        return getattr(self.booted, name)

    # -- configuration

    @property
    def is_encoder_decoder(self) -> bool:
        return self._facts.is_encoder_decoder

    @property
    def n_ctx(self) -> int | None:
        return self._facts.n_ctx

    @property
    def eps(self) -> float:
        return self._facts.eps

    @property
    def n_key_value_heads(self) -> int:
        return self._facts.n_key_value_heads

    @property
    def residual_multiplier(self) -> float:
        return self._facts.residual_multiplier

    @property
    def has_positions(self) -> bool:
        return self._facts.has_positions

    @property
    def has_experts(self) -> bool:
        return self._facts.has_experts

    # -- blocks and norms

    def layers_with(self, sublayer: Sublayer) -> list[int]:
        return [layer for layer, fields in enumerate(self._record["blocks"]) if fields[sublayer]]

    def has_head_norms(self, block: Block) -> bool:
        return self._fields(block)["has_head_norms"]

    @property
    def final_norm(self) -> Norm:
        return self._final_norm

    def _fields(self, block: Block) -> Record:
        """The record of a block."""
        return self._record["blocks"][block.layer]

    def _recorded_block(self, layer: int, fields: Record) -> Block:
        norms = {name: self._recorded_norm(fields["norms"][name]) for name in NORMS}
        block = RecordedBlock(layer, attn=None, mlp=None, shared=None, **norms)
        block.host = self
        return block

    def _recorded_norm(self, fields: Record) -> Norm:
        tensors: Any = {name: fields[name] and self._tensor(fields[name]) for name in ("weight", "stored_bias")}
        return Norm(**fields | tensors)

    # -- weights

    def outer(self, name: OuterWeight) -> Tensor:
        return cast(Tensor, self._weight(self._record["outer"], name, partial(super().outer, name)))

    def attention(self, block: Block, name: AttentionWeight, *, fold_inner: bool = False) -> Tensor:
        read = partial(super().attention, block, name, fold_inner=fold_inner)
        return cast(Tensor, self._weight(self._fields(block)["weights"], name, read))

    def mlp(self, block: Block, name: MLPWeight, expert: int = NO_EXPERT) -> Tensor | None:
        read = partial(super().mlp, block, name, expert)
        return self._weight(self._fields(block)["weights"], weight_key(name, expert), read)

    def experts(self, block: Block) -> list[int]:
        experts = self._fields(block)["experts"]
        return super().experts(block) if experts is None else experts

    def inner_norm(self, block: Block, name: AttentionWeight) -> Norm:
        return super().inner_norm(block, name) if self._fields(block)["is_latent"] else Norm()

    def dtype_of_factors(self, block: Block, name: str) -> torch.dtype | None:
        return super().dtype_of_factors(block, name) if self._fields(block)["is_latent"] else None

    def lazy(self, name: str, layer: int, expert: int = NO_EXPERT) -> Tensor | None:
        key = weight_key(name, expert) if name in MLP else name
        return self._weight(self._record["blocks"][layer]["weights"], key, lambda: None)

    def _weight(self, recipes: dict[str, Recipe | None], name: str, read: Callable[[], Tensor | None]) -> Tensor | None:
        """A recorded weight; the result of `read`, which boots the model, if it is not recorded or its recipe is damaged."""
        if name not in recipes:
            return read()
        try:
            recipe = recipes[name]
            return None if recipe is None else self._tensor(recipe)
        except Exception:
            return read()

    def _tensor(self, recipe: Recipe) -> LazyTensor:
        tensor = tensor_of(recipe, self._stored, is_converted=not self._is_offloaded)
        tensor.place = torch.device("cpu")
        return tensor
