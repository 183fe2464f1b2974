"""Features: a dictionary of directions of the residual stream, with names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..search.tiles import chunks, upcast
from ..space.embeddings import as_tensor
from .encoders import Codes


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    r"""A dictionary of features: an SAE, a transcoder, or transformer factors.

    An active feature adds its decoder row to the stream; its code is read from a vector by its encoder column:

    .. math:: a = f(x\, W_\mathrm{enc} + b), \qquad \hat y = a\, W_\mathrm{dec} + b_\mathrm{dec}

    Args:
        decoder: W_dec, `[n, d_model]`: what each feature writes.
        encoder: W_enc, `[d_model, n]`: what each feature reads; None if the dictionary has no linear encoder.
        name: The dictionary's name in messages and figures.
        layer: The block of `hook`; None if it is unknown.
        hook: The hook point whose values the encoder reads, such as `"blocks.3.hook_resid_post"`; empty if it is unknown.
        labels: One text per feature; their indices by default.
        output_hook: The hook point to which the decoder writes; `hook` by default (an SAE).
        activation: How codes are computed; None if they cannot be.
        decoder_bias: b_dec, `[d_model]`; None for zero.
        trained_on: `"raw"` if the dictionary was trained on a model as stored, `"centred"` if on one whose stream has mean 0
            (TransformerLens's `center_writing_weights`); empty if it is unknown.

    Raises:
        EmbspaceError: If shapes disagree, values are not finite, or labels are not one distinct text per feature.

    Example:
        >>> features = Features(torch.eye(2), torch.eye(2), name="axes", labels=["x", "y"])
        >>> features
        Features(axes: 2 features, d_model 2)
        >>> features["y"]
        tensor([0., 1.])
    """

    decoder: Float[Tensor, "n d_model"]
    encoder: Float[Tensor, "d_model n"] | None = None
    name: str = "features"
    layer: int | None = None
    hook: str = ""
    labels: Sequence[str] | None = None
    _: KW_ONLY
    output_hook: str = ""
    activation: Codes | None = None
    decoder_bias: Float[Tensor, " d_model"] | None = None
    trained_on: Literal["raw", "centred", ""] = ""

    def __post_init__(self) -> None:
        decoder = as_tensor(self.decoder, "decoder")
        if decoder.ndim != 2 or not decoder.numel():
            raise errors.feature_shape(self.name, "decoder", tuple(decoder.shape), "[n, d_model]")
        n, width = decoder.shape
        parts: dict[str, tuple[int, ...]] = {"encoder": (width, n), "decoder_bias": (width,)}
        for part, shape in parts.items():
            if getattr(self, part) is not None:
                tensor = as_tensor(getattr(self, part), part)
                if tuple(tensor.shape) != shape:
                    raise errors.feature_shape(self.name, part, tuple(tensor.shape), str(list(shape)))
                object.__setattr__(self, part, tensor)
        object.__setattr__(self, "decoder", decoder)
        for part in ("decoder", *parts):
            if getattr(self, part) is not None:
                _check_finite(getattr(self, part), f"the {part} of {self.name}")
        if self.labels is not None:
            labels = [str(label) for label in self.labels]
            repeated = next((label for label, count in Counter(labels).items() if count > 1), None)
            if len(labels) != n or repeated is not None:
                raise errors.bad_feature_labels(self.name, len(labels), n, repeated)
            object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.decoder)

    @property
    def n_features(self) -> int:
        """How many features the dictionary has."""
        return len(self.decoder)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return self.decoder.shape[1]

    @property
    def is_transcoder(self) -> bool:
        """Whether the decoder writes elsewhere than the encoder reads."""
        return bool(self.output_hook) and self.output_hook != self.hook

    def __repr__(self) -> str:
        where = f" at {self.hook}" if self.hook else ""
        where += f" → {self.output_hook}" if self.is_transcoder else ""
        return f"Features({self.name}: {self.n_features} features{where}, d_model {self.d_model})"

    @cached_property
    def strings(self) -> Any:
        """The label of every feature: object array `[n]`."""
        labels = [str(i) for i in range(len(self))] if self.labels is None else list(self.labels)
        return np.array(labels, dtype=object)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.strings)}

    def index(self, feature: str | int) -> int:
        """The index of a feature, given as its label or its index.

        Raises:
            EmbspaceError: If there is no such feature.
        """
        if isinstance(feature, str):
            if feature not in self._index_of:
                raise errors.no_such_feature(self.name, feature, get_close_matches(feature, self._index_of, 1))
            return self._index_of[feature]
        if isinstance(feature, bool) or not isinstance(feature, int | np.integer):
            raise errors.not_a_feature(feature)
        if not 0 <= feature < len(self):
            raise errors.out_of_range("feature", int(feature), self.name, len(self), "features")
        return int(feature)

    def __getitem__(self, feature: str | int) -> Float[Tensor, " d_model"]:
        """The decoder row of a feature: the direction that it adds to the stream."""
        return self.decoder[self.index(feature)]

    def encode(self, x: Any) -> Float[Tensor, "*batch n"]:
        """The codes of vectors at `hook`, by the dictionary's own non-linearity.

        Args:
            x: Vectors `[..., d_model]`, in any precision.

        Raises:
            EmbspaceError: If the dictionary has no encoder, or the width is another.
        """
        x = upcast(as_tensor(x, "vectors"))
        if not x.ndim or x.shape[-1] != self.d_model:
            raise errors.bad_width(x.shape[-1] if x.ndim else 1, self.name, self.d_model)
        if self.encoder is None or self.activation is None:
            raise errors.no_encoder(self.name)
        return self.activation.codes(x, self.encoder)

    def decode(self, codes: Any) -> Float[Tensor, "*batch d_model"]:
        """What codes `[..., n]` write: a W_dec + b_dec.

        Raises:
            EmbspaceError: If the number of codes is another.
        """
        codes = as_tensor(codes, "codes")
        if not codes.ndim or codes.shape[-1] != len(self):
            raise errors.wrong_code_count(tuple(codes.shape), len(self))
        written = codes @ self.decoder.to(codes)
        return written if self.decoder_bias is None else written + self.decoder_bias.to(codes)


def _check_finite(matrix: Float[Tensor, "..."], name: str) -> None:
    """Check a large matrix part by part."""
    rows = matrix.reshape(len(matrix), -1)
    for chunk in chunks(len(rows), 4 * rows.shape[1]):
        if not torch.isfinite(rows[chunk]).all():
            raise errors.not_finite(name)
