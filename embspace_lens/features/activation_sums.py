"""Sums over tokens of the activations of features and of pairs of features, in bounded memory, with a checkpoint."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import errors
from ..factors.deferred_interrupt import deferred_interrupt
from ..files import expand, write_whole
from ..search.tiles import chunk_rows
from .dictionary import Features

SECONDS = 60  # the minimum time between two checkpoints
CODE_BUDGETS = 8  # budgets for the codes of one chunk of tokens
PRODUCTS_PER_PAIR = (
    16  # matrix products replace the sums of pairs if they compute at most so many products for each pair,
)
MAX_PRODUCTS = 2**22  # and at most so many in all, so that their matrices take 32 MiB


class ActivationSums:
    """Sums over tokens of two dictionaries' activations, and of those of pairs at the same token.

    Sums are in float64, counts in int64. Codes are computed for a chunk of tokens at a time. A pair takes part in a chunk only if
    both of its features are active in it.

    Args:
        source: The dictionary of the pairs' first features.
        target: The dictionary of the second features; it may be the same.
        pairs: Indices of source and target features.

    Attributes:
        sums: `source_active`, `source_sum`, `target_active`, `target_sum` for each feature; `pair_active`, `pair_product` and
            `pair_gated` (the source's activation where the target is active) for each pair.
        n_tokens: How many tokens were added.
    """

    def __init__(self, source: Features, target: Features, pairs: Int[Tensor, "n 2"]) -> None:
        self.source, self.target, self.pairs = source, target, pairs
        lengths = {"source": len(source), "target": len(target), "pair": len(pairs)}
        names = {"active": torch.int64, "sum": torch.float64}
        pair_names = {"active": torch.int64, "product": torch.float64, "gated": torch.float64}
        self.sums = {
            f"{part}_{name}": torch.zeros(length, dtype=dtype)
            for part, length in lengths.items()
            for name, dtype in (pair_names if part == "pair" else names).items()
        }
        self.n_tokens = 0

    def add(self, source_states: Float[Tensor, "n d_model"], target_states: Float[Tensor, "n d_model"]) -> None:
        """Add the values at both dictionaries' hook points of the same tokens."""
        is_same = self.source is self.target
        n_codes = len(self.source) + (0 if is_same else len(self.target))
        step = chunk_rows(4 * n_codes, scale=CODE_BUDGETS)
        for x, y in zip(source_states.split(step), target_states.split(step), strict=True):
            a = self.source.encode(x)
            b = a if is_same else self.target.encode(y)
            self._add_features("source", a)
            self._add_features("target", b)
            self._add_pairs(a, b)
        self.n_tokens += len(source_states)

    def _add_features(self, part: str, codes: Float[Tensor, "n n_features"]) -> None:
        self.sums[f"{part}_active"] += (codes > 0).sum(0).cpu()
        self.sums[f"{part}_sum"] += codes.sum(0, dtype=torch.float64).cpu()

    def _add_pairs(self, a: Float[Tensor, "n n_source"], b: Float[Tensor, "n n_target"]) -> None:
        first, second = self.pairs.to(a.device).T
        is_used = ((a != 0).any(0)[first] & (b != 0).any(0)[second]).nonzero()[:, 0]
        sources, row = first[is_used].unique(return_inverse=True)
        targets, column = second[is_used].unique(return_inverse=True)
        n_products = len(sources) * len(targets)
        if n_products <= min(MAX_PRODUCTS, len(is_used) * PRODUCTS_PER_PAIR):
            # Matrix products of all features that take part are faster than sums of single pairs.
            x, y = a[:, sources].double(), b[:, targets].double()
            is_active, where = (y > 0).double(), is_used.cpu()
            self.sums["pair_active"][where] += ((x > 0).double().T @ is_active)[row, column].long().cpu()
            self.sums["pair_product"][where] += (x.T @ y)[row, column].cpu()
            self.sums["pair_gated"][where] += (x.T @ is_active)[row, column].cpu()
            return
        for used in is_used.split(chunk_rows(24 * max(1, len(a)))):
            x, y = a[:, first[used]].double(), b[:, second[used]].double()
            is_active, where = y > 0, used.cpu()
            self.sums["pair_active"][where] += (is_active & (x > 0)).sum(0).cpu()
            self.sums["pair_product"][where] += (x * y).sum(0).cpu()
            self.sums["pair_gated"][where] += (x * is_active).sum(0).cpu()


class SumsCheckpoint:
    """A file with sums that are not complete, from which an interrupted run resumes.

    Args:
        path: The file; read if it exists. Without a path, nothing is read or written.
        sums: The sums; those of the file replace them.
        options: What the sums depend on, by name; those of the file must be equal.

    Attributes:
        n_batches: How many batches the sums contain.

    Raises:
        EmbspaceError: If the file is not such a checkpoint, or one with other options.
    """

    def __init__(self, path: str | os.PathLike[str] | None, sums: ActivationSums, options: dict[str, str]) -> None:
        self.path = None if path is None else expand(path)
        self._sums, self._options = sums, options
        self.n_batches = self._n_registered = 0
        self._digest, self._saved_digest = sha256(), ""
        self._is_whole, self._is_saved, self._save_time = True, True, time.monotonic()
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Any) -> None:
        try:
            with safe_open(path, "pt") as file:
                state = json.loads((file.metadata() or {})["coactivation"])
                saved = {name: file.get_tensor(name) for name in file.keys()}
            options, n_tokens, n_batches = dict(state["options"]), int(state["n_tokens"]), int(state["n_batches"])
            texts_digest = str(state["texts"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as reason:
            raise errors.not_a_coactivation_checkpoint(path, reason) from reason
        if options != self._options:
            different = [name for name, value in self._options.items() if options.get(name) != value]
            raise errors.checkpoint_of_other_coactivation(path, different)
        expected = {name: (values.shape, values.dtype) for name, values in self._sums.sums.items()}
        if expected != {name: (values.shape, values.dtype) for name, values in saved.items()}:
            raise errors.not_a_coactivation_checkpoint(path, "its sums have other names or shapes")
        self._sums.sums, self._sums.n_tokens = saved, n_tokens
        self.n_batches, self._saved_digest = n_batches, texts_digest

    def is_new(self, tokens: Int[Tensor, "batch pos"]) -> bool:
        """Register the next batch; whether it is not yet in the sums.

        Raises:
            EmbspaceError: If the batches up to the checkpoint are not those from which it was made.
        """
        self._digest.update(f"{tuple(tokens.shape)}".encode() + tokens.cpu().contiguous().numpy().tobytes())
        self._n_registered += 1
        if self._n_registered == self.n_batches and self._digest.hexdigest() != self._saved_digest:
            raise errors.coactivation_of_other_texts(self.path)
        return self._n_registered > self.n_batches

    @contextmanager
    def adding(self) -> Iterator[None]:
        """The addition of the last batch to the sums: Ctrl-C waits for its end, because a half-finished one cannot be resumed."""
        self._is_whole = False
        with deferred_interrupt():
            yield
            self.n_batches, self._saved_digest = self._n_registered, self._digest.hexdigest()
            self._is_whole, self._is_saved = True, False
            if time.monotonic() - self._save_time > SECONDS:
                self.save()

    def finish(self) -> None:
        """Write the file for the last time.

        Raises:
            EmbspaceError: If the texts have fewer batches than the checkpoint.
        """
        if self._n_registered < self.n_batches:
            raise errors.coactivation_of_other_texts(self.path)
        self.save()

    def save_interrupted(self) -> str:
        """Save after an interruption.

        Returns:
            How to resume; an empty string without a path.
        """
        if self.path is None:
            return ""
        self.save()
        if not self.path.exists():
            return "Interrupted before the first checkpoint. The same call starts again."
        return f"Interrupted. The checkpoint is {self.path}. The same call resumes from it."

    def save(self) -> None:
        """Write the file, if a path was given, a batch was added since the last time, and none is half added."""
        if self.path is None or self._is_saved or not self._is_whole:
            return
        state = {
            "options": self._options,
            "n_tokens": self._sums.n_tokens,
            "n_batches": self.n_batches,
            "texts": self._saved_digest,
        }
        write_whole(self.path, save(self._sums.sums, metadata={"coactivation": json.dumps(state)}))
        self._is_saved, self._save_time = True, time.monotonic()
