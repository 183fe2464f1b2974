"""Saliency: which tokens of a context determine a factor's code, estimated by LIME with replaced tokens."""

import os
import warnings
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations
from ..forward.states import weights_key
from ..forward.texts import texts_of
from ..space.vocabulary import Vocabulary
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..weights.configuration import d_vocab, device_of, is_causal
from ..weights.hook_points import state_hook
from .dictionary import Factors
from .saliency_checkpoint import DIGEST, SaliencyCheckpoint

KERNEL_WIDTH = 25.0  # of lime's LimeTextExplainer, for 100 times the cosine distance
RIDGE = 1e-3  # the penalty of the linear models; in lime 0.01 and 1, which makes coefficients smaller
VARIANTS_PER_PASS = 128  # variants of a text in one forward pass
GAP = 1e-3  # the duality gap of the codes
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
    checkpoint: str | os.PathLike[str] | None = None,
    saved_only: bool = False,
) -> pd.DataFrame:
    r"""Explain the codes of factors by the tokens around their targets.

    Variants of a text have random tokens replaced. A linear model predicts the code at the target from the tokens that
    were kept (z). Variants with more kept tokens have more weight:

    .. math:: \min_w \sum_z \pi(z) (\alpha_c(z) - w_0 - w^\top z)^2, \qquad \pi(z) = \sqrt{\exp(-d(z, 1)^2 / 25^2)}, \quad d = 100\,(1 - \cos)

    The weights are those of the package lime, which has the square root and the factor 100 for text.

    The saliency of a token is its coefficient w: how much the code decreases when the token is replaced. A first fit with
    all tokens selects the `n_features` tokens with the largest absolute coefficients; a second fit uses only these.

    Args:
        factors: The dictionary.
        model: The model on which the dictionary was fitted.
        texts: The texts from which `contexts` was made.
        contexts: The contexts to explain: rows of `top_contexts` or `activity(…).contexts`.
        n_samples: The number of variants; 2,001 in Yun et al. The site of `explore` uses 300.
        n_features: The largest number of tokens with a saliency; all other tokens have saliency 0.
        max_tokens: How many tokens may be replaced: up to the target in causal models, around it in bidirectional models.
        replacement: The token that replaces others, as text or id. By default the tokenizer's mask, unknown, end-of-text or
            padding token.
        seed: Seed of the variants.
        column: The column of texts in a table or dataset.
        checkpoint: A file for finished contexts. If the call is interrupted, the same call resumes from it.
        saved_only: Return only the contexts that the checkpoint contains, and compute no others.

    Returns:
        One row per (factor, layer, rank, offset): the token at this offset from the target, as `token_index` and
        `token_string`, and its `saliency`, in units of the hidden states.

    Raises:
        EmbspaceError: If the table and the texts do not match, a number is out of bounds, or captum is not installed.

    Example:
        >>> from embspace_lens.factors import top_contexts
        >>> factors, texts = Factors(torch.eye(32), l1=0.01), ["w2 w3 w4"]
        >>> contexts = top_contexts(factors, model, texts, layers=[0], n=1).head(1)
        >>> result = saliency(factors, model, texts, contexts, n_samples=20, replacement="w9")
        >>> int(result["offset"].max())
        0

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3. https://arxiv.org/abs/2103.15949
        Ribeiro et al. (2016), "Why Should I Trust You?": Explaining the Predictions of Any Classifier. https://arxiv.org/abs/1602.04938
    """
    missing = [name for name in NEEDED if name not in contexts.columns]
    if missing:
        raise errors.table_lacks_column("contexts", missing[0], "top_contexts or activity(…).contexts")
    n_samples = check_integer("n_samples", n_samples, minimum=1)
    n_features = check_integer("n_features", n_features, minimum=1)
    max_tokens = check_integer("max_tokens", max_tokens, minimum=1)
    largest = max(contexts["factor"].tolist(), default=0)
    if largest >= factors.n_factors:
        raise errors.factor_not_in_dictionary("contexts", largest, factors.n_factors)
    if not isinstance(texts, list | tuple):
        texts = list(texts_of(texts, column=column))
    vocabulary = Vocabulary(model.tokenizer, d_vocab(model))
    replacement_id = _replacement_id(model, vocabulary, replacement)
    saved = SaliencyCheckpoint(checkpoint)
    run = _run_key(factors, model, n_samples, n_features, replacement_id) if checkpoint is not None else ""
    blocks = []
    rows: Any = contexts[[name for name in (*NEEDED, "token_index") if name in contexts.columns]]
    read_text = cache(lambda example: next(token_batches(model, [texts[example]]), None))
    try:
        for row in tqdm(rows.to_dict("records"), desc="saliency", unit="context", disable=None, leave=False):
            context = _context(model, len(texts), read_text, row, max_tokens)
            replaceable = context.tokens[context.first : context.last].cpu()
            row_seed = [seed, *(int(row[name]) for name in NEEDED)]
            key = _context_key(run, context, row_seed)
            if key not in saved.results:
                if saved_only:
                    continue
                code = _Code(factors, model, context, replacement_id, int(row["layer"]), int(row["factor"]))
                saved.add(key, _lime(code, len(replaceable), n_samples, n_features, row_seed))
            blocks.append(
                {name: np.full(len(replaceable), row[name]) for name in ("factor", "layer", "rank")}
                | {
                    "offset": np.arange(context.first, context.last) - context.target,
                    "token_index": replaceable,
                    "saliency": saved.results[key],
                }
            )
    except KeyboardInterrupt as interrupt:
        saved.save()
        if saved.path is None:
            raise
        raise KeyboardInterrupt(
            f"{saved.path} contains the finished contexts. The same call resumes from it."
        ) from interrupt
    saved.save()
    frame = tidy(COLUMNS, blocks, strings=vocabulary.array, kind="saliency")
    return frame.sort_values(["factor", "layer", "rank", "offset"], kind="stable", ignore_index=True)


