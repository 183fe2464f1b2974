"""A fine-tuned model as its difference from its base model."""

from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import chunks, float64
from ..weights.weight_difference import WeightDifference
from .common_tokens import check_lens

# Largest change of the embeddings, as a share of their norm. Fine-tuning changes far less; another seed changes far more.
MAX_CHANGE = 0.5


def difference(after: EmbeddingLens, before: EmbeddingLens) -> EmbeddingLens:
    r"""Read what fine-tuning changed: every reading method, on after − before.

    .. math:: \Delta W = W_\mathrm{after} - W_\mathrm{before}, \qquad \Delta W_{OV} = [V_a, V_b] \begin{bmatrix} O_a \\ -O_b \end{bmatrix}

    Effective weights are subtracted, with norms folded. The difference of a circuit has twice the rank of d_head. Where
    queries and keys are normalised, `qk` reads the difference of the two models' scores. Both signs
    of a difference have a meaning: read its strongest tokens with `largest=True` and with `largest=False`.

    Args:
        after: The fine-tuned model's lens.
        before: The base model's lens. The difference is read in its embedding space, with its tokens and its score.

    Returns:
        An `EmbeddingLens` of the difference. Its `components()` give the norm of the difference, weight by weight.

    Raises:
        EmbspaceError: If the two models differ in shape or vocabulary, or if their embeddings differ by more than fine-tuning
            changes them.

    Example:
        >>> change = difference(tuned, lens)
        >>> change.subheads(layer=0, weight="W_V", k=1).columns.tolist()
        ['layer', 'head', 'subhead', 'weight', 'rank', 'token_index', 'token_string', 'score']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §4.3. https://arxiv.org/abs/2209.02535
    """
    after, before = check_lens(after), check_lens(before)
    reason = _mismatch(after, before)
    if reason:
        raise errors.not_tuned_from(after.name, before.name, reason)
    weights = WeightDifference(after.weights, before.weights)
    return EmbeddingLens(weights, tokenizer=before.vocabulary.tokenizer, space=before.space)


def _mismatch(after: EmbeddingLens, before: EmbeddingLens) -> str:
    """Why one model cannot have been fine-tuned from the other; empty if it can."""
    a, b = after.weights, before.weights
    for name in ("n_layers", "n_heads", "d_model", "d_vocab", "fold_ln"):
        if getattr(a, name) != getattr(b, name):
            return f"they differ in {name} ({getattr(a, name)} and {getattr(b, name)})"
    for sublayer in ("attn", "mlp"):
        if a.layers_with(sublayer) != b.layers_with(sublayer):
            layer = min(set(a.layers_with(sublayer)) ^ set(b.layers_with(sublayer)))
            return f"they differ in the sublayers of block {layer}"
    if list(after.vocabulary.array) != list(before.vocabulary.array):
        return "their tokens have different strings"
    change = _relative_change(a.W_E, b.W_E)
    return f"their embeddings differ by {change:.0%} of their norm" if change > MAX_CHANGE else ""


def _relative_change(a: Float[Tensor, "d_vocab d_model"], b: Float[Tensor, "d_vocab d_model"]) -> float:
    """‖a − b‖ / ‖b‖, chunk by chunk."""
    squared_change = squared_norm = 0.0
    for rows in chunks(len(a), 8 * a.shape[1]):
        x, y = float64(a[rows]), float64(b[rows])
        squared_change += float((x - y).square().sum())
        squared_norm += float(y.square().sum())
    return (squared_change / squared_norm) ** 0.5 if squared_norm else float(squared_change > 0)
