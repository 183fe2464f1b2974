"""The strongest virtual weights between the transcoders that come with a demo model, for its report."""

import os
from dataclasses import dataclass
from typing import Any

from ..demo import catalog
from ..display.tokens import format_score
from ..features.feature_pairs import virtual_weights
from ..features.pretrained import demo_features
from ..features.weight_labels import feature_labels
from ..lens import EmbeddingLens

SOURCE, TARGET = "transcoder-1", "transcoder-3"
N_PAIRS, N_CANDIDATES, N_TOKENS = 4, 300, 5


@dataclass(frozen=True)
class FeatureWeight:
    """A virtual weight between two features.

    Attributes:
        source: The name of the source feature.
        target: The name of the target feature.
        score: The weight, as text.
        writes: The rows of `feature_labels` with the tokens that the source writes.
        reads: Those with the tokens that the target reads.
    """

    source: str
    target: str
    score: str
    writes: Any
    reads: Any


def has_features(model: str | os.PathLike[str]) -> bool:
    """Whether transcoders come with a model."""
    return (catalog.MODELS / str(model) / "features" / SOURCE).is_dir()


def feature_weights(lens: EmbeddingLens, model: str | os.PathLike[str]) -> list[FeatureWeight]:
    """The strongest virtual weights to legible features, each feature once; empty if no transcoders come with the model.

    Args:
        lens: The lens of the model.
        model: The model's name.
    """
    if lens.name != str(model) or not has_features(model):
        return []
    source, target = (demo_features(name, model=str(model)) for name in (SOURCE, TARGET))
    k = min(N_TOKENS, lens.space.n_tokens)
    labels = feature_labels(lens, target, k=k)
    legible = labels.loc[labels["is_legible"], "feature"].unique().tolist()
    pairs: Any = virtual_weights(source, target, lens=lens, k=N_CANDIDATES)
    pairs = pairs[pairs["dest_feature_index"].isin(legible)]
    pairs = pairs.drop_duplicates("dest_feature_index").drop_duplicates("src_feature_index").head(N_PAIRS)
    written = feature_labels(lens, source, pairs["src_feature_index"].tolist(), k=k)
    written, read = written[written["side"] == "write"], labels[labels["side"] == "read"]
    return [
        FeatureWeight(
            source=f"{source.name} {s}",
            target=f"{target.name} {t}",
            score=format_score(score),
            writes=written[written["feature"] == s],
            reads=read[read["feature"] == t],
        )
        for s, t, score in zip(
            pairs["src_feature_index"], pairs["dest_feature_index"], pairs["score"].tolist(), strict=True
        )
    ]
