"""Next to forward passes: what weights say, tested by intervention, and the best later methods in the same tables."""

# What is public here is imported at once; the top level is what loads late.
from .agreement import agreement
from .channel_effects import channel_effects
from .channels import VocabularyChannels, vocabulary_channels
from .hooks import ablation_hooks, activations, scaling_hooks, steering_hooks
from .patching import attribution_frame, composition_frame, logit_lens_frame, patching_frame
from .positions import position_heads, position_qk
from .relations import read_relations, relation_scores
from .salient import salient_operations
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
