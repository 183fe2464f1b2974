"""Two models in one space: where they meet is the tokens that both of them know."""

# What is public here is imported at once, not when first asked for: some functions are named as their modules are, and the
# import of such a module alone would put it in its function's place. The top level is what loads late.
from .alignment import Alignment, align
from .differences import difference, displacement
from .neuron_matching import match_neurons
from .state_translation import translate_states
from .stitching import StitchedModel, stitch
from .stitching_sweep import stitch_sweep
from .translation import Translation, translate

__all__ = [
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
]
