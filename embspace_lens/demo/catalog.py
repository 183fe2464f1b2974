"""The catalog of demo models: small language models of movie reviews, part of the package, loaded without a network."""

import json
from importlib.resources import files
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import errors
from ..checkpoints.checkpoint import Checkpoint
from ..files import expand, read_json
from ..forward.pooling import PooledHead
from ..space.masks import TokenMask, whole_words
from ..space.vocabulary import Vocabulary
from ..weights.booting import boot, load_checked
from ..weights.offloading import boot_offloaded

MODELS = Path(str(files("embspace_lens.demo") / "models"))


def names() -> list[str]:
    """The names of the demo models, for `load` and `EmbeddingLens.from_pretrained`."""
    return sorted(file.parent.name for kind in ("config", "difference") for file in MODELS.glob(f"*/{kind}.json"))


def card(name: str | PathLike[str]) -> dict[str, Any]:
    """The facts about a demo model: configuration, number of training tokens and held-out loss; of a classifier, base and accuracy.

    Args:
        name: One of `names()`, or a folder written by `python -m embspace_lens.demo.tune`.

    Raises:
        EmbspaceError: If there is no such demo model.
    """
    if is_classifier(name):
        return read_json(_folder(name) / "difference.json")
    if name not in names():
        raise errors.choice("model", str(name), names())
    return json.loads((MODELS / name / "train.json").read_text())


def is_classifier(name: str | PathLike[str]) -> bool:
    """Whether this is the name of a demo classifier, or the folder of a classifier."""
    return (_folder(name) / "difference.json").is_file()


def seen(at_least: int = 200) -> TokenMask:
    """Tokens that occur at least `at_least` times in the training reviews of the demo models.

    Embeddings of rare tokens are long and undertrained. Without a mask, they fill the lists of a small model.

    Raises:
        EmbspaceError: If the mask is used by a lens whose model is not a demo model.
    """

    def choose(vocabulary: Vocabulary, _: Any) -> torch.Tensor:
        counts = load_file(MODELS / "tokenizer" / "counts.safetensors")["counts"]
        if len(counts) != len(vocabulary):
            raise errors.other_vocabulary(vocabulary.model, len(vocabulary), len(counts))
        return counts >= at_least

    return TokenMask(f"seen {at_least}+ times", choose)


frequent_words = TokenMask("frequent", (whole_words & seen(200)).choose)
"""Whole words that occur at least 200 times in the training reviews: the mask with the most readable lists."""


def load(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a demo model into a TransformerBridge, without a network.

    Args:
        name: One of `names()`.
        device: The device of its weights.
        dtype: The precision of its weights, which are stored in half precision.

    Returns:
        A TransformerBridge with its tokenizer.

    Raises:
        EmbspaceError: If there is no such demo model.
    """
    if name not in names():
        raise errors.choice("model", name, names())
    if is_classifier(name):
        return load_tuned(MODELS / name, device=device, dtype=dtype)[0]
    return _load(name, name, {}, device, dtype)


def load_offloaded(name: str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """As `load`, but the weights stay in their file, and each is read when it is needed.

    Raises:
        EmbspaceError: If there is no such demo model, or it is stored as a difference from another one.
    """
    from transformers import AutoTokenizer

    if is_classifier(name):
        raise errors.no_offloaded_difference(name)
    folder = _folder(name)
    tokenizer = AutoTokenizer.from_pretrained(str(MODELS / "tokenizer"), local_files_only=True)
    checkpoint = Checkpoint.of_folder(folder)
    return boot_offloaded(str(folder), checkpoint, tokenizer=tokenizer, device=device, dtype=dtype or torch.float32)


def head(name: str | PathLike[str]) -> PooledHead:
    """The head of a demo classifier, or of a classifier in a folder, for `stitch`.

    Args:
        name: A classifier in `names()`, or a folder written by `python -m embspace_lens.demo.tune`.

    Raises:
        EmbspaceError: If there is no such classifier.
    """
    if not is_classifier(name):
        raise errors.choice("classifier", str(name), [n for n in names() if is_classifier(n)])
    return _read_tuned(_folder(name))[2]


def load_tuned(
    folder: str | PathLike[str], *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, PooledHead]:
    """Load a classifier written by `python -m embspace_lens.demo.tune`.

    Returns:
        The base model with the difference added to its weights, and the head.

    Raises:
        EmbspaceError: If the folder holds no classifier, or a file is damaged.
    """
    folder = Path(folder)
    base, difference, head = _read_tuned(folder)
    return _load(folder.name, base, difference, device, dtype), head


def folders(name: str) -> list[Path]:
    """The folders of a demo model's weights and of its tokenizer; empty for a classifier, which is stored as a difference."""
    return [] if is_classifier(name) else [MODELS / name, MODELS / "tokenizer"]


def _folder(name: str | PathLike[str]) -> Path:
    return MODELS / name if name in names() else expand(name)


def _read_tuned(folder: Path) -> tuple[str, dict[str, torch.Tensor], PooledHead]:
    """The base's name, the difference of its weights, and the head."""
    facts = read_json(folder / "difference.json")
    try:
        tensors = load_file(folder / "difference.safetensors")
        head = PooledHead(tensors["head.linear.weight"].shape[1], facts["labels"])
        head.load_state_dict(_with_prefix(tensors, "head."))
        return facts["base"], _with_prefix(tensors, "difference."), head.eval()
    except (OSError, KeyError, RuntimeError, SafetensorError) as reason:
        raise errors.no_classifier(folder, reason) from reason


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load(name: str, base: str, difference: dict[str, torch.Tensor], device: str, dtype: torch.dtype) -> Any:
    hf_model, tokenizer = load_base(base, dtype)
    weights = hf_model.state_dict()
    for key, value in difference.items():
        if key not in weights or weights[key].shape != value.shape:
            raise errors.not_a_difference(name, base, key)
        weights[key] += value.to(dtype)
    return boot(name, hf_model=hf_model.to(device), tokenizer=tokenizer, device=device, dtype=dtype)


def load_base(base: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A Hugging Face causal language model and its tokenizer: a demo model, a folder, or a model of the hub.

    Raises:
        EmbspaceError: If there is no such model, or its files are incomplete.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    is_demo = base in names()
    # All demo models have the same tokenizer, in a folder of its own.
    folder, tokenizer = (str(MODELS / base), str(MODELS / "tokenizer")) if is_demo else (base, base)
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # loading a demo model takes less than a second
    try:
        hf_model = load_checked(AutoModelForCausalLM, folder, dtype=dtype, local_files_only=is_demo)
        return hf_model, AutoTokenizer.from_pretrained(tokenizer, local_files_only=is_demo)
    except (OSError, ValueError, SafetensorError) as reason:
        if isinstance(reason, errors.EmbspaceError):
            raise
        raise errors.unknown_model(base, names(), f"{type(reason).__name__}: {shorten(str(reason), 160)}") from reason
    finally:
        if shows_progress:
            logging.enable_progress_bar()
