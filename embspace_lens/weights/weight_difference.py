"""The difference of the weights of two models, weight by weight."""

import torch
from jaxtyping import Float
from torch import Tensor

from .architectures import Norm
from .circuit_factors import CircuitDifference, Circuits
from .direction_rows import DirectionDifference, Directions
from .effective import Weights
from .experts import NO_EXPERT
from .parameter_names import ATTENTION, MLP


class WeightDifference(Weights):
    """The effective weights of one model minus those of another. The rank of a circuit is 2 d_head.

    Args:
        after: The weights from which the others are subtracted.
        before: The weights that are subtracted. Shapes, blocks, notes and `model` are those of `before`.
    """

    def __init__(self, after: Weights, before: Weights) -> None:
        super().__init__(before.host, fold_ln=before.fold_ln)
        self.after, self.before = after, before
        self.name = f"{after.name} − {before.name}"

    @property
    def is_offloaded(self) -> bool:
        return self.after.is_offloaded or self.before.is_offloaded

    @property
    def bytes_read(self) -> int:
        return self.after.bytes_read + self.before.bytes_read

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.after.W_E - self.before.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self.after.W_U - self.before.W_U

    @property
    def unembedding(self) -> tuple[Float[Tensor, "d_model d_vocab_out"], Norm]:
        return self.W_U, Norm()

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.after.W_pos - self.before.W_pos

    def circuits(self, name: str, layer: int, distance: int | None = None) -> Circuits:
        after, before = (part.circuits(name, layer, distance) for part in (self.after, self.before))
        return CircuitDifference(after, before)

    def unchanged_layers(self) -> list[int]:
        """The blocks whose stored weights, and the norms that are folded into them, are the same in both models."""
        return [layer for layer in range(self.n_layers) if self._is_unchanged(layer)]

    def _is_unchanged(self, layer: int) -> bool:
        return all(
            torch.equal(a, b)
            for name, expert in self._weights_of(layer)
            for a, b in zip(
                self._tensors(self.after, name, layer, expert), self._tensors(self.before, name, layer, expert)
            )
        )

    def _weights_of(self, layer: int) -> list[tuple[str, int]]:
        """The names of a block's weights, each with its expert."""
        weights = [(name, NO_EXPERT) for name in ATTENTION if layer in self.layers_with("attn")]
        if layer in self.layers_with("mlp"):
            names = [name for name in MLP if name != "W_gate" or self.is_gated(layer)]
            weights += [(name, expert) for name in names for expert in self.experts(layer)]
        return weights

    @staticmethod
    def _tensors(weights: Weights, name: str, layer: int, expert: int) -> list[Tensor]:
        """A stored weight, and the gains that are folded into it."""
        norms = (weights.norm(name, layer), weights.inner_norm(name, layer)) if weights.fold_ln else ()
        gains = [norm.gain for norm in norms]
        return [weights.stored(name, layer, expert), *(gain for gain in gains if gain is not None)]

    def direction_rows(self, weight: str, layer: int, expert: int = NO_EXPERT) -> Directions:
        after, before = (part.direction_rows(weight, layer, expert) for part in (self.after, self.before))
        return DirectionDifference(after, before)
