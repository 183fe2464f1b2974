"""embspace_lens: a transformer's weights as tidy tables of tokens, with no forward pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .circuits import (
        VocabularyChannels,
        ablation_hooks,
        activations,
        attribution_frame,
        composition_frame,
        head_statistics,
        logit_lens_frame,
        neuron_statistics,
        patching_frame,
        position_heads,
        position_qk,
        read_relations,
        relation_scores,
        salient_operations,
        scaling_hooks,
        steering_hooks,
        vocabulary_channels,
    )
    from .compare import (
        Alignment,
        StitchedModel,
        Translation,
        displacement,
        match_neurons,
        stitch_sweep,
        translate_states,
    )
    from .compare import alignment as align
    from .compare import differences as difference
    from .compare import stitching as stitch
    from .compare import translation as translate
    from .errors import EmbspaceError
    from .factors import FactorFitter, Factors
    from .forward.pooling import PooledHead
    from .interventions import channel_ablation as channel_effects
    from .interventions import rank_correlation as agreement
    from .lens import EmbeddingLens
    from .space.vocabulary import TokenMask, Vocabulary, ascii_tokens, seen_in, well_trained, whole_words
    from .weights.effective import Weights

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "EmbeddingLens",
    "EmbspaceError",
    "FactorFitter",
    "Factors",
    "PooledHead",
    "StitchedModel",
    "TokenMask",
    "Translation",
    "Vocabulary",
    "VocabularyChannels",
    "Weights",
    "ablation_hooks",
    "activations",
    "agreement",
    "align",
    "ascii_tokens",
    "attribution_frame",
    "channel_effects",
    "composition_frame",
    "difference",
    "displacement",
    "head_statistics",
    "logit_lens_frame",
    "match_neurons",
    "neuron_statistics",
    "patching_frame",
    "position_heads",
    "position_qk",
    "read_relations",
    "relation_scores",
    "salient_operations",
    "scaling_hooks",
    "seen_in",
    "steering_hooks",
    "stitch",
    "stitch_sweep",
    "translate",
    "translate_states",
    "vocabulary_channels",
    "well_trained",
    "whole_words",
]

# Names are loaded when first asked for, so that `embspace-lens --help` need not wait for torch.
_HOME = {"EmbspaceError": "errors", "PooledHead": "pooled", "EmbeddingLens": "lens", "Weights": "weights"}
_HOME |= dict.fromkeys(
    (
        "Alignment",
        "StitchedModel",
        "Translation",
        "align",
        "difference",
        "displacement",
        "match_neurons",
        "stitch",
        "stitch_sweep",
        "translate",
        "translate_states",
    ),
    "compare",
)
_HOME |= dict.fromkeys(("FactorFitter", "Factors"), "factors")
_HOME |= dict.fromkeys(
    (
        "VocabularyChannels",
        "ablation_hooks",
        "activations",
        "agreement",
        "attribution_frame",
        "channel_effects",
        "composition_frame",
        "head_statistics",
        "logit_lens_frame",
        "neuron_statistics",
        "patching_frame",
        "position_heads",
        "position_qk",
        "read_relations",
        "relation_scores",
        "salient_operations",
        "scaling_hooks",
        "steering_hooks",
        "vocabulary_channels",
    ),
    "circuits",
)


def __getattr__(name: str) -> Any:
    if name in ("circuits", "columns", "compare", "demo", "errors", "evidence", "factors", "topk"):
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME.get(name, 'vocabulary')}", __name__), name)
    if name == "EmbeddingLens":
        import_module(".show.accessor", __name__)  # who has a lens has `frame.embspace`
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
