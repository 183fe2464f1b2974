"""The difference of the weights of two models, weight by weight."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from .architectures import Norm
from .effective import Weights
from .experts import NO_EXPERT
from .host import AttentionWeight, MLPWeight


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

    def W_out(self, layer: int, expert: int = NO_EXPERT) -> Float[Tensor, "d_mlp d_model"]:
        return self.after.W_out(layer, expert) - self.before.W_out(layer, expert)

    def _reading_heads(self, layer: int, name: AttentionWeight) -> Tensor:
        return self.after._reading_heads(layer, name) - self.before._reading_heads(layer, name)

    def _reading_mlp(self, layer: int, name: MLPWeight, expert: int) -> Tensor:
        return self.after._reading_mlp(layer, name, expert) - self.before._reading_mlp(layer, name, expert)


def _subtract(a: FactoredMatrix, b: FactoredMatrix) -> FactoredMatrix:
    """A − B as one factored matrix: [A_left, B_left] times [A_right; −B_right]."""
    return FactoredMatrix(torch.cat([a.A, b.A], dim=-1), torch.cat([a.B, -b.B], dim=-2))
