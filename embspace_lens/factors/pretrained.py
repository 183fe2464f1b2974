"""The dictionary of a demo model, and texts sampled from a model for use without a corpus."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from .. import demo, errors
from ..weights.configuration import device_of, is_causal
from .dictionary import WEIGHTS, Factors


def demo_factors(name: str = "reviews-small-0") -> Factors:
    """Load the factors of a demo model, offline.

    They were fitted with `fit_factors` to 4.5 million hidden states after all blocks, without the embedding, on training
    reviews.

    Args:
        name: The name of the demo model.

    Returns:
        The `Factors`.

    Raises:
        EmbspaceError: If the package contains no factors of this model.

    Example:
        >>> demo_factors()
        Factors(1000 factors, d_model 192, l1 2)
    """
    folders: dict[str, Path] = {file.parents[1].name: file.parent for file in demo.MODELS.glob(f"*/factors/{WEIGHTS}")}
    if name not in folders:
        raise errors.choice("factors", name, sorted(folders))
    return Factors.load(folders[name])


@torch.no_grad()
def sample_texts(model: Any, *, n: int = 160, n_tokens: int = 48, seed: int = 0) -> list[str]:
    """Sample texts from a causal model, as examples for use without a corpus.

    Args:
        model: A causal TransformerLens model with a tokenizer.
        n: The maximum number of texts; empty texts are left out.
        n_tokens: The maximum length of each text.
        seed: Seed of the sampling from the 50 most probable tokens.

    Returns:
        The texts.

    Raises:
        EmbspaceError: If the model is bidirectional.

    Example:
        >>> texts = sample_texts(model, n=2, n_tokens=4)
        >>> len(texts) <= 2
        True
    """
    if not is_causal(model):
        raise errors.EmbspaceError("Sampling needs a causal model; this one is bidirectional. Pass texts instead.")
    first = torch.full((n, 1), model.tokenizer.bos_token_id or 0, device=device_of(model))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = model.generate(
            first, max_new_tokens=n_tokens, top_k=50, stop_at_eos=False, return_type="tokens", verbose=False
        )
    ends = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    texts = (model.tokenizer.decode(list(takewhile(lambda token: token not in ends, row[1:].tolist()))) for row in rows)
    return [text for text in texts if text.strip()]