def _run_key(factors: Factors, model: Any, *options: int) -> str:
    """A digest of all that results depend on, except the context and the seed."""
    directions = factors.directions.detach().float().cpu().contiguous().numpy().tobytes()
    return sha256(repr((weights_key(model), factors.l1, *options)).encode() + directions).hexdigest()


def _context_key(run: str, context: "_Context", row_seed: list[int]) -> bytes:
    """A digest of a run's key, a context and its seed."""
    parts = (run, context.tokens.tolist(), context.target, context.first, context.last, row_seed)
    return sha256(repr(parts).encode()).digest()[:DIGEST]


class _Context(NamedTuple):
    """A context to explain: its tokens, the position of the target, and the range of positions that may be replaced."""

    tokens: Int[Tensor, " pos"]
    target: int
    first: int
    last: int


class _Code:
    """A factor's code at the target of a context, as a function of which tokens are kept."""

    def __init__(
        self, factors: Factors, model: Any, context: _Context, replacement_id: int, layer: int, factor: int
    ) -> None:
        self.factors, self.model, self.context = factors, model, context
        self.replacement_id, self.factor = replacement_id, factor
        self.hook = state_hook(model, layer)

    @torch.no_grad()
    def __call__(self, kept: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        first, target = self.context.first, self.context.target
        variants = self.context.tokens.expand(len(kept), -1).clone()
        replaceable = variants[:, first : first + kept.shape[1]]
        replaceable[kept == 0] = self.replacement_id
        # Small batches bound the memory of the forward pass; computing all codes at once is quicker.
        states = [
            collect_activations(self.model, _token_batch(batch), [self.hook])[self.hook][:, target].float().cpu()
            for batch in variants.split(VARIANTS_PER_PASS)
        ]
        return self.factors.encode(torch.cat(states), gap=GAP)[:, self.factor].float()


def _token_batch(rows: Int[Tensor, "n pos"]) -> TokenBatch:
    n, length = rows.shape
    example = torch.arange(n)
    mask = torch.ones_like(rows, dtype=torch.bool)
    return TokenBatch(example, torch.zeros_like(example), rows, mask, torch.full_like(example, length))


def _lime(
    code: Callable[[Tensor], Tensor], n_tokens: int, n_samples: int, n_features: int, seed: list[int]
) -> np.ndarray:
    """The saliency of every token: a first fit selects the tokens with the largest coefficients, a second uses only these."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from captum.attr import LimeBase
            from sklearn.linear_model import Ridge
    except ImportError as reason:
        raise errors.missing_extra("captum", "factors") from reason
    rng = np.random.default_rng(np.abs(seed))
    is_first = iter([True])

    def perturb(original: Tensor, **_: Any) -> Tensor:
        kept = np.ones((1, n_tokens), dtype=np.float32)
        if not next(is_first, False):  # the first variant is the text itself
            kept[0, rng.choice(n_tokens, size=rng.integers(1, n_tokens + 1), replace=False)] = 0
        return torch.from_numpy(kept)

    def weight(original: Tensor, variant: Tensor, kept: Tensor, **_: Any) -> Tensor:
        cosine = (kept.sum() / n_tokens).sqrt()  # of `kept` and the vector of ones
        return sample_weight(100 * (1 - cosine))

    class LinearModel:
        """The two ridge regressions, with the interface that captum requires."""

        def fit(self, train_data: Any, **_: Any) -> None:
            x, y, w = (torch.cat(parts).double().numpy() for parts in zip(*train_data))
            first = Ridge(alpha=RIDGE).fit(x, y.ravel(), sample_weight=w)
            selected = np.sort(np.argsort(-np.abs(first.coef_), kind="stable")[:n_features])
            second = Ridge(alpha=RIDGE).fit(x[:, selected], y.ravel(), sample_weight=w)
            self.coefficients = torch.zeros(1, n_tokens, dtype=torch.float64)
            self.coefficients[0, selected] = torch.from_numpy(second.coef_)

        def representation(self) -> Tensor:
            return self.coefficients

    lime = LimeBase(
        code,
        interpretable_model=LinearModel(),  # pyright: ignore[reportArgumentType]
        similarity_func=weight,
        perturb_func=perturb,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda kept, original, **_: kept,
        to_interp_rep_transform=None,
    )
    return lime.attribute(torch.ones(1, n_tokens), n_samples=n_samples, perturbations_per_eval=n_samples)[0].numpy()


def sample_weight(distance: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The weight of a variant by 100 times its cosine distance from the text, as in lime: a root of the exponential kernel."""
    return torch.exp(-(distance**2) / KERNEL_WIDTH**2).sqrt()


def _context(
    model: Any, n_texts: int, read_text: Callable[[int], TokenBatch | None], row: dict[str, Any], max_tokens: int
) -> _Context:
    """The context of a row, with its tokens read from the text.

    Raises:
        EmbspaceError: If the text does not exist or does not have the target at this position.
    """
    example, pos = int(row["example"]), int(row["pos"])
    if not 0 <= example < n_texts:
        raise errors.example_not_in_texts(example, n_texts)
    batch = read_text(example)  # None for a text without tokens
    own = batch.mask[0].nonzero()[:, 0] if batch is not None else torch.zeros(0, dtype=torch.int64)
    if batch is None or pos not in own:
        raise errors.pos_not_in_text(example, pos, own.tolist())
    tokens, target = batch.tokens[0], pos
    if int(tokens[target]) != row.get("token_index", int(tokens[target])):
        raise errors.other_target_token(example, pos)
    causal = is_causal(model)
    last = target + 1 if causal else min(int(own[-1]) + 1, target + 1 + max_tokens // 2)
    first = max(int(own[0]), last - max_tokens)
    # In a causal model, tokens after the target have no effect on it.
    return _Context((tokens[:last] if causal else tokens).to(device_of(model)), target, first, last)


def _replacement_id(model: Any, vocabulary: Vocabulary, token: str | int | None) -> int:
    if token is not None:
        return vocabulary.index(token, "saliency()")
    for name in ("mask_token_id", "unk_token_id", "eos_token_id", "pad_token_id"):
        if (token_id := getattr(model.tokenizer, name, None)) is not None:
            return int(token_id)
    raise errors.no_replacement_token()
