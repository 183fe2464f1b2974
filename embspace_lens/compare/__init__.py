"""Two models in one space: where they meet is the tokens that both of them know."""

# What is public here is imported at once, not when first asked for: some functions are named as their modules are, and the
# import of such a module alone would put it in its function's place. The top level is what loads late.
from .align import Alignment, align
from .difference import difference, displacement
from .neurons import match_neurons
from .states import translate_states
from .stitch import StitchedModel, stitch
from .sweep import stitch_sweep
from .translate import Translation, translate

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
