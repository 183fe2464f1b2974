"""Small classifiers and texts, for tests of stitching."""

import torch
import zoo

from embspace_lens import EmbeddingLens, PooledHead
from embspace_lens.forward.batches import token_batches
from embspace_lens.forward.runs import collect_activations

TEXTS = ["w2 w3 w4", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14", "w20 w21 w22 w23 w24 w25 w26 w27 w28"]
LABELS = ["pos", "neg", "pos", "neg", "pos"]


def pooled_head(d_model: int = zoo.D_MODEL, seed: int = 0) -> PooledHead:
    """A random head of two classes."""
    torch.manual_seed(seed)
    return PooledHead(d_model, ["neg", "pos"]).eval()


def classify(lens: EmbeddingLens, text: str, head: PooledHead) -> torch.Tensor:
    """The scores of one text without padding: the head applied to the mean of the last hidden states."""
    (batch,) = token_batches(lens.model, [text])
    name = f"blocks.{lens.weights.n_layers - 1}.hook_resid_post"
    state = collect_activations(lens.model, batch, [name])[name][0][batch.mask[0]]
    return head.linear(state.mean(dim=0))
