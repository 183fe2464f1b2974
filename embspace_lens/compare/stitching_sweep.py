"""Stitching, measured: every number of kept blocks, every donor, with its controls, as one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from ..errors import EmbspaceError
from ..files import read_json, write_json
from ..forward.batches import TokenBatch, token_batches
from ..forward.pooling import PooledHead
from ..forward.runs import collect_activations, resume
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..weights.configuration import device_of
from ..weights.hook_points import state_hook
from .state_translation import translations_of_states
from .stitching import check_stitch
from .translation import Translation, identity, random_translation, translate

KERNELS = ("pinv", "least_squares", "states", "transpose", "random", "untranslated")
COLUMNS = ["recipient", "donor", "kernel", "keep", "accuracy", "low", "high", "n"]

Donors = Mapping[str, tuple[EmbeddingLens, PooledHead]]
Kernel = str | Callable[[EmbeddingLens, EmbeddingLens, int, int], Translation]


def stitch_sweep(
    recipient: EmbeddingLens,
    donors: Donors,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    graft: int,
    keep: Sequence[int] | None = None,
    kernels: Sequence[str] | Mapping[str, Kernel] = KERNELS,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> pd.DataFrame:
    """Measure how well classifiers do on a model they were not made for, for every number of kept blocks.

    Controls stand in the same table: each donor's own accuracy (kernel donor), the share of the commonest class (chance), a
    Gaussian map of the least-squares map's norm (random), the transpose, and states carried over as they are (untranslated;
    cut or filled with zeros where widths differ).

    Args:
        recipient: The pretrained model's lens.
        donors: By name, tuned models' lenses and their heads; several seeds of one tuning show how steady it is.
        texts: Texts to classify, that neither model was trained on.
        labels: Their classes, in the words of the heads.
        graft: How many of the donors' last blocks run.
        keep: How many of the recipient's first blocks; each number from 0 to all by default.
        kernels: Names out of `"pinv"` (the paper's), `"least_squares"`, `"ridge"`, `"procrustes"`, `"states"`
            (`translate_states`: no data, but forward passes), `"transpose"`, `"random"`, `"untranslated"`; or by name, functions of
            (recipient, donor, layer_source, layer_target) that return a `Translation`.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text, in tokens; the rest is cut off.
        seed: Of the random map and of made-up text.
        checkpoint: A JSON file that is kept up to date; the same call goes on from it.

    Returns:
        One row per (recipient, donor, kernel, keep), with `accuracy`, its 95 % interval `low`, `high` (Wilson) and `n`, the
        texts; `keep` is −1 for donor and chance.

    Raises:
        EmbspaceError: If there are no texts, one class only, a class that a head does not know, or the models do not fit.

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    keeps = list(range(recipient.weights.n_layers + 1)) if keep is None else sorted(set(keep))
    _check(recipient, donors, texts, labels, graft, keeps)
    chosen = {name: name for name in kernels} if not isinstance(kernels, Mapping) else dict(kernels)
    if clash := sorted(set(chosen) & {"donor", "chance"}):
        raise EmbspaceError(f"kernels holds {clash[0]!r}, which is a control's own name.")
    tally = _Tally(
        checkpoint, [recipient.name, sorted(donors), graft, keeps, list(chosen), max_tokens, seed, texts, labels]
    )
    translations = {
        (donor, name, number): made
        for donor, (lens, _) in donors.items()
        for name, kernel in chosen.items()
        for number, made in _translations(recipient, lens, kernel, keeps, graft, seed)
    }
    with tqdm(total=len(texts), desc="stitch", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for number, batch in enumerate(_batches(recipient, donors, texts, batch_tokens, max_tokens)):
            bar.update(len(batch))
            if number < tally.batches:
                continue
            truth = [str(labels[int(i)]) for i in batch.example]
            right = {}
            for name, (lens, head) in donors.items():
                right[name, "donor", -1] = _right(head, _own(lens, batch), batch, truth)
            states = _recipient_states(recipient, batch, keeps)
            for (name, kernel, k), translation in translations.items():
                lens, head = donors[name]
                end = _grafted(lens, batch, translation.state(states[k]), graft)
                right[name, kernel, k] = _right(head, end, batch, truth)
            tally.add(right, len(batch))
    return _table(recipient.name, donors, list(chosen), keeps, tally, labels)


def _check(
    recipient: Any, donors: Donors, texts: Sequence[str], labels: Sequence[str], graft: int, keeps: list[int]
) -> None:
    if not isinstance(donors, Mapping) or not donors:
        raise EmbspaceError("donors is a mapping from a name to (lens, head), of one donor at least.")
    if isinstance(texts, str) or not len(texts):
        raise EmbspaceError("There are no texts to evaluate on; give a sequence of them, and their labels.")
    if len(texts) != len(labels):
        raise EmbspaceError(f"There are {len(texts)} texts and {len(labels)} labels; each text needs its own.")
    if len(set(labels)) < 2:
        raise EmbspaceError(
            f"All {len(texts)} texts are {labels[0]!r}: accuracy on one class says nothing. Give texts of each."
        )
    for name, (lens, head) in donors.items():
        unknown = sorted(set(labels) - set(head.labels))
        if unknown:
            raise EmbspaceError(f"label {unknown[0]!r} is not among those of {name}'s head: {', '.join(head.labels)}.")
        for number in keeps:
            check_stitch(recipient, lens, number, graft, head)


class _Tally:
    """Right answers by (donor, kernel, keep), kept in a file if one is named."""

    def __init__(self, path: str | Path | None, run: list[Any]) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.run = sha256(repr(run).encode()).hexdigest()
        self.batches, self.n = 0, 0
        self.right: dict[tuple[str, str, int], int] = {}
        if self.path is not None and self.path.exists():
            held = read_json(self.path)
            if held.get("run") != self.run:
                raise EmbspaceError(f"{self.path} holds another sweep. Name another file, or remove it.")
            self.batches, self.n = held["batches"], held["n"]
            self.right = {(donor, kernel, keep): count for donor, kernel, keep, count in held["right"]}

    def add(self, right: Mapping[tuple[str, str, int], int], n: int) -> None:
        for cell, count in right.items():
            self.right[cell] = self.right.get(cell, 0) + count
        self.batches, self.n = self.batches + 1, self.n + n
        if self.path is not None:
            held = [[*cell, count] for cell, count in self.right.items()]
            write_json(self.path, {"run": self.run, "batches": self.batches, "n": self.n, "right": held})


def _translations(
    recipient: EmbeddingLens, donor: EmbeddingLens, kernel: Kernel, keeps: list[int], graft: int, seed: int
) -> Iterator[tuple[int, Translation]]:
    """One translation for every number of kept blocks; most are the same for all of them."""
    end = donor.weights.n_layers - graft - 1
    if kernel == "states":
        found = translations_of_states(recipient, donor, [keep - 1 for keep in keeps], end, seed=seed)
        yield from ((layer + 1, made) for layer, made in found.items())
    elif callable(kernel):
        yield from ((keep, kernel(recipient, donor, keep - 1, end)) for keep in keeps)
    else:
        if kernel == "random":
            made = random_translation(translate(recipient, donor, inverse="least_squares"), seed)
        elif kernel == "untranslated":
            made = identity(recipient, donor)
        else:
            made = translate(recipient, donor, inverse=kernel)
        yield from ((keep, made) for keep in keeps)


def _batches(
    recipient: EmbeddingLens, donors: Donors, texts: Sequence[str], batch_tokens: int, max_tokens: int | None
) -> Iterator[TokenBatch]:
    models = [recipient.model, *(lens.model for lens, _ in donors.values())]
    longest = min(
        (n for n in (max_tokens, *(getattr(model.cfg, "n_ctx", None) for model in models)) if n), default=None
    )
    return token_batches(models[0], texts, batch_tokens=batch_tokens, max_tokens=longest)


def _recipient_states(recipient: EmbeddingLens, batch: TokenBatch, keeps: list[int]) -> dict[int, Tensor]:
    model = recipient.model
    names = {keep: state_hook(model, keep - 1) for keep in keeps}
    found = collect_activations(model, batch, list(names.values()))
    return {keep: found[name] for keep, name in names.items()}


def _own(donor: EmbeddingLens, batch: TokenBatch) -> Tensor:
    model = donor.model
    last = state_hook(model, donor.weights.n_layers - 1)
    return collect_activations(model, batch, [last])[last]


def _grafted(donor: EmbeddingLens, batch: TokenBatch, state: Tensor, graft: int) -> Tensor:
    model = donor.model
    return resume(model, batch, state, donor.weights.n_layers - graft)[0] if graft else state.to(device_of(model))


def _right(head: PooledHead, state: Tensor, batch: TokenBatch, truth: Sequence[str]) -> int:
    best = head(state, batch.mask).argmax(dim=1).tolist()
    return sum(head.labels[i] == label for i, label in zip(best, truth))


def _table(
    recipient: str, donors: Donors, kernels: list[str], keeps: list[int], tally: _Tally, labels: Sequence[str]
) -> pd.DataFrame:
    commonest = max(np.unique(np.asarray(labels, dtype=object), return_counts=True)[1]) / len(labels)

    def row(donor: str, kernel: str, keep: int) -> dict[str, Any]:
        right = round(commonest * tally.n) if kernel == "chance" else tally.right[donor, kernel, keep]
        interval = binomtest(right, tally.n).proportion_ci(method="wilson")
        keys = {"recipient": recipient, "donor": donor, "kernel": kernel, "keep": keep}
        return keys | {"accuracy": right / tally.n, "low": interval.low, "high": interval.high, "n": tally.n}

    cells = [(donor, kernel, -1) for donor in donors for kernel in ("chance", "donor")]
    cells += [(donor, kernel, keep) for donor in donors for kernel in kernels for keep in keeps]
    return tidy(COLUMNS, (row(*cell) for cell in sorted(cells)))
