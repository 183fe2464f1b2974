"""Slow reference implementations of the fast functions: plain loops in float64."""

import math
import statistics
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embspace_lens.weights.modules import unwrap


def _dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def _best(scores: list[float], k: int, largest: bool) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i] if largest else scores[i], i))[:k]


def brute_top_tokens(vectors: Tensor, embedding: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The best k rows of the embedding for every vector: all products, sorted; ties by row."""
    score, index = [], []
    rows = embedding.double().tolist()
    for vector in vectors.double().tolist():
        products = [_dot(vector, row) for row in rows]
        best = _best(products, k, largest)
        score.append([products[i] for i in best])
        index.append(best)
    return torch.tensor(score, dtype=torch.float64).float().view(-1, k), torch.tensor(index).view(-1, k)


def brute_top_pairs(
    A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int, largest: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The best k entries of A · left · rightᵀ · Bᵀ: all entries, sorted; ties by row, then column."""
    a = [[_dot(row, column) for column in left.double().T.tolist()] for row in A.double().tolist()]
    b = [[_dot(row, column) for column in right.double().T.tolist()] for row in B.double().tolist()]
    products = [_dot(x, y) for x in a for y in b]
    best = _best(products, k, largest)
    key = torch.tensor(best)
    return torch.tensor([products[i] for i in best], dtype=torch.float64).float(), key // len(b), key % len(b)


def dense_pairs(A: Tensor, left: Tensor, right: Tensor, B: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Brute force for sizes at which Python loops take too long; equal scores by key if products are exact."""
    product = ((A.double() @ left.double()) @ (B.double() @ right.double()).T).flatten()
    key = (product >= product.topk(k).values[-1]).nonzero()[:, 0]
    score, order = product[key].sort(descending=True, stable=True)
    key = key[order[:k]]
    return score[:k].float(), key // len(B), key % len(B)


def brute_jaccard(a: Tensor, b: Tensor, k: int) -> list[float]:
    """The Jaccard index of the k tokens with the largest absolute scores in each row of a and of b."""
    indices = []
    for row_a, row_b in zip(a.double().tolist(), b.double().tolist(), strict=True):
        top = [set(_best([abs(s) for s in row], k, True)) for row in (row_a, row_b)]
        indices.append(len(top[0] & top[1]) / len(top[0] | top[1]))
    return indices


def brute_recall(states: Tensor, activations: Tensor, units: Tensor, k: int, n_active: int) -> list[float]:
    """For each token: the share of its state's top k tokens that are in the top k of one of its most active units.

    Args:
        states: Scores of the hidden states, one row per token.
        activations: One row per token, one column per unit.
        units: Scores of the directions of the units, one row per unit.
        k: The number of tokens of each list.
        n_active: The number of active units of each token.
    """
    tops = [set(_best(scores, k, True)) for scores in units.double().tolist()]
    recalls = []
    for state, activation in zip(states.double().tolist(), activations.double().tolist(), strict=True):
        union = set().union(*(tops[unit] for unit in _best(activation, n_active, True)))
        recalls.append(len(set(_best(state, k, True)) & union) / k)
    return recalls


def brute_keep_k(X: Tensor, E: Tensor, E_inverse: Tensor, k: int) -> float:
    """cos(vec X Xᵀ, vec keep_k(XE) keep_k(XE'ᵀ)ᵀ), entry by entry; E and E'ᵀ have one row per token."""
    truncated = []
    for side in (E, E_inverse):
        rows = [[_dot(x, e) for e in side.double().tolist()] for x in X.double().tolist()]
        truncated.append([])
        for row in rows:
            chosen = set(_best([abs(s) for s in row], k, True))
            truncated[-1].append([s if i in chosen else 0.0 for i, s in enumerate(row)])
    products = [_dot(x, y) for x in X.double().tolist() for y in X.double().tolist()]
    values = [_dot(a, b) for a in truncated[0] for b in truncated[1]]
    return _dot(products, values) / math.sqrt(_dot(products, products) * _dot(values, values))


def brute_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of two vectors."""
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / math.sqrt((x @ x) * (y @ y))


def brute_alignment(A: Tensor, B: Tensor) -> float:
    """Mean |Pearson| of all pairs of a row of A and a row of B: two layers' vectors, projected to the same tokens."""
    sizes = [abs(brute_correlation(x, y)) for x in A.double().numpy() for y in B.double().numpy()]
    return math.fsum(sizes) / len(sizes)


def fista(x: Tensor, directions: Tensor, l1: float, iterations: int = 500) -> Tensor:
    """Non-negative sparse codes as in the original implementation (Yun et al. 2021): FISTA from zero, a fixed number of steps."""
    step = 1 / float(torch.linalg.eigvalsh(directions.T @ directions).max())
    codes = extrapolated = torch.zeros(len(x), len(directions), dtype=x.dtype)
    t = 1.0
    for _ in range(iterations):
        before = codes
        codes = (extrapolated + step * ((x - extrapolated @ directions) @ directions.T) - step * l1).clamp(min=0)
        t, t_before = (1 + math.sqrt(1 + 4 * t**2)) / 2, t
        extrapolated = codes + (codes - before) * ((t_before - 1) / t)
    return codes


def sparse_code_objective(x: Tensor, directions: Tensor, codes: Tensor, l1: float) -> list[float]:
    """½‖x − Φᵀα‖² + λ‖α‖₁ of each vector, one product at a time."""
    values = []
    columns = directions.double().T.tolist()
    for vector, code in zip(x.double().tolist(), codes.double().tolist(), strict=True):
        residual = [value - _dot(code, column) for value, column in zip(vector, columns, strict=True)]
        values.append(_dot(residual, residual) / 2 + l1 * math.fsum(code))
    return values


def codes_by_subsets(x: list[float], directions: list[list[float]], l1: float) -> float:
    """The smallest objective of one vector: least squares on every subset of directions; the best non-negative solution."""
    vector, rows = torch.tensor(x, dtype=torch.float64), torch.tensor(directions, dtype=torch.float64)
    best = float(vector @ vector) / 2
    for size in range(1, min(rows.shape) + 1):
        for chosen in combinations(range(len(rows)), size):
            subset = rows[list(chosen)]
            code = torch.linalg.lstsq(subset @ subset.T, (subset @ vector - l1)[:, None]).solution[:, 0]
            if (code >= 0).all():
                residual = vector - code @ subset
                best = min(best, float(residual @ residual) / 2 + l1 * float(code.sum()))
    return best


def brute_relation_hits(
    x: Tensor, W_OV: Tensor, W_U: Tensor, targets: list[int], k: int, sign: int
) -> list[list[bool]]:
    """Entry (i, j): whether target j is among the k best tokens of sign · x_i W_OV W_U, one product at a time (MAPS).

    Args:
        x: The input of the head for each source, one row per pair.
        W_OV: `[d_model, d_model]`.
        W_U: `[d_model, n_tokens]`.
        targets: One column of W_U for each pair.
        k: The number of best tokens.
        sign: 1 for promotion, −1 for suppression.
    """
    output_columns = [[_dot(row, column) for column in W_U.double().T.tolist()] for row in W_OV.double().tolist()]
    hits = []
    for row in x.double().tolist():
        scores = [sign * _dot(row, column) for column in zip(*output_columns, strict=True)]
        best = set(_best(scores, k, True))
        hits.append([target in best for target in targets])
    return hits


def channel_objective(
    r: list[float], w: list[float], rows: list[list[float]], mask: list[float], kurtosis_weight: float = 0.3
) -> float:
    """λ slog(excess kurtosis of (rE)∘m) − (1 − cos(w, r)), token by token (Avrahamy et al. 2026)."""
    scores = [_dot(r, row) * m for row, m in zip(rows, mask, strict=True)]
    mean = math.fsum(scores) / len(scores)
    second, fourth = (math.fsum((s - mean) ** n for s in scores) / len(scores) for n in (2, 4))
    kurtosis = fourth / second**2 - 3
    cosine = _dot(r, w) / math.sqrt(_dot(r, r) * _dot(w, w))
    return kurtosis_weight * math.copysign(math.log1p(abs(kurtosis)), kurtosis) - (1 - cosine)


def adamw_channel(
    w: Tensor, rows: Tensor, mask: Tensor, steps: int, lr: float = 0.03, kurtosis_weight: float = 0.3
) -> Tensor:
    """A neuron's channel by AdamW with autograd on r itself, starting at w, with a fixed number of steps.

    This is not the original's loop, which is `householder_channel`: it has a larger learning rate and needs fewer steps, so
    that a test can compare objectives in short time. The step size is proportional to the mean size of the entries of w.
    """
    r = w.clone().requires_grad_()
    optimiser = torch.optim.AdamW([r], lr=lr * float(w.norm()) / math.sqrt(len(w)))
    for _ in range(steps):
        scores = (rows @ r) * mask
        scores = scores - scores.mean()
        kurtosis = scores.pow(4).mean() / scores.square().mean() ** 2 - 3
        loss = 1 - torch.cosine_similarity(r, w, dim=0) - kurtosis_weight * kurtosis.sign() * kurtosis.abs().log1p()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    r = r.detach()
    return r * (w.norm() / r.norm())


def householder_channel(w: Tensor, rows: Tensor, mask: Tensor, u: Tensor, steps: int) -> list[Tensor]:
    """Every hundredth r = H(u) w of the original's loop, for one neuron, from a given start u."""
    u = u.clone().requires_grad_()
    optimiser = torch.optim.AdamW([u], lr=8e-4, weight_decay=0.01)
    candidates = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 8e-4 * min(1.0, step / 100)
        r = w - 2 * u * (u @ w) / (u @ u)
        if step % 100 == 0:
            candidates.append(r.detach().clone())
        scores = (rows @ r) * mask
        scores = scores - scores.mean()
        kurtosis = scores.pow(4).mean() / scores.square().mean() ** 2 - 3
        loss = 1 - torch.cosine_similarity(r, w, dim=0) - 0.3 * kurtosis.sign() * kurtosis.abs().log1p()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return candidates


def brute_moments(scores: list[float]) -> tuple[float, float, float, float]:
    """Mean, variance, skew and kurtosis (3 for a normal distribution), each by its definition."""
    n = len(scores)
    mean = math.fsum(scores) / n
    second, third, fourth = (math.fsum((x - mean) ** order for x in scores) / n for order in (2, 3, 4))
    return mean, second, third / second**1.5, fourth / second**2


def brute_positive_share(A: Tensor, left: Tensor, right: Tensor, B: Tensor) -> float:
    """Σλ over Σ|λ| over all eigenvalues λ of the n × n matrix A · left · right · Bᵀ."""
    values = np.linalg.eigvals((A.double() @ left.double() @ right.double() @ B.double().T).numpy())
    return float(values.real.sum() / np.abs(values).sum())


def brute_normalized_scores(model: Any, layer: int, embeddings: Tensor, score: str) -> Tensor:
    """Pair scores `[heads, query, key]` from the outputs of the model's own modules, in place of weights.

    The norm before attention, the projections and the norms of queries and keys are called on the embeddings.
    """
    block = model.blocks[layer]
    attn: Any = unwrap(block.attn)
    n_heads = model.cfg.n_heads
    x = embeddings if score == "dot" else embeddings - embeddings.mean(dim=0)
    parts = []
    with torch.no_grad():
        ln1 = block._modules.get("ln1")
        # TransformerLens 3.9 gives this name to norms after attention too.
        if ln1 is not None and "post" not in ln1.name:
            x = unwrap(ln1)(100 * x[None])[0]
        elif score == "cosine":
            x = 100 * x / x.norm(dim=1, keepdim=True)
        else:
            x = 100 * x
        for letter, norm_name in (("q", "q_norm"), ("k", "k_norm")):
            y = unwrap(block.attn._modules[letter])(x)
            norm = block.attn._modules.get(norm_name) or attn._modules.get("qk_norm")
            d_head = attn.head_dim
            if letter == "q" and y.shape[-1] == 2 * n_heads * d_head:  # for each head its query, then a gate
                y = y.view(len(x), n_heads, 2, d_head)[:, :, 0].flatten(1)
            if norm is not None:
                norm: Any = unwrap(norm)
                weight = getattr(norm, "weight", None)
                if weight is not None and weight.ndim == 1 and len(weight) == y.shape[-1]:  # over all heads
                    y = norm(y[None])[0].view(len(x), -1, d_head)
                elif hasattr(norm, "norms"):  # heads precede positions
                    y = norm(y.view(1, len(x), -1, d_head).transpose(1, 2))[0].transpose(0, 1)
                else:
                    y = norm(y.view(1, len(x), -1, d_head))[0]
            y = y.reshape(len(x), -1, d_head).double()
            if score == "cosine":
                y = y / y.norm(dim=-1, keepdim=True)
            parts.append(y.repeat_interleave(n_heads // y.shape[1], dim=1).transpose(0, 1))
    return parts[0] @ parts[1].transpose(1, 2)


def float8_e4m3(byte: int) -> float:
    """The value of a byte in the format E4M3: a sign, four bits of the exponent (bias 7), three bits of the fraction."""
    sign, exponent, fraction = (-1.0 if byte & 0x80 else 1.0), byte >> 3 & 15, byte & 7
    if (exponent, fraction) == (15, 7):
        return math.nan
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def float4_e2m1(code: int) -> float:
    """The value of four bits in the format E2M1: a sign, two bits of the exponent (bias 1), one bit of the fraction."""
    sign, exponent, fraction = (-1.0 if code & 8 else 1.0), code >> 1 & 3, code & 1
    return sign * (fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1))


def brute_fp8(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Each 8-bit value times the scale of its block, rounded to float32."""
    codes = weight.view(torch.uint8).tolist()
    exponents = scale.dtype in (torch.uint8, torch.float8_e8m0fnu)
    scales = (
        [[2.0 ** (s - 127) for s in row] for row in scale.view(torch.uint8).tolist()] if exponents else scale.tolist()
    )
    rows = [
        [float8_e4m3(code) * scales[i // block[0]][j // block[1]] for j, code in enumerate(row)]
        for i, row in enumerate(codes)
    ]
    return torch.tensor(rows, dtype=torch.float64).float()


def brute_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """The experts of gpt-oss: each byte holds two values of a row, which becomes a column."""
    experts = []
    for expert_blocks, expert_scales in zip(blocks.tolist(), scales.tolist()):
        rows = [
            [
                float4_e2m1(code) * 2.0 ** (exponent - 127)
                for group, exponent in zip(row_blocks, row_scales)
                for byte in group
                for code in (byte & 15, byte >> 4)
            ]
            for row_blocks, row_scales in zip(expert_blocks, expert_scales)
        ]
        experts.append([list(column) for column in zip(*rows)])
    return torch.tensor(experts, dtype=torch.float64)


def brute_bit_fields(words: list[int], n_bits: int, n_values: int) -> list[int]:
    """Value i of a row lies in its bits i · n_bits and following, of words of 32 bits with the lowest bit first."""
    bits = [word >> position & 1 for word in words for position in range(32)]
    return [sum(bits[i * n_bits + b] << b for b in range(n_bits)) for i in range(n_values)]


def brute_scaled_integers(
    codes: list[list[int]], zeros: Tensor | None, scale: Tensor, block: tuple[int, int]
) -> Tensor:
    """(q − z) · s, computed in the precision of the scale; `block` is the size of the blocks that share s and z."""
    rows = []
    for i, row in enumerate(codes):
        values = []
        for j, code in enumerate(row):
            shared = (i // block[0], j // block[1])
            zero = 0 if zeros is None else int(zeros[shared])
            values.append(torch.tensor(float(code - zero), dtype=scale.dtype) * scale[shared])
        rows.append(torch.stack(values))
    return torch.stack(rows)


NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""The code book of QLoRA (arXiv 2305.14314, appendix E)."""

FP4 = [s * x for s in (1, -1) for x in (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)]
"""The code book of FP4 in bitsandbytes: a sign and three bits."""


def brute_four_bits(packed: Tensor, absmax: list[float], code_book: list[float], block: int, n_values: int) -> Tensor:
    """Two codes a byte, the first in the higher four bits; each value is relative to the largest one of its block."""
    values = []
    for k in range(n_values):
        byte = int(packed.flatten()[k // 2])
        code = byte & 15 if k % 2 else byte >> 4
        values.append(np.float32(code_book[code]) * np.float32(absmax[k // block]))
    return torch.tensor(np.array(values, dtype=np.float32))


def brute_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """AutoAWQ's layout "gemm": the word holds outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight, from its lowest bits on."""
    n_inputs, n_outputs = len(qweight), scales.shape[1]
    weight = torch.empty(n_outputs, n_inputs, dtype=scales.dtype)
    for i in range(n_inputs):
        for word in range(n_outputs // 8):
            for position, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                code = int(qweight[i, word]) >> 4 * position & 15
                zero = int(qzeros[i // group_size, word]) >> 4 * position & 15
                column = 8 * word + output
                difference = torch.tensor(float(code - zero), dtype=scales.dtype)
                weight[column, i] = difference * scales[i // group_size, column]
    return weight


def brute_q4_0(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ggml's block_q4_0: 32 numbers, d as half, then 16 bytes; number i has the low bits of byte i, 16 + i the high bits."""
    values = []
    for block in _blocks(data, 18):
        d = _half(block, 0)
        quants = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
        values += [np.float32(q - 8) * d for q in quants]
    return np.array(values, dtype=np.float32).reshape(shape)


def brute_q8_0(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ggml's block_q8_0: 32 numbers, d as half, then 32 signed bytes."""
    values = []
    for block in _blocks(data, 34):
        d = _half(block, 0)
        values += [np.float32(byte - 256 if byte > 127 else byte) * d for byte in block[2:]]
    return np.array(values, dtype=np.float32).reshape(shape)


def brute_q4_k(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ggml's block_q4_K: 256 numbers in 8 groups of 32; d and dmin as halves, 12 bytes of scales and minima, 128 of bits.

    Two groups share 32 bytes: the first has the low bits. Scales and minima have 6 bits, see `get_scale_min_k4`.
    """
    values = []
    for block in _blocks(data, 144):
        d, dmin, scales, quants = _half(block, 0), _half(block, 2), block[4:16], block[16:]
        for group in range(8):
            if group < 4:
                scale, minimum = scales[group] & 63, scales[group + 4] & 63
            else:
                scale = (scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4
                minimum = (scales[group + 4] >> 4) | (scales[group] >> 6) << 4
            for byte in quants[32 * (group // 2) : 32 * (group // 2 + 1)]:
                q = byte >> 4 if group % 2 else byte & 15
                values.append(d * np.float32(scale) * np.float32(q) - dmin * np.float32(minimum))
    return np.array(values, dtype=np.float32).reshape(shape)


def brute_q6_k(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ggml's block_q6_K: 256 numbers; 128 bytes of low bits, 64 of high bits, 16 signed scales of 16 numbers, d as half.

    In each half of 128 numbers, number i has its low bits in byte i mod 64 (the high half of the byte from 64 on), and its
    two high bits in byte i mod 32, at position 2 · (i // 32).
    """
    values = []
    for block in _blocks(data, 210):
        low, high, scales, d = block[:128], block[128:192], block[192:208], _half(block, 208)
        for i in range(256):
            half, j = divmod(i, 128)
            byte = low[64 * half + j % 64]
            q = (byte >> 4 if j >= 64 else byte & 15) | ((high[32 * half + j % 32] >> 2 * (j // 32)) & 3) << 4
            scale = scales[i // 16]
            values.append(d * np.float32(scale - 256 if scale > 127 else scale) * np.float32(q - 32))
    return np.array(values, dtype=np.float32).reshape(shape)


def brute_f16(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A sign, 5 bits of exponent and 10 of mantissa."""
    values = []
    for low, high in _blocks(data, 2):
        exponent, mantissa = high >> 2 & 31, (high & 3) << 8 | low
        size = mantissa * 2.0**-24 if exponent == 0 else (1024 + mantissa) * 2.0 ** (exponent - 25)
        values.append(-size if high >> 7 else size)
    return np.array(values, dtype=np.float32).reshape(shape)


def brute_bf16(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The first two bytes of a number in single precision."""
    blocks = [[0, 0, low, high] for low, high in _blocks(data, 2)]
    return np.array(blocks, dtype=np.uint8).view(np.float32).reshape(shape)


def brute_f32(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in single precision."""
    return np.ascontiguousarray(data).view(np.float32).reshape(shape)


DEQUANTIZERS = {
    "Q4_0": brute_q4_0,
    "Q8_0": brute_q8_0,
    "Q4_K": brute_q4_k,
    "Q6_K": brute_q6_k,
    "F16": brute_f16,
    "BF16": brute_bf16,
    "F32": brute_f32,
}
"""ggml's types by their names; each function takes the bytes and the shape of the values."""


def _blocks(data: np.ndarray, size: int) -> list[list[int]]:
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1, size).tolist()


def _half(block: list[int], start: int) -> np.float32:
    return np.float32(np.array(block[start : start + 2], dtype=np.uint8).view(np.float16)[0])


def brute_feature_labels(
    encoder: Tensor,
    decoder: Tensor,
    embedding: Tensor,
    unembedding: Tensor,
    earlier: list[Tensor],
    sizes: dict[str, int],
    thresholds: tuple[float, float],
    largest: bool,
) -> list[tuple]:
    """Labels of features from weights: one tuple per feature, side and rank.

    Returns:
        The feature, rank, token (or −1), earlier feature (or −1), whether it is an outlier, whether the feature is legible, the
        number of the earlier dictionary (or −1), score and z-score.
    """
    rows = []

    def entries(vector: list[float], matrix: Tensor, source: int, pool: int, threshold: float) -> list[tuple]:
        scores = [_dot(vector, row) for row in matrix.double().tolist()]
        best = _best(scores, min(pool, len(scores)), largest)
        mean, deviation = statistics.mean(scores[i] for i in best), statistics.stdev(scores[i] for i in best)
        z = {i: (scores[i] - mean) / deviation for i in best}
        return [(z[i], source, i, scores[i], z[i] > threshold if largest else z[i] < -threshold) for i in best]

    for feature, (read, write) in enumerate(zip(encoder.double().tolist(), decoder.double().tolist(), strict=True)):
        tokens = entries(read, embedding, -1, sizes["pool"], thresholds[0])
        is_legible = any(entry[4] for entry in tokens)
        for i, matrix in enumerate(earlier):
            tokens += entries(read, matrix, i, sizes["feature_pool"], thresholds[1])
        tokens.sort(key=lambda entry: -entry[0] if largest else entry[0])
        sides = [tokens, entries(write, unembedding, -1, sizes["pool"], thresholds[0])]
        for side in sides:
            for rank, (z, source, index, score, is_outlier) in enumerate(side[: sizes["k"]]):
                token, other = (index, -1) if source < 0 else (-1, index)
                rows.append((feature, rank, token, other, int(is_outlier), int(is_legible), source, score, z))
    return rows


def coactivation_loop(source: list[list[float]], target: list[list[float]], pairs: list[tuple[int, int]]) -> dict:
    """Statistics of activations, token by token.

    Args:
        source: The source dictionary's activations, one list per token.
        target: The target dictionary's activations.
        pairs: Indices of source and target features.

    Returns:
        `source` and `target`: (share of active tokens, mean) of each feature; `pairs`: by pair (share of tokens at which both are
        active, mean product, mean of the source's activation where the target is active).
    """
    n = len(source)

    def features(codes: list[list[float]]) -> list[tuple[float, float]]:
        columns = list(zip(*codes, strict=True))
        return [(sum(code > 0 for code in column) / n, math.fsum(column) / n) for column in columns]

    def pair(i: int, j: int) -> tuple[float, float, float]:
        both = [(a[i], b[j]) for a, b in zip(source, target, strict=True)]
        active = sum(x > 0 and y > 0 for x, y in both)
        return active / n, math.fsum(x * y for x, y in both) / n, math.fsum(x for x, y in both if y > 0) / n

    return {"source": features(source), "target": features(target), "pairs": {key: pair(*key) for key in pairs}}
