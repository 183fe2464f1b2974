"""Features of a dictionary in forward passes: their codes are read where the encoder reads, and edited where the decoder writes."""

import re
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from .. import errors
from ..search.tiles import upcast
from ..weights.effective import Weights
from ..weights.hook_points import has_hook, stream_hook

STREAM_POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@runtime_checkable
class Encoder(Protocol):
    """A dictionary of features that computes codes, such as `features.Features`."""

    @property
    def decoder(self) -> Tensor: ...
    @property
    def name(self) -> str: ...
    @property
    def hook(self) -> str: ...
    @property
    def output_hook(self) -> str: ...
    def encode(self, x: Any, /) -> Tensor: ...
    def __len__(self) -> int: ...


class FeatureTarget:
    r"""Features of one dictionary, with the code that its own non-linearity gives them.

    An edit replaces the codes a by a′ and leaves everything else as it is, also what the dictionary does not reconstruct:

    .. math:: y \leftarrow y + \sum_i (a'_i - a_i)\, W_\mathrm{dec}[i]

    Args:
        model: The model that will run.
        features: The dictionary.
        component_indices: Which of the table's components the features are.
        indices: The features.

    Attributes:
        hook: The hook point at which codes are edited.
        source_hook: The hook point at which they are read; the same for an SAE.
        kind: `"feature"`.

    Raises:
        EmbspaceError: If the model does not have the dictionary's hook points, or discards edits of them.
    """

    kind: Literal["feature"] = "feature"

    def __init__(self, model: Any, features: Encoder, component_indices: list[int], indices: Int[Tensor, " n"]) -> None:
        weights = Weights(model)
        if features.decoder.shape[1] != weights.d_model:
            raise errors.bad_width(features.decoder.shape[1], weights.name, weights.d_model, features.name)
        if not features.hook:
            raise errors.feature_hook_unknown(features.name)
        self.features, self.component_indices, self._indices = features, component_indices, indices
        self.hook = _point(weights, features.output_hook or features.hook, is_edited=True)
        is_transcoder = bool(features.output_hook) and features.output_hook != features.hook
        self.source_hook = _point(weights, features.hook, is_edited=False) if is_transcoder else self.hook
        self._codes: Tensor | None = None

    def capture(self, value: Tensor, hook: Any) -> None:
        """Keep the codes of a value at `source_hook` until the value at `hook` is edited."""
        self._codes = self.codes(value)

    def codes(self, value: Tensor) -> Float[Tensor, "*batch n"]:
        """The codes of a value at `source_hook`."""
        return self.features.encode(value)[..., self._indices.to(value.device)]

    def read(self, value: Tensor) -> Tensor:
        """The codes at the last value that was captured; of an SAE, those of this value."""
        if self.source_hook == self.hook:
            return self.codes(value)
        assert self._codes is not None
        return self._codes

    def write(self, value: Tensor, activations: Tensor) -> Tensor:
        """A copy of the value at `hook` with other codes."""
        x = upcast(value)
        rows = self.features.decoder[self._indices].to(x)
        return (x + (activations.to(x) - self.read(value).to(x)) @ rows).to(value.dtype)

    def shares_values(self, value: Tensor) -> bool:
        """Never: features have codes of their own."""
        return False


def _point(weights: Weights, hook: str, *, is_edited: bool) -> str:
    """A dictionary's hook point in this model; where the model discards edits, an equal one that takes effect.

    Raises:
        EmbspaceError: If there is none.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook)
    if is_edited and match is not None and match[2] in STREAM_POINTS:
        return stream_hook(weights, int(match[1]), match[2])
    if not has_hook(weights.model, hook):
        raise errors.no_hook(weights.name, hook)
    return hook
