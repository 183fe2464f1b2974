"""Translations: linear maps from one model's residual stream to another's, and two controls."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import errors
from ..lens import EmbeddingLens
from ..search.tiles import upcast
from ..space.embedding_space import SIDES
from ..space.embeddings import as_tensor
from ..tables.checks import check_choice
from ..weights.factored_matrix import FactoredMatrix
from ..weights.parameter_names import Side


@dataclass(frozen=True, eq=False, repr=False)
class Translation:
    r"""A linear map from one model's residual stream to another's, kept as two factors; for states also an offset.

    .. math:: x_\mathrm{target} = x_\mathrm{source} A B, \qquad \mathrm{state:}\ (x - \mu_\mathrm{source}) A B + \mu_\mathrm{target}

    Attributes:
        source: The model that vectors come from.
        target: The model that they go to.
        inverse: The method by which the map was made.
        n_tokens: How many shared tokens it was made from.
        there: From source to target: `A [d_source, rank]`, `B [rank, d_target]`.
        back: From target to source.
        mean_source: What is subtracted from a state; zeros unless the map was fitted to states.
        mean_target: What is added to a translated state.
        round_trip_error: ‖S − S·there·back‖ / ‖S‖, with S the rows from which the map was made (token embeddings, or states
            minus their mean). 0: the round trip loses nothing. 1: the error is as large as S.
    """

    source: str
    target: str
    inverse: str
    n_tokens: int
    there: FactoredMatrix
    back: FactoredMatrix
    mean_source: Float[Tensor, " d_source"]
    mean_target: Float[Tensor, " d_target"]
    round_trip_error: float

    @property
    def d_source(self) -> int:
        return self.there.A.shape[0]

    @property
    def d_target(self) -> int:
        return self.there.B.shape[1]

    def __repr__(self) -> str:
        return (
            f"Translation({self.source} → {self.target}: width {self.d_source} → {self.d_target}, {self.inverse}, "
            f"{self.n_tokens:,} shared tokens; round trip loses {self.round_trip_error:.0%})"
        )

    def __call__(self, vectors: Any, side: Side = "write") -> Float[Tensor, "... d_target"]:
        r"""Translate directions that are added to the stream (`"write"`) or multiplied with it (`"read"`).

        A steering vector or an SAE's decoder row is mapped as v A B. A probe or a classifier's direction must have the
        same inner product with a translated state as with the state, so it is mapped by the transpose of the map back.

        Args:
            vectors: `[..., d_source]`.
            side: `"write"` or `"read"`.

        Raises:
            EmbspaceError: If the width is not the source's, or an entry is not finite.
        """
        check_choice("side", side, SIDES)
        x = self._checked(as_tensor(vectors, "vectors"))
        if side == "write":
            return x @ self.there.A.to(x) @ self.there.B.to(x)
        return x @ self.back.B.to(x).T @ self.back.A.to(x).T

    def state(self, x: Float[Tensor, "... d_source"]) -> Float[Tensor, "... d_target"]:
        """Translate hidden states: the deviation from the source's mean is mapped and added to the target's mean."""
        x = self._checked(x)
        return (x - self.mean_source.to(x)) @ self.there.A.to(x) @ self.there.B.to(x) + self.mean_target.to(x)

    def _checked(self, x: Float[Tensor, "... d_source"]) -> Float[Tensor, "... d_source"]:
        if x.shape[-1] != self.d_source:
            raise errors.bad_width(x.shape[-1], self.source, self.d_source)
        if not torch.isfinite(x).all():
            raise errors.not_finite("the vectors given")
        return upcast(x)

    def tensors(self) -> dict[str, Tensor]:
        """The map's tensors by name; `of` makes the translation from them and `facts`."""
        factors = {"there.A": self.there.A, "there.B": self.there.B, "back.A": self.back.A, "back.B": self.back.B}
        return factors | {"mean_source": self.mean_source, "mean_target": self.mean_target}

    def facts(self) -> dict[str, Any]:
        """All other attributes by name, as JSON stores them."""
        return {name: getattr(self, name) for name in ("source", "target", "inverse", "n_tokens", "round_trip_error")}

    @classmethod
    def of(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Translation":
        """The translation that has these facts and tensors."""
        return cls(
            source=facts["source"],
            target=facts["target"],
            inverse=facts["inverse"],
            n_tokens=facts["n_tokens"],
            there=FactoredMatrix(tensors["there.A"], tensors["there.B"]),
            back=FactoredMatrix(tensors["back.A"], tensors["back.B"]),
            mean_source=tensors["mean_source"],
            mean_target=tensors["mean_target"],
            round_trip_error=facts["round_trip_error"],
        )


def untranslated(source: EmbeddingLens, target: EmbeddingLens) -> Translation:
    """A control: states unchanged, cut or filled with zeros if the widths differ."""
    d_source, d_target = source.weights.d_model, target.weights.d_model
    eye = torch.eye(d_source, d_target)
    return Translation(
        source=source.name,
        target=target.name,
        inverse="untranslated",
        n_tokens=0,
        there=FactoredMatrix(eye, torch.eye(d_target)),
        back=FactoredMatrix(eye.T, torch.eye(d_source)),
        mean_source=torch.zeros(d_source),
        mean_target=torch.zeros(d_target),
        round_trip_error=max(0.0, 1 - d_target / d_source) ** 0.5,
    )


def random_translation(like: Translation, seed: int) -> Translation:
    """A control: a Gaussian map with the norm of another map; the map back is its transpose."""
    matrix = torch.randn(like.d_source, like.d_target, generator=torch.Generator().manual_seed(seed))
    matrix *= like.there.norm() / matrix.norm()
    there = FactoredMatrix(matrix, torch.eye(like.d_target))
    back = FactoredMatrix(matrix.T, torch.eye(like.d_source))
    return replace(like, inverse="random", there=there, back=back, round_trip_error=float("nan"))
