"""Features: a dictionary of directions of the residual stream, with names."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..search.tiles import chunks, upcast
from ..space.embeddings import as_tensor
from .encoders import Activation, Codes, rows_product
from .files import read_parts
from .stored import Parts
from .writing import write_parts


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
        skip: W_skip, `[d_model, d_model]`: what a transcoder adds without features, x W_skip; None for nothing.
        notes: Sentences about what the matrices do not show, such as a normalisation of the inputs.

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
    skip: Float[Tensor, "d_model d_model"] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        decoder = as_tensor(self.decoder, "decoder")
        if decoder.ndim != 2 or not decoder.numel():
            raise errors.feature_shape(self.name, "decoder", tuple(decoder.shape), "[n, d_model]")
        n, width = decoder.shape
        parts: dict[str, tuple[int, ...]] = {"encoder": (width, n), "decoder_bias": (width,), "skip": (width, width)}
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
        written = rows_product(codes, self.decoder)
        return written if self.decoder_bias is None else written + self.decoder_bias.to(codes)

    def reconstruct(self, x: Any) -> Float[Tensor, "*batch d_model"]:
        """What the whole dictionary computes from vectors at `hook`: their codes decoded, the skip connection, and the scale of x.

        Args:
            x: Vectors `[..., d_model]`, in any precision.

        Raises:
            EmbspaceError: If the dictionary has no encoder, or the width is another.
        """
        written = self.decode(self.encode(x))
        x = upcast(as_tensor(x, "vectors"))
        if isinstance(self.activation, Activation) and not self.is_transcoder:
            written = self.activation.denormalized(written, x)
        return written if self.skip is None else written + x @ self.skip.to(x)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        layer: int | None = None,
        output_layer: int | Sequence[int] | None = None,
        hook: str = "",
        output_hook: str = "",
        input_scale: float | None = None,
    ) -> "Features":
        """Read a dictionary as it was published or saved, whatever its layout.

        ====================  ==========================================================================
        source                files
        ====================  ==========================================================================
        SAELens, and `save`   `cfg.json` and `sae_weights.safetensors` (standard, gated, JumpReLU and TopK
                              SAEs, transcoders with and without a skip connection; versions up to 6)
        `Factors.save`        the same files
        Gemma Scope           `params.npz`; the layer and the hook point come from the path
        Gemma Scope 2         `params.safetensors` and `config.json` of a single layer
        sparsify              `cfg.json` and `sae.safetensors` in a folder named after a module
        circuit-tracer        `layer_{i}.safetensors`, and `W_enc_{i}` with `W_dec_{i}.safetensors`;
                              `config.yaml` states the hook points
        ====================  ==========================================================================

        Matrices keep their stored precision. Safetensors files are mapped into memory; an npz file is read into memory.
        Factors and means that the library applies beside the matrices are folded into them, then in float32.

        Args:
            path: The file, or the folder that contains it.
            layer: The layer, where a folder contains several; of a cross-layer transcoder, the layer that is read.
            output_layer: Of a cross-layer transcoder, the layer that is written, or several layers, whose decoders are summed.
            hook: The hook point that the encoder reads, where the files do not state it or TransformerLens has another name.
            output_hook: The hook point to which a transcoder writes, likewise. Of transcoders of sparsify, it is
                `hook_mlp_out`; in a model with a norm after the MLP, it is `mlp.hook_out`.
            input_scale: The factor by which SAELens multiplied the inputs (`norm_scaling_factor` of its table of pretrained SAEs),
                for the normalisation `expected_average_only_in` of its early versions.

        Raises:
            EmbspaceError: If there is no dictionary, it is damaged, its files disagree, it was not trained on residual vectors, or
                it computes its codes in a way that is not read.
        """
        parts = read_parts(
            path, layer=layer, output_layer=output_layer, hook=hook, output_hook=output_hook, input_scale=input_scale
        )
        return cls(**vars(parts))

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write the dictionary in the layout of SAELens 6, with its labels in `labels.json`.

        SAELens has no architecture for some of the codes (such as TopK transcoders); it refuses these folders, and `load` reads
        them. An input bias that is not the decoder's bias is folded into the encoder's bias.

        Args:
            folder: The folder to write to; created if needed. An earlier dictionary in it is replaced.
            dtype: The precision of the file; as stored by default.

        Returns:
            The folder.

        Raises:
            EmbspaceError: If a file cannot be written, or the codes are computed by an object of the user's own.
        """
        return write_parts(Parts(**{field.name: getattr(self, field.name) for field in fields(Parts)}), folder, dtype)


def _check_finite(matrix: Float[Tensor, "..."], name: str) -> None:
    """Check a large matrix part by part, in the order in which it lies in memory or in its file."""
    is_transposed = matrix.ndim == 2 and matrix.stride(0) < matrix.stride(1)
    rows = matrix.T if is_transposed else matrix.reshape(len(matrix), -1)
    for chunk in chunks(len(rows), 4 * rows.shape[1]):
        # NaN and infinities reach the extremes, which are found many times as fast as by a test of every value.
        if not torch.stack(torch.aminmax(rows[chunk])).isfinite().all():
            raise errors.not_finite(name)
