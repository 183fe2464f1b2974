"""Properties that hold for every lens, as functions that raise an AssertionError if one does not hold."""

import pandas as pd
import torch


def same_tokens(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 1e-4) -> None:
    """Two tables have equal keys and equal scores; the order of tokens may differ only where their scores are nearly equal."""
    assert a.columns.tolist() == b.columns.tolist() and len(a) == len(b)
    keys = [c for c in a if c not in ("score", "singular_value") and "token" not in c]
    pd.testing.assert_frame_equal(a[keys], b[keys])
    scale = a["score"].abs().max()
    assert (a["score"] - b["score"]).abs().max() <= tolerance * scale
    differ = (a[[c for c in a if c.endswith("token_index")]] != b[[c for c in b if c.endswith("token_index")]]).any(
        axis=1
    )
    assert differ.mean() < 0.02, "lists differ by more than near ties"


def check_ranking(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """Equal indices, and equal scores up to the last bit of float32, which depends on the order of summation in float64."""
    score, *indices = actual
    expected_score, *expected_indices = expected
    assert score.dtype == torch.float32
    for index, expected_index in zip(indices, expected_indices, strict=True):
        assert index.dtype == torch.int64
        torch.testing.assert_close(index.cpu(), expected_index.cpu(), rtol=0, atol=0)
    torch.testing.assert_close(score.cpu(), expected_score.cpu(), rtol=2e-7, atol=1e-12)


def random_rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0].float()


def rotate_residual_stream(hf_llama: torch.nn.Module, Q: torch.Tensor) -> None:
    """Rotate the residual stream of a Hugging Face Llama in place; norm gains must be 1."""
    with torch.no_grad():
        for name, parameter in hf_llama.named_parameters():
            if any(
                part in name
                for part in ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
            ):
                if name.endswith("weight"):
                    parameter.copy_(parameter @ Q)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.copy_(Q.T @ parameter)


def permute_neurons(hf_llama: torch.nn.Module, order: torch.Tensor) -> None:
    with torch.no_grad():
        for layer in hf_llama.model.layers:
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
