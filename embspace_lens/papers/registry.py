"""All experiments, by name."""

from importlib import import_module

from .experiment import Experiment

MODULES: tuple[str, ...] = (
    "pair_overlaps",
    "state_recall",
    "truncated_products",
    "example_heads",
    "singular_values",
    "token_plane",
    "tuning",
    "layer_alignment",
    "stitching",
    "undertrained",
    "factor_activity",
    "sense_predictions",
    "patterns",
    "rater_labels",
    "relations",
    "relation_prompts",
    "relation_ablation",
    "ablated_heads",
    "channels",
    "feature_legibility",
    "virtual_weight_effects",
)
"""The modules of this folder that define experiments, in the order of the papers; each has a list `EXPERIMENTS`."""


def experiments() -> dict[str, Experiment]:
    """All experiments by name, in the order of the papers."""
    modules = [import_module(f".{module}", __package__) for module in MODULES]
    return {experiment.name: experiment for module in modules for experiment in module.EXPERIMENTS}
