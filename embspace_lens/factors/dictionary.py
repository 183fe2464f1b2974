"""Factors: a fitted dictionary, its codes, and its files."""

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
from ..files import write_json, write_whole
from ..space.embeddings import as_tensor
from .sparse_coding import positive, sparse_codes

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens's names
ARCHITECTURE = "transformer_factors"
APPROXIMATE = (
    "Approximate: one ReLU layer instead of the sparse codes that the factors were fitted with, which are a minimum over "
    "all factors together. Its codes are larger and more of them are above zero."
)


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    r"""Transformer factors: directions of which hidden states are sparse non-negative sums.

    .. math:: x \approx \Phi^\top \alpha, \qquad \alpha = \arg\min_{\alpha \ge 0} \tfrac12 \|x - \Phi^\top \alpha\|^2 + \lambda \|\alpha\|_1

    Args:
        directions: Φ, one factor a row, each of length 1.
        l1: The price λ of a code, above 0, in units of the hidden states.

    Raises:
        EmbspaceError: If the directions are no finite matrix, or l1 is not above 0.

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
            raise errors.EmbspaceError(f"directions have shape {tuple(directions.shape)}; give [n_factors, d_model].")
        if not directions.isfinite().all():
            raise errors.not_finite("directions")
        positive("l1", self.l1)
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
        self,
        x: Float[Tensor, "*batch d_model"],
        *,
        gap: float = 1e-4,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "*batch n_factors"]:
        """Find the sparse codes of hidden states.

        Args:
            x: Hidden states, in any precision.
            gap: The relative duality gap to reach; see `sparse_codes`, which also returns what was reached.
            progress: Called with (vectors done, vectors in all) as the work goes on.

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

    def decode(self, codes: Float[Tensor, "*batch n_factors"]) -> Float[Tensor, "*batch d_model"]:
        """Sum the directions that codes stand for.

        Args:
            codes: One code per factor.

        Returns:
            One vector per row of codes, `[..., d_model]`.

        Raises:
            EmbspaceError: If there are not as many codes as factors.
        """
        codes = as_tensor(codes, "codes")
        if not codes.ndim or codes.shape[-1] != self.n_factors:
            raise errors.EmbspaceError(
                f"codes have shape {tuple(codes.shape)}; the last size is {self.n_factors} factors."
            )
        precision = torch.promote_types(codes.dtype, self.directions.dtype)
        return codes.to(precision) @ self.directions.to(precision)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors` into a folder, which is made if need be.

        Args:
            folder: Where to; files of an earlier save are replaced whole or not at all.
            dtype: Precision on disk; `torch.float16` halves the size and changes directions by about 5e-4 of their length.

        Raises:
            EmbspaceError: If it cannot be written; what was there is then as it was.
        """
        # λ is stored beside the directions, in the one file that counts: two files cannot be replaced at one moment.
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
            folder: Where from.
            device: Where to put the directions, in float32 (in float64 if they were saved so).

        Raises:
            EmbspaceError: If files are missing, damaged, or something else's.
        """
        tensors, metadata = read_tensors(Path(folder).expanduser() / WEIGHTS, ARCHITECTURE)
        directions = tensors.get("W_dec")
        try:
            l1 = float(metadata["l1"])
        except (KeyError, ValueError):
            l1 = math.nan
        if directions is None or directions.ndim != 2 or not l1 > 0:
            raise errors.EmbspaceError(f"{folder} holds no complete dictionary. Save it again with Factors.save.")
        double = directions.dtype is torch.float64
        return cls(directions.to(device, torch.float64 if double else torch.float32), l1)

    def to_saelens(self, folder: str | os.PathLike[str]) -> Path:
        r"""Export a SAELens SAE of the standard architecture that approximates these factors in one layer.

        .. math:: \hat\alpha = \mathrm{ReLU}(\Phi x - \lambda), \qquad \hat x = \Phi^\top \hat\alpha

        That is the exact code only where active factors are at right angles; elsewhere codes come out too large, since no
        factor knows what the others explain. The metadata of `cfg.json` says so. Use the SAE to look at which factors
        respond; to measure, use `encode`.

        Args:
            folder: Where to; made if need be.

        Raises:
            EmbspaceError: If it cannot be written.
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


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        EmbspaceError: If it cannot be.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise errors.EmbspaceError(f"{path} cannot be made a folder: {reason.strerror or reason}.") from reason
    return path


def _write(folder: Any, tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any]) -> Path:
    path = make_folder(folder)
    write_whole(path / WEIGHTS, save(tensors, metadata=metadata))
    write_json(path / CONFIG, config)
    return path


def read_tensors(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of ours, in memory of their own.

    Raises:
        EmbspaceError: If there is none, it is damaged, or something else wrote it.
    """
    if not path.is_file():
        raise errors.EmbspaceError(f"{path} does not exist. Is this the folder that was saved to?")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("architecture") != architecture:
                raise errors.EmbspaceError(
                    f"{path} is not of the kind {architecture!r} (it says {metadata.get('architecture')!r})."
                )
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata
    except (SafetensorError, OSError, json.JSONDecodeError) as reason:
        raise errors.EmbspaceError(
            f"{path} cannot be read ({reason}). It is damaged or not a safetensors file."
        ) from reason
