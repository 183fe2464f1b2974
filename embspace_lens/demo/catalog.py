"""Embedded models: trained on movie reviews, shipped with the package, loaded with no network."""

import json
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import errors
from ..files import read_json
from ..forward.pooling import PooledHead
from ..space.masks import TokenMask, whole_words
from ..space.vocabulary import Vocabulary
from ..weights.booting import boot

MODELS = Path(str(files("embspace_lens.demo") / "models"))


def names() -> list[str]:
    """The demo models, as `load` and `EmbeddingLens.from_pretrained` take them."""
    return sorted(file.parent.name for kind in ("config", "difference") for file in MODELS.glob(f"*/{kind}.json"))


def card(name: str | PathLike[str]) -> dict[str, Any]:
    """What is known of a demo model: its configuration, tokens seen, held-out loss; of a classifier, its base and accuracy.

    Args:
        name: One of `names()`, or a folder that `python -m embspace_lens.demo.tune` wrote.

    Raises:
        EmbspaceError: If there is no such demo model.
    """
    if is_classifier(name):
        return read_json(_folder(name) / "difference.json")
    if name not in names():
        raise errors.choice("model", str(name), names())
    return json.loads((MODELS / name / "train.json").read_text())


def is_classifier(name: str | PathLike[str]) -> bool:
    """Whether this is a demo classifier, or the folder of one."""
    return (_folder(name) / "difference.json").is_file()


def seen(at_least: int = 200) -> TokenMask:
    """Tokens that occur at least so often in the reviews that the demo models were trained on.

    Rare words have long, barely trained embeddings, and fill the lists of a small model; what is seen often reads best.
    """

    def choose(vocabulary: Vocabulary, _: Any) -> torch.Tensor:
        counts = load_file(MODELS / "tokenizer" / "counts.safetensors")["counts"]
        if len(counts) != len(vocabulary):
            raise errors.other_vocabulary(vocabulary.model, len(vocabulary), len(counts))
        return counts >= at_least

    return TokenMask(f"seen {at_least}+ times", choose)


frequent_words = TokenMask("frequent", (whole_words & seen(200)).choose)
"""Whole words that the demo models saw 200 times or more: what they read best by."""


def load(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a demo model into a TransformerBridge, offline.

    Args:
        name: One of `names()`.
        device: Where to put it.
        dtype: Its precision; stored in half precision, computed in this one.

    Returns:
        A TransformerBridge with its tokenizer.

    Raises:
        EmbspaceError: If there is no such demo model.
    """
    if name not in names():
        raise errors.choice("model", name, names())
    return (
        load_tuned(MODELS / name, device=device, dtype=dtype)[0]
        if is_classifier(name)
        else _load(name, name, {}, device, dtype)
    )


def head(name: str | PathLike[str]) -> PooledHead:
    """The head of a demo classifier, or of the folder of one, for `stitch`.

    Raises:
        EmbspaceError: If there is no such classifier.
    """
    if not is_classifier(name):
        raise errors.choice("classifier", str(name), [n for n in names() if is_classifier(n)])
    return _read_tuned(_folder(name))[2]


def load_tuned(
    folder: str | PathLike[str], *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, PooledHead]:
    """Load a classifier that `python -m embspace_lens.demo.tune` wrote: its base with the difference added, and its head.

    Raises:
        EmbspaceError: If the folder holds none, or a file is damaged.
    """
    folder = Path(folder)
    base, change, head = _read_tuned(folder)
    return _load(folder.name, base, change, device, dtype), head


def _folder(name: str | PathLike[str]) -> Path:
    return MODELS / name if name in names() else Path(name).expanduser()


def _read_tuned(folder: Path) -> tuple[str, dict[str, torch.Tensor], PooledHead]:
    facts = read_json(folder / "difference.json")
    try:
        tensors = load_file(folder / "difference.safetensors")
        head = PooledHead(tensors["head.linear.weight"].shape[1], facts["labels"])
        head.load_state_dict({key[5:]: value for key, value in tensors.items() if key.startswith("head.")})
        change = {key[11:]: value for key, value in tensors.items() if key.startswith("difference.")}
        return facts["base"], change, head.eval()
    except (OSError, KeyError, RuntimeError, SafetensorError) as reason:
        raise errors.EmbspaceError(f"{folder} holds no classifier that can be read: {reason}") from reason


def _load(name: str, base: str, change: dict[str, torch.Tensor], device: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if base not in names():
        raise errors.choice("base", base, names())
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes a moment
    try:
        hf_model: Any = AutoModelForCausalLM.from_pretrained(MODELS / base, dtype=dtype, local_files_only=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    weights = hf_model.state_dict()
    for key, value in change.items():
        if key not in weights or weights[key].shape != value.shape:
            raise errors.EmbspaceError(f"{name} is not a difference of {base}: {key} does not fit.")
        weights[key] += value.to(dtype)
    # The models share one tokenizer, stored once beside them.
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tokenizer", local_files_only=True)
    return boot(name, hf_model=hf_model.to(device), tokenizer=tokenizer, device=device, dtype=dtype)
