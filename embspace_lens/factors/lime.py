"""Which tokens of a context decide a factor's code there: LIME, over tokens that are replaced."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..errors import EmbspaceError
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations
from ..forward.texts import texts_of
from ..space.vocabulary import Vocabulary
from ..tables.frames import tidy
from ..weights.configuration import device_of, is_causal
from ..weights.hook_points import state_hook
from .dictionary import Factors

FAINT = 0.1  # of the strongest token's saliency
KERNEL_WIDTH = 0.25  # in cosine distance
PER_PASS = 128  # variants of a text that run at once
COLUMNS = ["factor", "layer", "rank", "offset", "token_index", "token_string", "saliency"]
NEEDED = ("factor", "layer", "rank", "example", "pos")


def saliency(
    factors: Factors,
    model: Any,
    texts: Any,
    contexts: pd.DataFrame,
    *,
    n_samples: int = 2001,
    n_features: int = 30,
    max_tokens: int = 64,
    replacement: str | int | None = None,
    seed: int = 0,
    column: str = "text",
) -> pd.DataFrame:
    r"""Explain factors' codes by the tokens around their targets.

    Variants of a text are made with random tokens replaced; a linear model of which tokens were kept (z) is fitted to the code at the
    target's place, variants that keep more counting more:

    .. math:: \min_w \sum_z \pi(z) (\alpha_c(z) - w_0 - w^\top z)^2, \qquad \pi(z) = \exp(-d(z, 1)^2 / 0.25^2), \quad d = 1 - \cos

    A token's saliency is its w: how much the code loses without it. First all tokens are fitted, then the `n_features` strongest alone.

    Args:
        factors: The dictionary.
        model: The model that it was fitted to.
        texts: The texts that `contexts` was made from, as `top_contexts` was given them.
        contexts: Rows of `top_contexts` or `activity(…).contexts`: what is to be explained.
        n_samples: How many variants; 2,001 in the original.
        n_features: How many tokens may be salient; the others' saliency is 0.
        max_tokens: How many tokens up to the target (around it, for models that look both ways) may be replaced.
        replacement: The token put in their place, as its text or id. By default the tokenizer's mask, unknown or end-of-text token.
        seed: Of the variants.
        column: The column of texts, of a table or dataset.

    Returns:
        One row per (factor, layer, rank, offset): the token `offset` places from the target, as `token_index` and `token_string`, and its
        `saliency`, in units of the hidden states.

    Raises:
        EmbspaceError: If the table or the texts are others, a number makes no sense, or captum is not installed.

    Example:
        >>> from embspace_lens.factors import top_contexts
        >>> factors, texts = Factors(torch.eye(32), l1=0.01), ["w2 w3 w4"]
        >>> where = top_contexts(factors, model, texts, layers=[0], n=1).head(1)
        >>> found = saliency(factors, model, texts, where, n_samples=20, replacement="w9")
        >>> int(found["offset"].max())
        0

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
        Ribeiro et al. (2016), "Why Should I Trust You?": Explaining the Predictions of Any Classifier. https://arxiv.org/abs/1602.04938
    """
    missing = [name for name in NEEDED if name not in contexts.columns]
    if missing:
        raise EmbspaceError(f"contexts is another table: it has no {missing[0]!r}.")
    for name, value in (("n_samples", n_samples), ("n_features", n_features), ("max_tokens", max_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EmbspaceError(f"{name}={value!r} is not a positive number.")
    largest = max(contexts["factor"].tolist(), default=0)
    if largest >= factors.n_factors:
        raise EmbspaceError(
            f"contexts speaks of factor {largest}, and there are {factors.n_factors} factors. Is it of another dictionary?"
        )
    if not isinstance(texts, list | tuple):
        texts = list(texts_of(texts, column=column))
    vocabulary = Vocabulary(model.tokenizer, int(model.cfg.d_vocab))
    instead = _replacement(model, vocabulary, replacement)
    blocks = []
    rows: Any = contexts[[name for name in (*NEEDED, "token_index") if name in contexts.columns]]
    for row in tqdm(rows.to_dict("records"), desc="saliency", unit="context", disable=None, leave=False):
        tokens, place, first, last = _context(model, texts, row, max_tokens)
        code = _Code(factors, model, tokens, place, first, instead, int(row["layer"]), int(row["factor"]))
        weights = _lime(code, last - first, n_samples, n_features, [seed, *(int(row[name]) for name in NEEDED)])
        found = tokens[first:last]
        blocks.append(
            {name: np.full(len(found), row[name]) for name in ("factor", "layer", "rank")}
            | {"offset": np.arange(first, last) - place, "token_index": found, "saliency": weights}
        )
    frame = tidy(COLUMNS, blocks, strings=vocabulary.array)
    return frame.sort_values(["factor", "layer", "rank", "offset"], kind="stable", ignore_index=True)


def reach_of(saliency: pd.DataFrame) -> pd.DataFrame:
    r"""How far from their targets the tokens lie that decide factors' codes, for `level`.

    .. math:: \mathrm{reach} = \sum_i w_i |i| / \sum_i w_i \quad \text{over tokens with } w_i \ge \tfrac{1}{10} \max_j w_j

    with i a token's offset and w its saliency; the median over a factor's contexts. Weaker tokens are left out: a fit to samples gives
    every token a little, and many of them are far.

    Args:
        saliency: A table of `saliency`.

    Returns:
        One row per (factor), with `reach`, in tokens; missing where nothing is salient.

    Raises:
        EmbspaceError: If it is another table.

    Example:
        >>> from embspace_lens.frames import tidy
        >>> row = {"factor": [7, 7], "layer": [0, 0], "rank": [0, 0], "offset": [-2, 0], "saliency": [1.0, 3.0]}
        >>> reach_of(tidy(list(row), [row]))["reach"].tolist()
        [0.5]
    """
    missing = [name for name in ("factor", "layer", "rank", "offset", "saliency") if name not in saliency.columns]
    if missing:
        raise EmbspaceError(f"saliency is another table: it has no {missing[0]!r}.")
    value = saliency["saliency"].astype("float64")
    most: Any = value.groupby([saliency[name] for name in ("factor", "layer", "rank")]).transform("max")
    strong = value.where(value >= FAINT * most, 0.0).clip(lower=0)
    parts = saliency.assign(far=strong * saliency["offset"].abs(), strong=strong)
    sums: Any = parts.groupby(["factor", "layer", "rank"])[["far", "strong"]].sum()
    each: Any = (sums["far"] / sums["strong"].where(sums["strong"] > 0)).groupby(level="factor").median()
    return tidy(["factor", "reach"], [{"factor": each.index.to_numpy(), "reach": each.to_numpy()}])


class _Code:
    """A factor's code at one place of a text, as a function of which tokens are kept."""

    def __init__(
        self,
        factors: Factors,
        model: Any,
        tokens: Int[Tensor, " pos"],
        place: int,
        first: int,
        instead: int,
        layer: int,
        factor: int,
    ) -> None:
        self.factors, self.model, self.tokens = factors, model, tokens
        self.place, self.first, self.instead, self.factor = place, first, instead, factor
        self.hook = state_hook(model, layer)

    @torch.no_grad()
    def __call__(self, kept: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        rows = self.tokens.expand(len(kept), -1).clone()
        part = rows[:, self.first : self.first + kept.shape[1]]
        part[kept == 0] = self.instead
        # The model sees a few variants at a time, to bound memory; codes are found for all at once, which is quicker.
        states = [
            collect_activations(self.model, _batch(part), [self.hook])[self.hook][:, self.place].float().cpu()
            for part in rows.split(PER_PASS)
        ]
        return self.factors.encode(torch.cat(states), gap=1e-3)[:, self.factor].float()


def _batch(rows: Int[Tensor, "n pos"]) -> TokenBatch:
    n, length = rows.shape
    numbers = torch.arange(n)
    return TokenBatch(
        numbers, torch.zeros_like(numbers), rows, torch.ones_like(rows, dtype=torch.bool), numbers * 0 + length
    )


def _lime(code: _Code, n_tokens: int, n_samples: int, n_features: int, seed: list[int]) -> np.ndarray:
    """The weight of every token: a first fit chooses the strongest, a second fits these alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from captum.attr import LimeBase
            from sklearn.linear_model import Ridge
    except ImportError as reason:
        raise errors.missing_extra("captum", "factors") from reason
    rng = np.random.default_rng(np.abs(seed))
    whole = iter([True])

    def perturb(original: Tensor, **_: Any) -> Tensor:
        kept = np.ones((1, n_tokens), dtype=np.float32)
        if not next(whole, False):  # the first variant is the text itself
            kept[0, rng.choice(n_tokens, size=rng.integers(1, n_tokens + 1), replace=False)] = 0
        return torch.from_numpy(kept)

    def near(original: Tensor, variant: Tensor, kept: Tensor, **_: Any) -> Tensor:
        distance = 1 - (kept.sum() / n_tokens).sqrt()  # from all tokens kept, by the cosine
        return torch.exp(-(distance**2) / KERNEL_WIDTH**2)

    class Fit:
        """What LIME asks of a surrogate, with scikit-learn's ridge regression."""

        def fit(self, train_data: Any, **_: Any) -> None:
            x, y, w = (torch.cat(parts).double().numpy() for parts in zip(*train_data))
            first = Ridge(alpha=1e-3).fit(x, y.ravel(), sample_weight=w)
            chosen = np.sort(np.argsort(-np.abs(first.coef_), kind="stable")[:n_features])
            second = Ridge(alpha=1e-3).fit(x[:, chosen], y.ravel(), sample_weight=w)
            self.coefficients = torch.zeros(1, n_tokens, dtype=torch.float64)
            self.coefficients[0, chosen] = torch.from_numpy(second.coef_)

        def representation(self) -> Tensor:
            return self.coefficients

    lime = LimeBase(
        code,
        interpretable_model=Fit(),  # pyright: ignore[reportArgumentType]
        similarity_func=near,
        perturb_func=perturb,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda kept, original, **_: kept,
        to_interp_rep_transform=None,
    )
    found = lime.attribute(torch.ones(1, n_tokens), n_samples=n_samples, perturbations_per_eval=n_samples)
    return found[0].numpy()


def _context(model: Any, texts: Sequence[str], row: Any, max_tokens: int) -> tuple[Int[Tensor, " pos"], int, int, int]:
    """A context's tokens, its target's place in them, and the first and last place that may be replaced."""
    example, pos = int(row["example"]), int(row["pos"])
    if not 0 <= example < len(texts):
        raise EmbspaceError(
            f"contexts speaks of text {example}, and there are {len(texts)}; give the texts it was made from."
        )
    batch = next(token_batches(model, [texts[example]]), None)  # none of a text without a token
    own = batch.mask[0].nonzero()[:, 0] if batch is not None else torch.zeros(0)
    if batch is None or not 0 <= pos < len(own):
        raise EmbspaceError(
            f"Text {example} has {len(own)} tokens and no token {pos}; give the texts that contexts was made from."
        )
    place = int(own[pos])
    if int(batch.tokens[0, place]) != row.get("token_index", int(batch.tokens[0, place])):
        raise EmbspaceError(
            f"Token {pos} of text {example} is not the one that contexts names; give the texts that it was made from."
        )
    causal = is_causal(model)
    last = place + 1 if causal else min(int(own[-1]) + 1, place + 1 + max_tokens // 2)
    first = max(int(own[0]), last - max_tokens)
    # What comes behind the target changes nothing in a model that looks back.
    return (batch.tokens[0, :last] if causal else batch.tokens[0]).to(device_of(model)), place, first, last


def _replacement(model: Any, vocabulary: Vocabulary, token: str | int | None) -> int:
    if token is not None:
        return vocabulary.index(token, "saliency()")
    names = ("mask_token_id", "unk_token_id", "eos_token_id", "pad_token_id")
    found = next((i for name in names if (i := getattr(model.tokenizer, name, None)) is not None), None)
    if found is None:
        raise EmbspaceError("The tokenizer has no mask, unknown or end-of-text token. Name one: replacement=' the'.")
    return int(found)
