"""The difference of the weights of two models, weight by weight."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from .architectures import Norm
from .effective import Weights
from .experts import NO_EXPERT
from .host import AttentionWeight, MLPWeight
from .parameter_names import ATTENTION, MLP


class WeightDifference(Weights):
    """The effective weights of one model minus those of another. The rank of a circuit is 2 d_head.

    Args:
        after: The weights from which the others are subtracted.
        before: The weights that are subtracted. Shapes, blocks, notes and `model` are those of `before`.
    """

    def __init__(self, after: Weights, before: Weights) -> None:
        super().__init__(before.model, fold_ln=before.fold_ln)
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

    def W_O(self, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
        return self.after.W_O(layer) - self.before.W_O(layer)

    def W_OV(self, layer: int) -> FactoredMatrix:
        return _subtract(self.after.W_OV(layer), self.before.W_OV(layer))

    def W_QK(self, layer: int, distance: int | None = None) -> FactoredMatrix:
        return _subtract(self.after.W_QK(layer, distance), self.before.W_QK(layer, distance))

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

    def W_out(self, layer: int, expert: int = NO_EXPERT) -> Float[Tensor, "d_mlp d_model"]:
        return self.after.W_out(layer, expert) - self.before.W_out(layer, expert)

    def _reading_heads(self, layer: int, name: AttentionWeight) -> Tensor:
        return self.after._reading_heads(layer, name) - self.before._reading_heads(layer, name)

    def _reading_mlp(self, layer: int, name: MLPWeight, expert: int) -> Tensor:
        return self.after._reading_mlp(layer, name, expert) - self.before._reading_mlp(layer, name, expert)


def _subtract(a: FactoredMatrix, b: FactoredMatrix) -> FactoredMatrix:
    """A − B of each head as one factored matrix: [A_left − B_left, B_left] times [A_right; A_right − B_right].

    Both factors are zero for heads whose factors are equal, so that their difference is exactly zero.
    """
    left, right = a.A - b.A, a.B - b.B
    is_changed = left.any(dim=(-2, -1)) | right.any(dim=(-2, -1))
    factors = torch.cat([left, b.A], dim=-1), torch.cat([a.B, right], dim=-2)
    return FactoredMatrix(*(factor * is_changed[:, None, None] for factor in factors))
