"""Labels of features from weights alone (WeightLens): what an encoder reads, and which tokens a decoder promotes."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import chunks
from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import Embedding
from ..space.feature_rows import read_rows, written_rows
from ..tables.checks import check_integer, check_k, check_number
from ..tables.frames import tidy
from ..tables.selection import Select, select
from ..weights.effective import Weights
from ..weights.first_mlp import first_mlp_output
from .dictionary import Features
from .outliers import TOKEN, Entries, OutlierSearch, joined
from .single_tokens import single_token_codes
from .stream_order import check_direct

TOKEN_THRESHOLD, FEATURE_THRESHOLD = 4.5, 3.0
TOKEN_POOL, FEATURE_POOL = 1000, 100
BYTES_PER_ENTRY = 32  # of the pools of one chunk of features: scores, ids and their copies
COLUMNS = (
    *("feature", "side", "rank"),
    *("token_index", "token_string", "dictionary", "feature_index", "feature_label"),
    *("score", "z_score", "is_outlier", "activation", "is_legible"),
)


@torch.no_grad()
def feature_labels(
    lens: EmbeddingLens,
    transcoder: Features,
    feature: Select = None,
    *,
    earlier: Sequence[Features] = (),
    k: int = 10,
    largest: bool = True,
    token_threshold: float = TOKEN_THRESHOLD,
    feature_threshold: float = FEATURE_THRESHOLD,
    pool: int = TOKEN_POOL,
    feature_pool: int = FEATURE_POOL,
    raw: bool = False,
    first_mlp: bool = False,
    validate: bool = False,
) -> pd.DataFrame:
    r"""Label features from weights (WeightLens): what the encoder reads, and which tokens the decoder promotes.

    A feature reads a token, or an earlier feature, if its encoder's score for it is an outlier among the best scores. The
    decoder is read as tokens in the same way:

    .. math:: s_\mathrm{token} = E'\, w_\mathrm{enc}, \qquad s_\mathrm{feature} = W_\mathrm{dec}\, w_\mathrm{enc}, \qquad
              s_\mathrm{write} = E\, w_\mathrm{dec}, \qquad z = (s - \bar s_\mathrm{pool}) / \sigma_\mathrm{pool}

    A pool holds the best 1000 tokens, or the best 100 features of one earlier dictionary; σ is its sample standard deviation.
    The defaults of the thresholds are those of the paper for Gemma 2 and Llama 3.2 (for GPT-2, 4 for tokens); the authors' code
    has 5.5 for tokens and 4 for features. The thresholds are not calibrated: the largest of 50,000 normally distributed
    scores usually exceeds 4.5. So compare the share of legible features with that of shuffled encoders.

    The authors score stored encoders with W_E and stored decoders with W_U, without the norms between them (`raw=True`). By
    default, scores are those of the lens: with its embeddings, tokens and score, and the norms before the encoder and before
    W_U folded in. No forward pass is needed, except for `validate=True`.

    The first MLP replaces much of what the embeddings hold, and with tied embeddings the stream holds predictions in their
    place, so that encoders after the first block may read the next token through W_E. With `first_mlp=True`, the output of the
    first MLP stands for the embedding, as in `relation_scores`. In the demo model, the token that is read is then the commonest
    token of the feature's contexts for 26 to 54 % of features, instead of none (`embspace-lens paper WeightLens:labels`).

    Args:
        lens: The lens of the model on which the dictionary was trained.
        transcoder: A transcoder, an SAE, or any other dictionary with an encoder.
        feature: Which of its features; all by default.
        earlier: Dictionaries that write to the residual stream before the transcoder reads it, in the order of their layers.
        k: How many entries to return for each feature and side; at most the size of the pool of tokens.
        largest: The highest scores; with False, the lowest (suppressed tokens), with z-scores below minus the threshold.
        token_threshold: Tokens with a larger z-score are outliers.
        feature_threshold: Earlier features with a larger z-score are outliers.
        pool: How many tokens a pool holds.
        feature_pool: How many features of an earlier dictionary a pool holds.
        raw: Score weights as stored, by inner products with all tokens that the lens reads, as the authors do.
        first_mlp: Score encoders with MLP₀(LN₂(W_E)) in place of W_E; for dictionaries that read after the first block.
        validate: Run the model on each token by itself (after the beginning-of-sequence token, if there is one). A token makes a
            feature legible only if it activates it.

    Returns:
        One row per (feature, side, rank): the k entries with the best `z_score`. An entry of side `read` is a token, or a
        feature of an earlier dictionary (`dictionary`, `feature_index`, `feature_label`; `token_index` is −1). An entry of side
        `write` is a token. `is_legible` is a fact about the feature, the same in all of its rows: whether one of the tokens that
        it reads is an outlier, and activates it if validated. The authors also add the tokens of earlier features that activate
        the feature; here, an earlier feature does not make a feature legible. `activation` is the feature's code for
        the token by itself; NaN where it was not measured.

    Raises:
        EmbspaceError: If the lens reads features, a dictionary has another width, the transcoder has no encoder, an earlier dictionary is not earlier
            or has the name of another, or `validate` is requested of a dictionary without a hook point or a non-linearity.

    Example:
        >>> identity = torch.eye(lens.weights.d_model)
        >>> labels = feature_labels(lens, Features(identity, identity, name="axes"), feature=[0, 5], k=2)
        >>> labels[["feature", "side", "rank"]].head(4).values.tolist()
        [[0, 'read', 0], [0, 'read', 1], [0, 'write', 0], [0, 'write', 1]]
        >>> shares = labels.groupby("feature")["is_legible"].first()

    References:
        Golimblevskaia et al. (2025), Circuit Insights: Towards Interpretability Beyond Activations (WeightLens).
        https://arxiv.org/abs/2510.14936
    """
    if lens.space.has_features:
        raise errors.reads_features(lens.name)
    weights, space = _as_stored(lens) if raw else (lens.weights, lens.space)
    encoder, decoder = read_rows(weights, transcoder), written_rows(weights, transcoder)
    _check_order(lens, transcoder, earlier)
    pool = min(check_integer("pool", pool, minimum=2), space.n_tokens)
    search = OutlierSearch(
        space,
        earlier=[written_rows(weights, dictionary, space.score) for dictionary in earlier],
        k=check_k(k, pool, "tokens in a pool"),
        largest=largest,
        enriched=_enriched(weights, space) if first_mlp else None,
        pool=pool,
        feature_pool=check_integer("feature_pool", feature_pool, minimum=2),
        token_threshold=check_number("token_threshold", token_threshold),
        feature_threshold=check_number("feature_threshold", feature_threshold),
    )
    features = np.array(select("feature", feature, len(transcoder), transcoder.name, "features"), dtype=np.int64)
    parts: list[Entries] = []
    outliers: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]  # features, and the tokens that they read
    with tqdm(total=len(features), desc="features", unit="feature", disable=None, leave=False) as bar:
        for chunk in chunks(len(features), BYTES_PER_ENTRY * pool, scale=4):
            index = torch.from_numpy(features[chunk])
            read, tokens = search.read(encoder[index])
            write = search.tokens(decoder[index], "write").first(search.k)
            parts.append(Entries(*(np.stack(sides, axis=1) for sides in zip(read, write, strict=True))))
            row, column = tokens.is_outlier.nonzero()
            outliers.append(np.stack([features[chunk][row], tokens.ids[row, column]], axis=1))
            bar.update(len(index))
    if not parts:
        return tidy(COLUMNS, [])
    entries, pairs = joined(parts, axis=0), np.concatenate(outliers)
    activation = np.full(entries.score.shape, np.nan, dtype=np.float32)
    if validate:
        is_read = (entries.source == TOKEN) & (np.arange(2) == 0)[:, None]
        row, _, _ = is_read.nonzero()
        shown = np.stack([features[row], entries.ids[is_read]], axis=1)
        codes = single_token_codes(lens.model, transcoder, *np.concatenate([pairs, shown]).T)
        pairs, activation[is_read] = pairs[codes[: len(pairs)] > 0], codes[len(pairs) :]
    return _table(lens, features, entries, activation, np.isin(features, pairs[:, 0]), earlier)


def _as_stored(lens: EmbeddingLens) -> tuple[Weights, EmbeddingSpace]:
    """The stored weights of a lens's model, and its tokens with the embeddings as stored."""
    weights = copy.copy(lens.weights)
    weights.fold_ln = False
    return weights, EmbeddingSpace(weights, token_ids=lens.space.token_ids, mask=lens.mask)


