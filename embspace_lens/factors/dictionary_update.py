"""The update of a dictionary: the exact minimum over one factor after another."""

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_SIZE = 64  # factors whose residuals are computed in one product
MIN_ENERGY = 1e-8  # factors with a smaller share of the largest energy are not updated: rounding errors dominate there


def update_directions(
    directions: Float[Tensor, "n_factors d_model"],
    A: Float[Tensor, "n_factors n_factors"],
    B: Float[Tensor, "n_factors d_model"],
) -> None:
    r"""Minimise :math:`\tfrac12 \mathrm{tr}(\Phi^\top A \Phi) - \mathrm{tr}(\Phi^\top B)` over each unit row of Φ in turn, in place.

    While the other rows are fixed, the best row is the unit vector along :math:`\Phi_c + (B_c - A_c \Phi) / A_{cc}`. Rows are
    updated in blocks: one product gives the residuals of a block, which are then corrected after each row of the block.
    """
    energy = A.diagonal()
    updated = (energy > MIN_ENERGY * energy.max()).nonzero()[:, 0]
    for block in updated.split(BLOCK_SIZE):
        within_block, rows = A[block][:, block], directions[block]
        residual = B[block] - A[block] @ directions
        scale = 1 / energy[block]
        for i in range(len(block)):
            target = rows[i] + residual[i] * scale[i]
            length = torch.linalg.vector_norm(target)
            change = torch.where(length > 0, target / length, rows[i]) - rows[i]
            rows[i] += change
            residual -= within_block[:, i, None] * change
        directions[block] = rows


def unit_rows(x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Rows scaled to length 1; zero rows stay zero."""
    return torch.nn.functional.normalize(x, dim=-1)
