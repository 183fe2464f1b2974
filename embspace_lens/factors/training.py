"""From a model and texts to factors, in one call that can be stopped and taken up again."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..files import read_json, write_json, write_whole
from ..forward.batches import token_batches
from ..forward.runs import chosen_layers
from ..forward.states import HiddenStates, kept_states, states_of, weights_key
from ..forward.texts import texts_of
from .dictionary import Factors, make_folder
from .fitter import FactorFitter

WEIGHTINGS = ("frequency", "uniform")
BUFFER = 65_536  # hidden states that are shuffled together
SECONDS = 60  # between checkpoints
FACTS = {"parts": int, "seen": int, "flushes": int, "said": str, "done": bool}


def fit_factors(
    model: Any,
    texts: Any,
    *,
    n_factors: int,
    layers: Sequence[int] | None = None,
    l1: float = 0.3,
    epochs: int = 1,
    weighting: str = "frequency",
    max_vectors: int | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    column: str = "text",
    buffer: int = BUFFER,
    seed: int = 0,
    device: str | None = None,
    shards: str | os.PathLike[str] | None = None,
    checkpoint: str | Path | None = None,
) -> Factors:
    r"""Fit transformer factors to the hidden states that texts have in a model, all layers in one dictionary.

    Hidden states are shuffled in a buffer and weigh in by their token, so that common words do not take all factors:

    .. math:: w = 1 / \sqrt{f}, \qquad f = (n_\mathrm{token} + 1) / (n / d_\mathrm{vocab} + 1)

    with n_token how often the token was seen so far and n the tokens seen: a token of average frequency weighs 1.

    Args:
        model: A TransformerLens model with a tokenizer.
        texts: A list, any iterable, a Hugging Face dataset, or a file (text, Parquet, JSON lines, CSV).
        n_factors: How many factors.
        layers: After which blocks; −1 is the embedding. All of them, and the embedding, by default.
        l1: The price λ of a code, in units of the hidden states.
        epochs: How often the texts are read; more than once only if they can be.
        weighting: `"frequency"`, the original's, or `"uniform"`.
        max_vectors: Stop after so many hidden states.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text, in tokens; the rest is cut off. The model's context by default.
        column: The column of texts, of a table or dataset.
        buffer: How many hidden states are held and shuffled.
        seed: Of the fit and of the shuffling.
        device: Where the fit computes; where the model is by default.
        shards: A folder in which hidden states are kept, as for `hidden_states`: later epochs and other fits read them there.
        checkpoint: A folder that is kept up to date; the same call goes on from it, to the same factors.

    Returns:
        The `Factors`. The checkpoint, if there is one, keeps the fit and its history (`FactorFitter.load` of the folder `fitter-…` in it).

    Raises:
        EmbspaceError: If there is no text, an option makes no sense, or the checkpoint is another fit's.

    Example:
        >>> fit_factors(model, ["one two three", "two four"], n_factors=2, layers=[0], l1=0.1)
        Factors(2 factors, d_model 32, l1 0.1)

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2 and appendix. https://arxiv.org/abs/2103.15949
    """
    if weighting not in WEIGHTINGS:
        raise EmbspaceError(f"weighting={weighting!r} is neither 'frequency' nor 'uniform'.")
    for name, value in (
        ("epochs", epochs),
        ("buffer", buffer),
        ("max_vectors", 1 if max_vectors is None else max_vectors),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EmbspaceError(f"{name}={value!r} is not a positive number.")
    found = texts_of(texts, column=column)
    if epochs > 1 and iter(found) is found:
        raise EmbspaceError("texts can be read only once, so epochs=1; give a list, a dataset or a file for more.")
    where = device or str(next(model.parameters()).device)
    options = {
        "n_factors": n_factors,
        "layers": layers if layers is None else chosen_layers(model, layers),
        "l1": float(l1),
        "epochs": epochs,
    }
    options |= {
        "weighting": weighting,
        "batch_tokens": batch_tokens,
        "max_tokens": max_tokens,
        "buffer": buffer,
        "seed": seed,
    }
    options |= {"max_vectors": max_vectors, "model": weights_key(model)}
    fit = _Fit(int(model.cfg.d_model), int(model.cfg.d_vocab), options, where, checkpoint)
    with tqdm(desc="factors", unit=" vectors", initial=fit.seen, total=max_vectors, disable=None, leave=False) as bar:
        known = fit.parts
        for tokens, part in _parts(model, found, layers, epochs, batch_tokens, max_tokens, known, shards):
            fit.meet(tokens)
            if part is not None:
                fit.take(part)
            bar.update(fit.seen - bar.n)
            if fit.said:
                bar.set_postfix_str(fit.said)
            if max_vectors is not None and fit.seen >= max_vectors and fit.number >= known:
                break
    if not fit.seen:
        raise EmbspaceError("The texts hold no token: there is nothing to fit factors to.")
    return fit.end()


def _parts(
    model: Any,
    texts: Any,
    layers: Sequence[int] | None,
    epochs: int,
    batch_tokens: int,
    max_tokens: int | None,
    skip: int,
    shards: Any,
) -> Iterator[tuple[Tensor, HiddenStates | None]]:
    """The tokens and hidden states of all batches; no states of the first ones, which were learnt from before."""
    number = 0
    kept = None if shards is None else kept_states(model, layers, shards)
    for _ in range(epochs):
        for place, batch in enumerate(token_batches(model, texts, batch_tokens=batch_tokens, max_tokens=max_tokens)):
            if number < skip:
                yield batch.tokens, None
            else:
                yield batch.tokens, states_of(model, batch, layers) if kept is None else kept(place, batch)
            number += 1


class _Fit:
    """A fitter, the buffer before it, and both on disk."""

    def __init__(self, d_model: int, d_vocab: int, options: dict[str, Any], device: str, checkpoint: Any) -> None:
        self.options, self.run = options, sha256(repr(sorted(options.items())).encode()).hexdigest()
        self.fitter = FactorFitter(d_model, options["n_factors"], l1=options["l1"], seed=options["seed"], device=device)
        self.counts = torch.zeros(d_vocab, dtype=torch.int64)
        self.number = self.parts = self.seen = self.flushes = 0  # batches read, and those of them that are learnt from
        self.said = ""
        self.done = False
        self.texts = sha256()  # of all tokens read
        self.known = ""  # of those that the checkpoint was made from
        self.held: list[Tensor] = []  # hidden states with their weights as a last column
        self.folder = None if checkpoint is None else Path(checkpoint).expanduser()
        self.saved = time.monotonic()
        if self.folder is not None and (self.folder / "fit.json").exists():
            self._load(self.folder)

    def meet(self, tokens: Tensor) -> None:
        """Count a batch; the last one that the checkpoint knows must end the texts that it was made from."""
        self.number += 1
        self.texts.update(f"{tuple(tokens.shape)}".encode() + tokens.cpu().contiguous().numpy().tobytes())
        if self.known and (
            (self.number == self.parts and self.texts.hexdigest() != self.known)
            or (self.done and self.number > self.parts)
        ):
            raise self._other_texts()

    def _other_texts(self) -> EmbspaceError:
        return EmbspaceError(f"{self.folder} holds a fit to other texts. Name another folder, or remove it.")

    def take(self, part: HiddenStates) -> None:
        """Learn from a batch of hidden states, once enough of them are there to be shuffled."""
        tokens = part.token_index.cpu()
        self.counts += torch.bincount(tokens, minlength=len(self.counts))[: len(self.counts)]
        weight = torch.ones(len(tokens))
        if self.options["weighting"] == "frequency":
            mean = self.counts.sum() / len(self.counts)
            weight = ((self.counts[tokens] + 1) / (mean + 1)).rsqrt()
        for states in part.states.values():
            self.held.append(torch.cat([states.float().cpu(), weight[:, None]], dim=1))
            self.seen += len(states)
        if sum(map(len, self.held)) >= self.options["buffer"]:
            self._flush()

    def _flush(self) -> None:
        rows = torch.cat(self.held)
        generator = torch.Generator().manual_seed(self.options["seed"] * 1_000_003 + self.flushes)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        self.held, self.parts, self.flushes, self.known = [], self.number, self.flushes + 1, ""
        self.fitter.update(rows[:, :-1], weight=rows[:, -1])
        last = self.fitter.history.tail(1)
        if len(last):
            self.said = f"objective {last['objective'].item():.4g}, explained {last['explained_variance'].item():.1%}"
        if self.folder is not None and time.monotonic() - self.saved > SECONDS:
            self._save(self.folder)

    def end(self) -> Factors:
        """The factors, when all has been learnt from."""
        if self.number < self.parts:
            raise self._other_texts()
        if self.held:
            self._flush()
        self.fitter.flush()
        if self.folder is not None and not self.done:
            self.done = True
            self._save(self.folder)
        return self.fitter.factors

    def _save(self, folder: Path) -> None:
        """A whole new state beside the old one, then the file that names it, then the old one goes."""
        make_folder(folder)
        # The last step, with vectors that fill no batch, is a state of its own: what it follows stays until it is there.
        name = f"fitter-{self.flushes}" + ("-end" if self.done else "")
        self.fitter.save(folder / name)
        write_whole(folder / name / "counts.safetensors", save({"counts": self.counts}))
        facts = {fact: getattr(self, fact) for fact in FACTS} | {"texts": self.texts.hexdigest()}
        write_json(folder / "fit.json", {"run": self.run, "fitter": name, "options": self.options, **facts})
        for old in folder.glob("fitter-*"):
            if old.name != name:
                shutil.rmtree(old)
        self.saved = time.monotonic()

    def _load(self, folder: Path) -> None:
        facts = read_json(folder / "fit.json")
        if not isinstance(facts, dict) or not isinstance(facts.get("options", {}), dict):
            raise EmbspaceError(f"{folder / 'fit.json'} is not a checkpoint's. Name another folder, or remove it.")
        if facts.get("run") != self.run:
            differ = [k for k, v in self.options.items() if facts.get("options", {}).get(k) != v]
            raise EmbspaceError(
                f"{folder} holds another fit ({', '.join(differ)} differ). Name another folder, or remove it."
            )
        try:
            self.fitter = FactorFitter.load(folder / facts["fitter"], device=str(self.fitter.device))
            counts = load_file(folder / facts["fitter"] / "counts.safetensors")["counts"]
            if counts.shape != self.counts.shape:
                raise ValueError(f"counts of {len(counts)} tokens")
            self.counts, self.known = counts, str(facts["texts"])
            for fact, kind in FACTS.items():
                setattr(self, fact, kind(facts[fact]))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as reason:
            if isinstance(reason, EmbspaceError):
                raise
            raise EmbspaceError(f"{folder} holds no fit that can be read: {reason}") from reason
