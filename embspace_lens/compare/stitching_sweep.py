"""The accuracy of stitched models: every number of kept blocks, every donor, with controls, in one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import expand, read_json, write_json
from ..forward.batches import TokenBatch, token_batches
from ..forward.pooling import PooledHead
from ..forward.runs import collect_activations, resume
from ..lens import EmbeddingLens
from ..tables.checks import check_choice
from ..tables.frames import tidy
from ..tables.intervals import proportion_interval
from ..weights.configuration import device_of
from ..weights.hook_points import state_hook
from .common_tokens import check_lens
from .embedding_translation import translate
from .state_translation import translate_layers
from .stitch_inputs import check_depth, check_head, clamp_tokens, longest_row
from .translation import Translation, random_translation, untranslated

SWEEP_INVERSES = ("pinv", "least_squares", "states", "transpose", "random", "untranslated")
CONTROLS = ("chance", "donor")
COLUMNS = ["recipient", "donor", "inverse", "keep", "accuracy", "low", "high", "n"]

Donors = Mapping[str, tuple[EmbeddingLens, PooledHead]]
SweepInverse = str | Callable[[EmbeddingLens, EmbeddingLens, int, int], Translation]
Cell = tuple[str, str, int]
"""The donor, the map and the number of kept blocks (−1 for controls) of one row of the table."""


def stitch_sweep(
    recipient: EmbeddingLens,
    donors: Donors,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    graft: int,
    keep: Sequence[int] | None = None,
    inverse: str | Sequence[str] | Mapping[str, SweepInverse] = SWEEP_INVERSES,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    subtract: Mapping[str, EmbeddingLens] | None = None,
) -> pd.DataFrame:
    """Measure the accuracy of classifiers that are stitched to another model, for every number of kept blocks.

    The table includes controls: each donor's own accuracy (inverse donor), the share of the most frequent class (chance), a
    Gaussian map with the norm of the least-squares map (random), the transpose, and unchanged states (untranslated; cut or
    filled with zeros if the widths differ).

    Args:
        recipient: The pretrained model's lens.
        donors: From name to a fine-tuned model's lens and its head. Several seeds of one fine-tuning show how stable it is.
        texts: Texts to classify, on which neither model was trained.
        labels: Their classes, as the heads name them.
        graft: How many of the donors' last blocks run.
        keep: How many of the recipient's first blocks run; every number from 0 to all by default.
        inverse: A name or several among `"pinv"` (the paper's), `"least_squares"`, `"ridge"`, `"procrustes"`, `"states"`
            (`translate_states`: no data, but forward passes), `"transpose"`, `"random"`, `"untranslated"`. Or a mapping from a
            name to one of these or to a function of (recipient, donor, layer_source, layer_target) that returns a
            `Translation`.
        batch_tokens: About how many tokens run at once.
        max_tokens: The longest text in tokens; the rest is cut off.
        seed: Seed of the random map and of the sampled text.
        checkpoint: A JSON file with the counts so far. The same call resumes from it.
        subtract: From a donor's name to the lens of its base model. The head of this donor then classifies only what tuning
            changed: the output of the tuned blocks minus that of the same blocks of the base, on the same translated states.

    Returns:
        One row per (recipient, donor, inverse, keep), with `accuracy`, its 95 % bootstrap interval `low`, `high`, and `n`, the
        number of texts; `keep` is −1 for donor and chance.

    Raises:
        EmbspaceError: If there are no texts, all have one class, a label is not a class of a head, the models do not fit, or
            `subtract` names an unknown donor.

    Example:
        >>> head = PooledHead(tuned.weights.d_model, ["negative", "positive"])
        >>> texts, labels = ["good", "bad", "fine"], ["positive", "negative", "positive"]
        >>> df = stitch_sweep(lens, {"tuned": (tuned, head)}, texts, labels, graft=1, keep=[1], inverse="pinv")
        >>> df["inverse"].tolist()
        ['chance', 'donor', 'pinv']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    recipient = check_lens(recipient)
    keeps = list(range(recipient.weights.n_layers + 1)) if keep is None else sorted(set(keep))
    keeps = [check_depth("keep", value, recipient) for value in keeps]
    majority = _majority_share(texts, labels)
    donors = _check_donors(donors, graft, labels)
    bases = {check_choice("subtract", name, donors): check_lens(base) for name, base in (subtract or {}).items()}
    inverse = [inverse] if isinstance(inverse, str) else inverse
    named = dict(inverse) if isinstance(inverse, Mapping) else {name: name for name in inverse}
    for name in CONTROLS:
        if name in named:
            raise errors.reserved_inverse(name)
    arguments = [recipient.name, sorted(donors), graft, keeps, list(named), max_tokens, seed, texts, labels]
    arguments += [sorted(bases)] if bases else []
    counts = _Counts(checkpoint, arguments)
    translations = {
        (donor, name, n_kept): translation
        for donor, (lens, _) in donors.items()
        for name, method in named.items()
        for n_kept, translation in _translations(recipient, lens, method, keeps, graft, seed)
    }
    longest = longest_row([recipient.model, *(lens.model for lens, _ in donors.values())], max_tokens)
    batches = token_batches(recipient.model, texts, batch_tokens=batch_tokens, max_tokens=longest)
    with tqdm(total=len(texts), desc="stitch", unit="text", disable=None, leave=False) as bar, torch.no_grad():
        for batch_index, batch in enumerate(batches):
            bar.update(len(batch))
            if batch_index < counts.n_batches:
                continue
            batch_labels = [str(labels[int(i)]) for i in batch.example]
            n_right: dict[Cell, int] = {}
            for donor, (lens, head) in donors.items():
                n_right[donor, "donor", -1] = _count_right(head, _last_state(lens, batch), batch, batch_labels)
            states = _recipient_states(recipient, batch, keeps)
            for cell, translation in translations.items():
                donor, _, n_kept = cell
                lens, head = donors[donor]
                translated = translation.state(states[n_kept])
                state = _run_grafted(lens, batch, translated, graft)
                if donor in bases:
                    state = state - _run_grafted(bases[donor], batch, translated, graft)
                n_right[cell] = _count_right(head, state, batch, batch_labels)
            counts.add(n_right, len(batch))
    if not counts.n_texts:
        raise errors.no_tokens()
    return _table(recipient.name, donors, list(named), keeps, counts, majority)


def _majority_share(texts: Sequence[str], labels: Sequence[str]) -> float:
    """The share of the most frequent label.

    Raises:
        EmbspaceError: If the number of labels differs from the number of texts, or there are fewer than two classes.
    """
    if isinstance(texts, str) or not len(texts):
        raise errors.no_labelled_texts()
    if len(texts) != len(labels):
        raise errors.unequal_lengths(len(texts), len(labels))
    _, n_texts = np.unique(np.asarray(labels, dtype=object), return_counts=True)
    if len(n_texts) < 2:
        raise errors.one_class(len(texts), labels[0])
    return max(n_texts) / len(labels)


def _check_donors(donors: Donors, graft: int, labels: Sequence[str]) -> Donors:
    """The donors, each with a head that has all labels as classes."""
    if not isinstance(donors, Mapping) or not donors:
        raise errors.no_donors()
    for name, (lens, head) in donors.items():
        check_depth("graft", graft, check_lens(lens))
        unknown = sorted(set(labels) - set(check_head(head, lens).labels))
        if unknown:
            raise errors.unknown_class_label(unknown[0], name, head.labels)
    return donors


class _Counts:
    """The number of correct predictions, by cell; saved in a checkpoint if a path is given.

    Args:
        path: The checkpoint's file.
        arguments: The sweep's arguments, which a checkpoint must have been made with.

    Raises:
        EmbspaceError: If the checkpoint cannot be read, or belongs to a sweep with other arguments.
    """

    def __init__(self, path: str | Path | None, arguments: list[Any]) -> None:
        self.path = None if path is None else expand(path)
        self.key = sha256(repr(arguments).encode()).hexdigest()
        self.n_batches, self.n_texts = 0, 0
        self.n_right: dict[Cell, int] = {}
        if self.path is not None and self.path.exists():
            saved = read_json(self.path)
            if saved.get("run") != self.key:
                raise errors.other_sweep(self.path)
            self.n_batches, self.n_texts = saved["batches"], saved["n"]
            self.n_right = {(donor, name, keep): count for donor, name, keep, count in saved["right"]}

    def add(self, n_right: Mapping[Cell, int], n_texts: int) -> None:
        """Add the counts of one batch, and write the checkpoint."""
        for cell, count in n_right.items():
            self.n_right[cell] = self.n_right.get(cell, 0) + count
        self.n_batches, self.n_texts = self.n_batches + 1, self.n_texts + n_texts
        if self.path is not None:
            counts = [[*cell, count] for cell, count in self.n_right.items()]
            write_json(self.path, {"run": self.key, "batches": self.n_batches, "n": self.n_texts, "right": counts})


def _translations(
    recipient: EmbeddingLens, donor: EmbeddingLens, inverse: SweepInverse, keeps: list[int], graft: int, seed: int
) -> Iterator[tuple[int, Translation]]:
    """One translation for every number of kept blocks; most methods give the same one for all."""
    layer_target = donor.weights.n_layers - graft - 1
    if inverse == "states":
        translations = translate_layers(recipient, donor, [n_kept - 1 for n_kept in keeps], layer_target, seed=seed)
        yield from ((layer + 1, translation) for layer, translation in translations.items())
    elif callable(inverse):
        yield from ((n_kept, inverse(recipient, donor, n_kept - 1, layer_target)) for n_kept in keeps)
    else:
        if inverse == "random":
            translation = random_translation(translate(recipient, donor, inverse="least_squares"), seed)
        elif inverse == "untranslated":
            translation = untranslated(recipient, donor)
        else:
            options: Any = {"inverse": inverse}  # `translate` checks the name
            translation = translate(recipient, donor, **options)
        yield from ((n_kept, translation) for n_kept in keeps)


def _recipient_states(
    recipient: EmbeddingLens, batch: TokenBatch, keeps: list[int]
) -> dict[int, Float[Tensor, "batch pos d_recipient"]]:
    """The recipient's states after each number of kept blocks."""
    hooks = {n_kept: state_hook(recipient.model, n_kept - 1) for n_kept in keeps}
    activations = collect_activations(recipient.model, batch, list(hooks.values()))
    return {n_kept: activations[hook] for n_kept, hook in hooks.items()}


def _last_state(donor: EmbeddingLens, batch: TokenBatch) -> Float[Tensor, "batch pos d_donor"]:
    """The donor's own states after its last block."""
    hook = state_hook(donor.model, donor.weights.n_layers - 1)
    return collect_activations(donor.model, batch, [hook])[hook]


def _run_grafted(
    donor: EmbeddingLens, batch: TokenBatch, state: Float[Tensor, "batch pos d_donor"], graft: int
) -> Float[Tensor, "batch pos d_donor"]:
    """Run the donor's last blocks on translated states."""
    if not graft:
        return state.to(device_of(donor.model))
    clamped = clamp_tokens(batch, donor.model)
    return resume(donor.model, clamped, state, donor.weights.n_layers - graft)[0]


def _count_right(
    head: PooledHead, state: Float[Tensor, "batch pos d_donor"], batch: TokenBatch, labels: Sequence[str]
) -> int:
    best = head(state, batch.mask).argmax(dim=1).tolist()
    return sum(head.labels[i] == label for i, label in zip(best, labels))


def _table(
    recipient: str, donors: Donors, names: list[str], keeps: list[int], counts: _Counts, majority: float
) -> pd.DataFrame:
    n = counts.n_texts

    def row(cell: Cell) -> dict[str, Any]:
        donor, inverse, n_kept = cell
        n_right = round(majority * n) if inverse == "chance" else counts.n_right[cell]
        low, high = proportion_interval(n_right, n)
        keys = {"recipient": recipient, "donor": donor, "inverse": inverse, "keep": n_kept}
        return keys | {"accuracy": n_right / n, "low": low, "high": high, "n": n}

    cells: list[Cell] = [(donor, name, -1) for donor in donors for name in CONTROLS]
    cells += [(donor, name, n_kept) for donor in donors for name in names for n_kept in keeps]
    return tidy(COLUMNS, map(row, sorted(cells)), kind="stitch")
