"""Models of the tests of positions: those of the zoo, and two more."""

from typing import Any

import zoo


def model_of(tiny: Any, name: str) -> Any:
    """A model by name; `tiny` is the fixture."""
    if name == "ht_adjacent":
        settings = dict(
            act_fn="silu", gated_mlp=True, normalization_type="RMS", positional_embedding_type="rotary",
            rotary_dim=4, rotary_adjacent_pairs=True,
        )  # fmt: skip
        return zoo._hooked(name, settings)
    if name == "native_rms":
        return zoo._native(name, dict(act_fn="silu", normalization_type="RMS"))
    return tiny(name) if name in zoo.ZOO else (zoo.NATIVE | zoo.HT_ZOO)[name]()
