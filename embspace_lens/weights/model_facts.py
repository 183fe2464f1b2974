"""What a model states beside its weights: its tokenizer, its configuration, and where the weights are."""

from typing import Any

from .host import Host


class ModelFacts:
    """What a model states beside its weights.

    Attributes:
        host: The model's parameters.
    """

    host: Host

    @property
    def model(self) -> Any:
        """The TransformerLens model."""
        return self.host.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None if it does not have one."""
        return self.host.tokenizer

    @property
    def has_positions(self) -> bool:
        """Whether positions are learned embeddings."""
        return self.host.has_positions

    @property
    def n_key_value_heads(self) -> int:
        """The number of key-value heads of a block; query heads share them if there are fewer."""
        return self.host.n_key_value_heads

    @property
    def residual_multiplier(self) -> float:
        """The factor of a block's outputs when they are added to the residual stream (Granite)."""
        return self.host.residual_multiplier

    @property
    def is_offloaded(self) -> bool:
        """Whether the weights stay in their checkpoint, and are read from it when they are needed."""
        return self.host.checkpoint is not None

    @property
    def bytes_read(self) -> int:
        """How many bytes of the checkpoint were read so far, or fetched over the network; 0 for a model in memory."""
        return 0 if self.host.checkpoint is None else self.host.checkpoint.files.bytes_read

    @property
    def format_name(self) -> str:
        """The format of a quantised checkpoint; empty for other checkpoints, and for models in memory."""
        return getattr(self.host.checkpoint, "format_name", "")
