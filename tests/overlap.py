"""Overlap of the top tokens of two paired weights, against a shuffle within the layer (Dar et al. 2023), in plain code."""

import torch

from embspace_lens import EmbeddingLens


def overlap(
    lens: EmbeddingLens, first: str, second: str, k: int = 100, shuffles: int = 5
) -> tuple[list[float], list[float]]:
    """Mean Jaccard index of the top k tokens by absolute score, for paired and for shuffled directions, one number per layer."""

    def top_mask(weight: str, layer: int) -> torch.Tensor:
        x = lens.weights.directions(weight, layer).flatten(0, -2)
        scores = lens.project(x, "write" if weight in ("W_O", "W_out") else "read").nan_to_num().abs()
        return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, scores.topk(k).indices, True)

    def jaccard(a: torch.Tensor, b: torch.Tensor) -> float:
        n_shared = (a & b).sum(1)
        return (n_shared / (2 * k - n_shared)).mean().item()

    generator = torch.Generator().manual_seed(0)
    paired, shuffled = [], []
    for layer in lens.weights.layers_with("mlp"):
        a, b = top_mask(first, layer), top_mask(second, layer)
        orders = [torch.randperm(len(b), generator=generator) for _ in range(shuffles)]
        paired.append(jaccard(a, b))
        shuffled.append(sum(jaccard(a, b[order]) for order in orders) / shuffles)
    return paired, shuffled
