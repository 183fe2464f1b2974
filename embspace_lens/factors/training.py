"""Fitting factors to the hidden states of texts in one call, with checkpoints from which a fit can be resumed."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import expand, make_folder, read_json, write_json, write_whole
from ..forward.batches import token_batches
from ..forward.runs import chosen_layers
from ..forward.states import HiddenStates, kept_states, states_of, weights_key
from ..forward.texts import texts_of
from ..tables.checks import check_choice, check_integer
from ..weights.configuration import d_model, d_vocab, device_of
from .deferred_interrupt import deferred_interrupt
from .dictionary import Factors
from .fitter import FactorFitter

Weighting = Literal["frequency", "uniform"]
BUFFER = 65_536  # hidden states that are shuffled together
CHECKPOINT_SECONDS = 60  # the minimum time between checkpoints


def fit_factors(
    model: Any,
    texts: Any,
    *,
    n_factors: int,
    layers: int | Iterable[int] | None = None,
    l1: float = 0.3,
    epochs: int = 1,
    weighting: Weighting = "frequency",
    max_vectors: int | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    column: str = "text",
    buffer: int = BUFFER,
    seed: int = 0,
    device: str | None = None,
    shards: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Factors:
    r"""Fit transformer factors to the hidden states of texts, with one dictionary for all layers.

    Hidden states are shuffled in a buffer. Their weights depend on the frequency f of their tokens, because otherwise most
    factors represent frequent words:

    .. math:: w = 1 / \sqrt{f}, \qquad f = (n_\mathrm{token} + 1) / (n / d_\mathrm{vocab} + 1)

    Here n_token is the number of occurrences of the token so far, and n the number of all tokens so far. A token of average
    frequency has weight 1.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: A list, any iterable, a Hugging Face dataset, or a file (text, Parquet, JSON lines, CSV).
        n_factors: The number of factors.
        layers: The layers: hidden states after these blocks; −1 is the embedding. By default the embedding and all blocks.
        l1: The L1 penalty λ, in units of the hidden states.
        epochs: How often the texts are read. More than 1 needs texts that can be read again.
        weighting: `"frequency"` as in Yun et al., or `"uniform"`.
        max_vectors: Stop after this number of hidden states.
        batch_tokens: The approximate number of tokens per batch.
        max_tokens: The maximum length of a text in tokens; longer texts are cut. The model's context length by default.
        column: The column of texts in a table or dataset.
        buffer: How many hidden states are shuffled together.
        seed: Seed of the fit and of the shuffling.
        device: The device of the fit; the model's by default.
        shards: A folder in which hidden states are cached, as in `hidden_states`. Later epochs and other fits read them there.
        checkpoint: A folder for checkpoints, at most one a minute. The same call resumes from it and returns the same factors.
            Ctrl-C saves a checkpoint too; a second Ctrl-C stops at once.

    Returns:
        The `Factors`. A checkpoint also contains the fit and its history: use `FactorFitter.load` on its folder `fitter-…`.

    Raises:
        EmbspaceError: If the texts contain no tokens, an option is out of bounds, or the checkpoint belongs to another fit.

    Example:
        >>> fit_factors(model, ["one two three", "two four"], n_factors=2, layers=[0], l1=0.1)
        Factors(2 factors, d_model 32, l1 0.1)

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2 and appendix. https://arxiv.org/abs/2103.15949
    """
    check_choice("weighting", weighting, get_args(Weighting))
    epochs = check_integer("epochs", epochs, minimum=1)
    buffer = check_integer("buffer", buffer, minimum=1)
    if max_vectors is not None:
        max_vectors = check_integer("max_vectors", max_vectors, minimum=1)
    texts = texts_of(texts, column=column)
    if epochs > 1 and iter(texts) is texts:
        raise errors.texts_read_once(epochs)
    chosen = chosen_layers(model, layers)
    options = {
        "n_factors": n_factors,
        "layers": None if layers is None else chosen,
        "l1": float(l1),
        "epochs": epochs,
        "weighting": weighting,
        "batch_tokens": batch_tokens,
        "max_tokens": max_tokens,
        "buffer": buffer,
        "seed": seed,
        "max_vectors": max_vectors,
        "model": weights_key(model),
    }
    fit = _Fit(d_model(model), d_vocab(model), options, device or str(device_of(model)), checkpoint)
    try:
        with tqdm(
            desc="factors", unit=" vectors", initial=fit.n_vectors, total=max_vectors, disable=None, leave=False
        ) as bar:
            n_resumed = fit.n_batches_used
            batches = _hidden_batches(model, texts, chosen, epochs, batch_tokens, max_tokens, n_resumed, shards)
            for tokens, hidden in batches:
                fit.register(tokens)
                if hidden is not None:
                    fit.add(hidden)
                bar.update(fit.n_vectors - bar.n)
                if fit.progress:
                    bar.set_postfix_str(fit.progress)
                if max_vectors is not None and fit.n_vectors >= max_vectors and fit.n_batches >= n_resumed:
                    break
        if not fit.n_vectors:
            raise errors.texts_without_tokens()
        return fit.finish()
    except KeyboardInterrupt as interrupt:
        message = fit.save_interrupted()
        if not message:
            raise
        raise KeyboardInterrupt(message) from interrupt


def _hidden_batches(
    model: Any,
    texts: Any,
    layers: Sequence[int],
    epochs: int,
    batch_tokens: int,
    max_tokens: int | None,
    n_resumed: int,
    shards: str | os.PathLike[str] | None,
) -> Iterator[tuple[Tensor, HiddenStates | None]]:
    """The tokens and hidden states of all batches; without states for the batches that a checkpoint contains already."""
    n_batches = 0
    cached = None if shards is None else kept_states(model, layers, shards)
    for _ in range(epochs):
        for index, batch in enumerate(token_batches(model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens)):
            if n_batches < n_resumed:
                yield batch.tokens, None
            else:
                yield batch.tokens, states_of(model, batch, layers) if cached is None else cached(index, batch)
            n_batches += 1


class _Used(NamedTuple):
    """What was read up to the last flush."""

    n_vectors: int
    texts_digest: str
    token_counts: Int[Tensor, " d_vocab"]


class _Fit:
    """A fitter with its shuffle buffer and its checkpoint.

    Attributes:
        n_batches: How many batches of tokens were read.
        n_batches_used: How many of them the fitter has received; those in the buffer do not count.
        n_vectors: How many hidden states were added.
        n_flushes: How often the buffer was emptied.
        used: The hidden states and tokens that the fitter has received.
        progress: The measures of the last step, for the progress bar.
    """

    def __init__(
        self,
        d_model: int,
        d_vocab: int,
        options: dict[str, Any],
        device: str,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.options, self.run = options, sha256(repr(sorted(options.items())).encode()).hexdigest()
        self.fitter = FactorFitter(d_model, options["n_factors"], l1=options["l1"], seed=options["seed"], device=device)
        self.token_counts = torch.zeros(d_vocab, dtype=torch.int64)
        self.n_batches = self.n_batches_used = self.n_vectors = self.n_flushes = 0
        self.progress = ""
        self.is_done = False
        self.is_whole, self.is_saved = (
            True,
            True,
        )  # no change of the fitter is half finished; none is newer than the checkpoint
        self.texts_digest = sha256()  # of all tokens read
        self.checkpoint_digest = ""  # of the tokens from which the checkpoint was made; empty after the next flush
        self.used = _Used(0, self.texts_digest.hexdigest(), self.token_counts.clone())
        self.buffer: list[Tensor] = []  # hidden states; their weights are the last column
        self.folder = None if checkpoint is None else expand(checkpoint)
        self.save_time = time.monotonic()
        if self.folder is not None and (self.folder / "fit.json").exists():
            self._load(self.folder)

    def register(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Count a batch, and check that the batches up to the checkpoint are those from which it was made."""
        self.n_batches += 1
        self.texts_digest.update(f"{tuple(tokens.shape)}".encode() + tokens.cpu().contiguous().numpy().tobytes())
        if self.checkpoint_digest:
            differ = self.n_batches == self.n_batches_used and self.texts_digest.hexdigest() != self.checkpoint_digest
            if differ or (self.is_done and self.n_batches > self.n_batches_used):
                raise errors.checkpoint_of_other_texts(self.folder)

    def add(self, hidden: HiddenStates) -> None:
        """Add the hidden states of a batch to the buffer; a full buffer goes to the fitter."""
        tokens = hidden.token_index.cpu()
        self.token_counts += torch.bincount(tokens, minlength=len(self.token_counts))[: len(self.token_counts)]
        weight = torch.ones(len(tokens))
        if self.options["weighting"] == "frequency":
            mean = self.token_counts.sum() / len(self.token_counts)
            weight = ((self.token_counts[tokens] + 1) / (mean + 1)).rsqrt()
        for states in hidden.states.values():
            self.buffer.append(torch.cat([states.float().cpu(), weight[:, None]], dim=1))
            self.n_vectors += len(states)
        if sum(map(len, self.buffer)) >= self.options["buffer"]:
            self._flush()

    def _flush(self) -> None:
        """Shuffle the buffer, pass it to the fitter, and save a checkpoint if the last one is old enough."""
        rows = torch.cat(self.buffer)
        generator = torch.Generator().manual_seed(self.options["seed"] * 1_000_003 + self.n_flushes)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        self.buffer, self.checkpoint_digest = [], ""
        with self._changes():
            self.n_batches_used, self.n_flushes = self.n_batches, self.n_flushes + 1
            self.fitter.update(rows[:, :-1], weight=rows[:, -1])
            # Batches that are read after this go to the buffer; a checkpoint must not contain their counts.
            self.used = _Used(self.n_vectors, self.texts_digest.hexdigest(), self.token_counts.clone())
        last = self.fitter.history.tail(1)
        if len(last):
            objective, explained = last["objective"].item(), last["explained_variance"].item()
            self.progress = f"objective {objective:.4g}, explained {explained:.1%}"
        if self.folder is not None and time.monotonic() - self.save_time > CHECKPOINT_SECONDS:
            self._save(self.folder)

    def finish(self) -> Factors:
        """Use the rest of the buffer and of the fitter's waiting vectors, save the checkpoint, and return the factors."""
        if self.n_batches < self.n_batches_used:
            raise errors.checkpoint_of_other_texts(self.folder)
        if self.buffer:
            self._flush()
        with self._changes():
            self.fitter.flush()
            if self.folder is not None and not self.is_done:
                self.is_done = True
                self._save(self.folder)
        return self.fitter.factors

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """Changes of the fitter: Ctrl-C waits for their end, because a half-finished change cannot be resumed."""
        self.is_whole = self.is_saved = False
        with deferred_interrupt():
            yield
            self.is_whole = True

    def save_interrupted(self) -> str:
        """Save a checkpoint after an interruption.

        Returns:
            How to resume; an empty string without a folder for checkpoints.
        """
        if self.folder is None:
            return ""
        if self.is_whole and self.n_flushes and not self.is_saved:
            self._save(self.folder)
        if not (self.folder / "fit.json").exists():
            return "Interrupted before the first checkpoint: the buffer of hidden states was not full. The same call starts again."
        return f"Interrupted. The checkpoint is in {self.folder}. The same call resumes from it."

    def _save(self, folder: Path) -> None:
        """Write the new state beside the old one, then the file that names it, then delete the old state."""
        make_folder(folder)
        # The last step does not change the number of flushes. The state after the last step needs another name, because
        # the state before the last step must be kept until the new state is complete.
        name = f"fitter-{self.n_flushes}" + ("-end" if self.is_done else "")
        self.fitter.save(folder / name)
        write_whole(folder / name / "counts.safetensors", save({"counts": self.used.token_counts}))
        state = {
            "parts": self.n_batches_used,
            "seen": self.used.n_vectors,
            "flushes": self.n_flushes,
            "done": self.is_done,
            "texts": self.used.texts_digest,
        }
        write_json(folder / "fit.json", {"run": self.run, "fitter": name, "options": self.options, **state})
        for other in folder.glob("fitter-*"):
            if other.name != name:
                shutil.rmtree(other)
        self.is_saved, self.save_time = True, time.monotonic()

    def _load(self, folder: Path) -> None:
        """Restore the state of a checkpoint.

        Raises:
            EmbspaceError: If the checkpoint belongs to another fit, or is damaged.
        """
        state = read_json(folder / "fit.json")
        if not isinstance(state, dict) or not isinstance(state.get("options", {}), dict):
            raise errors.not_a_checkpoint(folder / "fit.json")
        if state.get("run") != self.run:
            saved = state.get("options", {})
            raise errors.checkpoint_of_other_fit(folder, [k for k, v in self.options.items() if saved.get(k) != v])
        try:
            self.fitter = FactorFitter.load(folder / state["fitter"], device=str(self.fitter.device))
            counts = load_file(folder / state["fitter"] / "counts.safetensors")["counts"]
            if counts.shape != self.token_counts.shape:
                raise ValueError(f"it has counts of {len(counts)} tokens, the model has {len(self.token_counts)}")
            self.token_counts, self.checkpoint_digest = counts, str(state["texts"])
            self.n_batches_used, self.n_vectors = int(state["parts"]), int(state["seen"])
            self.n_flushes, self.is_done = int(state["flushes"]), bool(state["done"])
            self.used = _Used(self.n_vectors, self.checkpoint_digest, counts.clone())
        except errors.EmbspaceError:
            raise
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as reason:
            raise errors.unreadable_checkpoint(folder, reason) from reason
