"""Factors: a fitted dictionary, the codes that it gives, and its files."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import errors
from ..files import expand, make_folder, write_json, write_whole
from ..space.embeddings import as_tensor
from ..tables.checks import check_number
from .sparse_coding import sparse_codes

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens's file names
ARCHITECTURE = "transformer_factors"
APPROXIMATE = (
    "Approximate: one ReLU layer instead of the sparse codes with which the factors were fitted. Sparse codes minimise one "
    "objective over all factors together; the codes of this SAE are larger, and more of them are above zero."
)


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    r"""Transformer factors: directions whose sparse non-negative sums approximate hidden states.

    .. math:: x \approx \Phi^\top \alpha, \qquad \alpha = \arg\min_{\alpha \ge 0} \tfrac12 \|x - \Phi^\top \alpha\|^2 + \lambda \|\alpha\|_1

    Args:
        directions: Φ, `[n_factors, d_model]`: one factor per row, of length 1.
        l1: The L1 penalty λ, above 0, in units of the hidden states.

    Raises:
        EmbspaceError: If the directions are not a matrix of finite values, or l1 is not above 0.

    Example:
        >>> factors = Factors(torch.eye(2), l1=1.0)
        >>> codes = factors.encode(torch.tensor([[3.0, 0.5]]))
        >>> codes.round(decimals=3)
        tensor([[2., 0.]])
        >>> factors.decode(codes).round(decimals=3)
        tensor([[2., 0.]])

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2. https://arxiv.org/abs/2103.15949
    """

    directions: Float[Tensor, "n_factors d_model"]
    l1: float

    def __post_init__(self) -> None:
        directions = as_tensor(self.directions, "directions")
        if directions.ndim != 2 or not directions.numel():
            raise errors.factor_input_shape("directions", tuple(directions.shape), "[n_factors, d_model]")
        if not directions.isfinite().all():
            raise errors.not_finite("directions")
        check_number("l1", self.l1, above=0)
        object.__setattr__(self, "directions", directions)

    @property
    def n_factors(self) -> int:
        return len(self.directions)

    @property
    def d_model(self) -> int:
        return self.directions.shape[1]

    def __repr__(self) -> str:
        return f"Factors({self.n_factors} factors, d_model {self.d_model}, l1 {self.l1:g})"

    def encode(
        self, x: Any, *, gap: float = 1e-4, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "*batch n_factors"]:
        """Compute the sparse codes of hidden states.

        Args:
            x: Hidden states `[..., d_model]`, in any precision.
            gap: The relative duality gap to reach; see `sparse_codes`, which also returns the gap that was reached.
            progress: Called with (vectors done, all vectors) after each chunk.

        Returns:
            One code per (hidden state, factor), `[..., n_factors]`, 0 or above.

        Raises:
            EmbspaceError: If the width is not the dictionary's, or values are not finite.
        """
        x = as_tensor(x, "hidden states")
        if not x.ndim or x.shape[-1] != self.d_model:
            width = x.shape[-1] if x.ndim else 1
            raise errors.bad_width(width, "the dictionary", self.d_model, "hidden states")
        flat = x.reshape(-1, self.d_model)
        codes = sparse_codes(flat, self.directions, self.l1, gap=gap, progress=progress).codes
        return codes.view(*x.shape[:-1], self.n_factors)

    def decode(self, codes: Any) -> Float[Tensor, "*batch d_model"]:
        """Sum the directions, weighted by their codes.

        Args:
            codes: Codes `[..., n_factors]`.

        Returns:
            One vector per row of codes, `[..., d_model]`.

        Raises:
            EmbspaceError: If the number of codes differs from the number of factors.
        """
        codes = as_tensor(codes, "codes")
        if not codes.ndim or codes.shape[-1] != self.n_factors:
            raise errors.wrong_code_count(tuple(codes.shape), self.n_factors)
        precision = torch.promote_types(codes.dtype, self.directions.dtype)
        return codes.to(precision) @ self.directions.to(precision)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors` to a folder.

        Args:
            folder: The folder to write to; created if needed. Files of an earlier save are replaced atomically.
            dtype: The precision of the file. `torch.float16` halves its size and changes directions by about 5e-4 of their length.

        Raises:
            EmbspaceError: If the files cannot be written. Files of an earlier save are then unchanged.
        """
        # λ is stored in the same file as the directions, because two files cannot be replaced in one atomic step.
        tensors = {"W_dec": self.directions.to("cpu", dtype).contiguous()}
        metadata = {"architecture": ARCHITECTURE, "l1": repr(float(self.l1))}
        config = {
            "architecture": ARCHITECTURE,
            "d_in": self.d_model,
            "d_sae": self.n_factors,
            "l1": float(self.l1),
            "dtype": str(dtype).removeprefix("torch."),
        }
        return _write(folder, tensors, metadata, config)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str = "cpu") -> "Factors":
        """Read what `save` wrote.

        Args:
            folder: The folder of the saved factors.
            device: The device of the directions. They are in float64 if they were saved so, and in float32 otherwise.

        Raises:
            EmbspaceError: If files are missing or damaged, or have another architecture.
        """
        tensors, metadata = read_tensors(expand(folder) / WEIGHTS, ARCHITECTURE)
        directions = tensors.get("W_dec")
        try:
            l1 = float(metadata["l1"])
        except (KeyError, ValueError):
            l1 = math.nan
        if directions is None or directions.ndim != 2 or not l1 > 0:
            raise errors.incomplete_dictionary(folder)
        is_double = directions.dtype is torch.float64
        return cls(directions.to(device, torch.float64 if is_double else torch.float32), l1)

    def to_saelens(self, folder: str | os.PathLike[str]) -> Path:
        r"""Export a SAELens SAE of the standard architecture that approximates these factors in one layer.

        .. math:: \hat\alpha = \mathrm{ReLU}(\Phi x - \lambda), \qquad \hat x = \Phi^\top \hat\alpha

        This is the exact code only if the active factors are orthogonal. Otherwise codes are too large, because each factor
        is computed without the others. The metadata of `cfg.json` states this. Use the SAE to see which factors are active;
        use `encode` to measure.

        Args:
            folder: The folder to write to; created if needed.

        Raises:
            EmbspaceError: If the files cannot be written.
        """
        directions = self.directions.float().cpu().contiguous()
        tensors = {
            "W_enc": directions.T.contiguous(),
            "b_enc": torch.full((self.n_factors,), -float(self.l1)),
            "W_dec": directions,
            "b_dec": torch.zeros(self.d_model),
        }
        config = {
            "architecture": "standard",
            "d_in": self.d_model,
            "d_sae": self.n_factors,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"l1": float(self.l1), "note": APPROXIMATE},
        }
        return _write(folder, tensors, {}, config)


def _write(
    folder: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any]
) -> Path:
    path = make_folder(folder)
    write_whole(path / WEIGHTS, save(tensors, metadata=metadata))
    write_json(path / CONFIG, config)
    return path


def read_tensors(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (copied to memory) and the metadata of a safetensors file of this architecture.

    Raises:
        EmbspaceError: If the file does not exist, is damaged, or has another architecture.
    """
    if not path.is_file():
        raise errors.no_factors_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("architecture") != architecture:
                raise errors.other_kind_of_file(path, architecture, metadata.get("architecture"))
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata
    except (SafetensorError, OSError, json.JSONDecodeError) as reason:
        raise errors.damaged_factors_file(path, reason) from reason
