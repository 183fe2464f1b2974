"""Dictionaries of features in a model: what they read and write there, and the loss when they replace what they rebuild."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import read_json
from .tune import block_list

WEIGHTS = "sae_weights.safetensors"


class Place(NamedTuple):
    """Where a dictionary is in a model: an SAE of the stream after a block, or a transcoder of the block's MLP."""

    kind: str  # "sae" or "transcoder"
    layer: int

    @property
    def name(self) -> str:
        """The name of the dictionary's folder."""
        return f"{self.kind}-{self.layer}"

    @property
    def hook(self) -> str:
        """TransformerLens's name for what the encoder reads; an MLP reads its norm's output, after the gain."""
        return f"blocks.{self.layer}." + ("hook_resid_post" if self.kind == "sae" else "mlp.hook_in")

    @property
    def output_hook(self) -> str:
        """TransformerLens's name for what the decoder writes."""
        return f"blocks.{self.layer}." + ("hook_resid_post" if self.kind == "sae" else "hook_mlp_out")


@contextmanager
def hooked(model: Any, place: Place, function: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function of the vectors read and written at a place; what it returns, if anything, replaces those written.

    Args:
        model: A Hugging Face GPT-2.
        place: The place of a dictionary.
        function: Of `x, y [batch, pos, d_model]`.
    """
    block: Any = block_list(model)[place.layer]

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        new = function(y if place.kind == "sae" else inputs[0], y)
        return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

    handle = (block if place.kind == "sae" else block.mlp).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class SavedDictionary:
    """A JumpReLU dictionary as its file stores it; its arithmetic is in single precision.

    This wing stands before `features`; `Features.load` is the public reader of the same folder.
    """

    place: Place
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "SavedDictionary":
        """Read a folder that `train_features` wrote.

        Raises:
            EmbspaceError: If a file is missing or damaged.
        """
        hook = read_json(folder / "cfg.json")["metadata"]["hook_name"]
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as reason:
            raise errors.not_readable(folder / WEIGHTS, reason) from reason
        kind = "sae" if hook.endswith("hook_resid_post") else "transcoder"
        return cls(Place(kind, int(hook.split(".")[1])), {name: tensor.float() for name, tensor in tensors.items()})

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n"]:
        """The codes of vectors."""
        h = (x @ self.tensors["W_enc"] + self.tensors["b_enc"]).relu()
        return h * (h > self.tensors["threshold"])

    def decode(self, codes: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d_out"]:
        """The vectors that codes rebuild."""
        return codes @ self.tensors["W_dec"] + self.tensors["b_dec"]


class _Moments:
    """Sums over the positions of held-out rows, without the first, which always holds the same token."""

    def __init__(self, dictionary: SavedDictionary) -> None:
        self.dictionary = dictionary
        self.n = self.n_active = 0
        self.error = self.square = 0.0
        self.total = torch.zeros(dictionary.tensors["b_dec"].shape, dtype=torch.float64)
        self.active = torch.zeros(dictionary.tensors["b_enc"].shape, dtype=torch.bool)

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x[:, 1:].flatten(0, 1), y[:, 1:].flatten(0, 1)
        codes = self.dictionary.encode(x)
        self.n += len(y)
        self.n_active += int((codes > 0).sum())
        self.active |= (codes > 0).any(0)
        self.error += float((y - self.dictionary.decode(codes)).double().square().sum())
        self.square += float(y.double().square().sum())
        self.total += y.double().sum(0)

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        return (self.total / self.n).float()

    @property
    def unexplained(self) -> float:
        return self.error / (self.square - float(self.total.square().sum()) / self.n)


@torch.no_grad()
def evaluate(
    model: Any, dictionaries: Mapping[str, SavedDictionary], rows: np.ndarray, *, batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """Measure dictionaries on held-out rows of tokens.

    The share of the loss recovered is (ablated − spliced) / (ablated − original): 1 if the loss is unchanged when the
    dictionary's output replaces what it rebuilds, 0 if the output is as bad as the control, which is the mean vector of
    these rows or the zero vector, at each position.

    Args:
        model: A Hugging Face GPT-2 in single precision.
        dictionaries: Dictionaries by name.
        rows: Token ids `[n_rows, n_ctx + 1]` from `pack`.
        batch_size: Rows per forward pass.

    Returns:
        For each dictionary: `fvu` (fraction of variance unexplained), `l0` (mean number of active features), `inactive`
        (features that are active at no position), the losses in nats per token, and the two shares.
    """
    moments = {name: _Moments(dictionary) for name, dictionary in dictionaries.items()}
    n_passes = 1 + 3 * len(moments)
    with tqdm(total=n_passes * len(rows), desc="held out", unit="row", mininterval=5) as progress:

        def loss() -> float:
            return _loss(model, rows, batch_size, progress)

        with ExitStack() as stack:
            for each in moments.values():
                stack.enter_context(hooked(model, each.dictionary.place, each.add))
            original = loss()
        return {name: _measure(model, each, loss, original) for name, each in moments.items()}


def _measure(model: Any, moments: _Moments, loss: Callable[[], float], original: float) -> dict[str, float]:
    dictionary, mean = moments.dictionary, moments.mean
    replacements: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "spliced": lambda x, y: dictionary.decode(dictionary.encode(x)),
        "mean": lambda x, y: mean.expand_as(y),
        "zero": lambda x, y: torch.zeros_like(y),
    }
    losses = {}
    for name, replacement in replacements.items():
        with hooked(model, dictionary.place, replacement):
            losses[name] = loss()
    shares = {
        f"recovered_from_{name}": (losses[name] - losses["spliced"]) / (losses[name] - original)
        for name in ("mean", "zero")
    }
    values = {
        "fvu": moments.unexplained,
        "l0": moments.n_active / moments.n,
        "inactive": int((~moments.active).sum()),
        "loss": original,
        **{f"loss_{name}": value for name, value in losses.items()},
        **shares,
    }
    return {name: round(value, 5) for name, value in values.items()}


def _loss(model: Any, rows: np.ndarray, batch_size: int, progress: tqdm) -> float:
    """The mean cross-entropy of the rows, in nats per token."""
    total = 0.0
    for start in range(0, len(rows), batch_size):
        ids = torch.from_numpy(rows[start : start + batch_size]).long()
        logits = model(ids[:, :-1], use_cache=False).logits
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item() * len(ids)
        progress.update(len(ids))
    return total / len(rows)