def _enriched(weights: Weights, space: EmbeddingSpace) -> Embedding:
    """What the first MLP adds to the stream for the embedding of each token that is read."""
    matrix, ids = weights.W_E, space.ids("read").to(weights.W_E.device)
    parts = (matrix[ids[chunk]] for chunk in chunks(len(ids), 4 * 8 * weights.d_model, scale=4))
    return Embedding(torch.cat([first_mlp_output(weights, part) for part in parts]), score=space.score)


def _check_order(lens: EmbeddingLens, transcoder: Features, earlier: Sequence[Features]) -> None:
    """Check that each dictionary has a name of its own, and writes before the transcoder reads, if the places are known."""
    names = [dictionary.name for dictionary in earlier]
    for i, dictionary in enumerate(earlier):
        if dictionary.name in names[:i]:
            raise errors.repeated_dictionary(dictionary.name)
        check_direct(dictionary, transcoder, lens.weights)


def _table(
    lens: EmbeddingLens,
    features: Int[np.ndarray, " n"],
    entries: Entries,
    activation: Float[np.ndarray, "n sides k"],
    is_legible: Bool[np.ndarray, " n"],
    earlier: Sequence[Features],
) -> pd.DataFrame:
    """The entries of the two sides of each feature as rows."""
    is_token = entries.source == TOKEN
    labels = np.full(entries.source.shape, "", dtype=object)
    for source, dictionary in enumerate(earlier):
        is_from = entries.source == source
        labels[is_from] = dictionary.strings[entries.ids[is_from]]
    columns: dict[str, Any] = {
        "feature": np.broadcast_to(features[:, None, None], entries.score.shape),
        "side": np.broadcast_to(np.array(["read", "write"], dtype=object)[:, None], entries.score.shape),
        "rank": np.broadcast_to(np.arange(entries.score.shape[-1]), entries.score.shape),
        "token_index": np.where(is_token, entries.ids, -1),
        "dictionary": np.array([*(dictionary.name for dictionary in earlier), ""], dtype=object)[entries.source],
        "feature_index": np.where(is_token, -1, entries.ids),
        "feature_label": labels,
        "score": entries.score,
        "z_score": entries.z,
        "is_outlier": entries.is_outlier,
        "activation": activation,
        "is_legible": np.broadcast_to(is_legible[:, None, None], entries.score.shape),
    }
    return tidy(COLUMNS, [{name: values.ravel() for name, values in columns.items()}], lens.vocabulary.array)
