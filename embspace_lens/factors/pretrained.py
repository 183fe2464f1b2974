"""The dictionary that comes with a demo model, and texts to see it at work that need no corpus."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from .. import demo, errors
from ..weights.configuration import device_of, is_causal
from .dictionary import WEIGHTS, Factors


def demo_factors(name: str = "reviews-small-0") -> Factors:
    """Load the factors that come with a demo model, offline.

    They were fitted with `fit_factors` to 4.5 million hidden states, of all blocks but not of the embedding, on training reviews.

    Args:
        name: The demo model.

    Returns:
        The `Factors`.

    Raises:
        EmbspaceError: If no factors come with it.

    Example:
        >>> demo_factors()
        Factors(1000 factors, d_model 192, l1 2)
    """
    folders: dict[str, Path] = {file.parents[1].name: file.parent for file in demo.MODELS.glob(f"*/factors/{WEIGHTS}")}
    if name not in folders:
        raise errors.choice("factors", name, sorted(folders))
    return Factors.load(folders[name])


@torch.no_grad()
def own_texts(model: Any, *, n: int = 160, n_tokens: int = 48, seed: int = 0) -> list[str]:
    """Texts that a model makes up, token by token: something to read where there is no corpus.

    Args:
        model: A causal TransformerLens model with a tokenizer.
        n: How many texts, at most: one that ends before it begins is left out.
        n_tokens: How long each is, at most.
        seed: Of the sampling, among the 50 likeliest tokens each time.

    Returns:
        The texts.

    Raises:
        EmbspaceError: If the model looks both ways.

    Example:
        >>> texts = own_texts(model, n=2, n_tokens=4)
        >>> len(texts) <= 2
        True
    """
    if not is_causal(model):
        raise errors.EmbspaceError("A model that looks both ways does not write text; give texts instead.")
    first = torch.full((n, 1), model.tokenizer.bos_token_id or 0, device=device_of(model))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = model.generate(
            first, max_new_tokens=n_tokens, top_k=50, stop_at_eos=False, return_type="tokens", verbose=False
        )
    ends = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    texts = (model.tokenizer.decode(list(takewhile(lambda token: token not in ends, row[1:].tolist()))) for row in rows)
    return [text for text in texts if text.strip()]
