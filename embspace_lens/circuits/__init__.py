"""Next to forward passes: what weights say, tested by intervention, and the best later methods in the same tables."""

# What is public here is imported at once; the top level is what loads late.
from ..interventions.channel_ablation import channel_effects
from ..interventions.hooks import ablation_hooks, activations, scaling_hooks, steering_hooks
from ..interventions.host_results import attribution_frame, composition_frame, logit_lens_frame, patching_frame
from ..interventions.rank_correlation import agreement
from .channels import VocabularyChannels, vocabulary_channels
from .operations import salient_operations
from .positions import position_heads, position_qk
from .relations import read_relations, relation_scores
from .statistics import head_statistics, neuron_statistics

__all__ = [
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
]
