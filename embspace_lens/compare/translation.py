"""Residual vectors of one model as another's, through the tokens that both know."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from .. import errors
from ..errors import EmbspaceError
from ..lens import EmbeddingLens
from ..search.tiles import chunks, float64
from ..space.embedding_space import SIDES
from ..space.embeddings import as_tensor
from .common_tokens import require_lenses, shared_rows, shared_tokens

INVERSES = ("pinv", "least_squares", "ridge", "procrustes", "transpose")
RIDGE = 0.01  # of the mean eigenvalue of the source's second moment


@dataclass(frozen=True, eq=False, repr=False)
class Translation:
    r"""From one model's residual stream to another's: a linear map as its factors, and for states an offset.

    .. math:: x_\mathrm{target} = x_\mathrm{source} A B, \qquad \mathrm{state:}\ (x - \mu_\mathrm{source}) A B + \mu_\mathrm{target}

    Attributes:
        source: The model that vectors come from.
        target: The model that they go to.
        inverse: How the map was made.
        n_tokens: How many shared tokens it rests on.
        there: Source to target, `A [d_source, rank]`, `B [rank, d_target]`.
        back: Target to source.
        mean_source: What is taken from a state; zeros unless the map was fitted to states.
        mean_target: What is added to it.
        round_trip_error: Of what the map was made from (token embeddings, or states less their mean), the share that going
            there and back loses: ‖S − S·there·back‖ / ‖S‖. 0 is nothing, and 1 as much as there was.
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
            f"{self.n_tokens:,} shared tokens; there and back loses {self.round_trip_error:.0%})"
        )

    def __call__(self, vectors: Any, side: str = "write") -> Float[Tensor, "... d_target"]:
        r"""Translate vectors: `"write"` what is added to the stream, `"read"` what listens to it.

        A steering vector or an SAE's decoder row is carried along, `v A B`. A probe or a classifier's direction must give, on a
        translated state, what it gave on the state: it goes by the transposed way back.

        Args:
            vectors: `[..., d_source]`.
            side: `"write"` or `"read"`.

        Raises:
            EmbspaceError: If the width is not the source's, or an entry is NaN.
        """
        if side not in SIDES:
            raise errors.choice("side", side, SIDES)
        x = self._checked(as_tensor(vectors, "vectors"))
        if side == "write":
            return x @ self.there.A.to(x) @ self.there.B.to(x)
        return x @ self.back.B.to(x).T @ self.back.A.to(x).T

    def state(self, x: Float[Tensor, "... d_source"]) -> Float[Tensor, "... d_target"]:
        """Translate hidden states: as vectors, from one mean to the other."""
        x = self._checked(x)
        return (x - self.mean_source.to(x)) @ self.there.A.to(x) @ self.there.B.to(x) + self.mean_target.to(x)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_source:
            raise errors.bad_width(x.shape[-1], self.source, self.d_source)
        if not torch.isfinite(x).all():
            raise errors.not_finite("the vectors given")
        return x if x.dtype in (torch.float32, torch.float64) else x.float()

    def tensors(self) -> dict[str, Tensor]:
        """The numbers, by name, to be saved; `of` puts them back together with `facts`."""
        parts = {"there.A": self.there.A, "there.B": self.there.B, "back.A": self.back.A, "back.B": self.back.B}
        return parts | {"mean_source": self.mean_source, "mean_target": self.mean_target}

    def facts(self) -> dict[str, Any]:
        """All else, as JSON takes it."""
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


@dataclass(frozen=True)
class Moments:
    """Second moments of paired rows, source S and target T, in float64."""

    ss: Float[Tensor, "d_source d_source"]
    st: Float[Tensor, "d_source d_target"]
    tt: Float[Tensor, "d_target d_target"]

    @property
    def swapped(self) -> "Moments":
        return Moments(self.tt, self.st.T, self.ss)


def translate(
    source: EmbeddingLens, target: EmbeddingLens, *, inverse: str = "pinv", rank: int | None = None
) -> Translation:
    r"""Carry residual vectors from one model to another, through the vocabulary that both share, with no forward pass.

    With S and T the embeddings of the shared tokens (what the two lenses write through, n_tokens × d):

    .. math:: \text{pinv: } S^\top T (T^\top T)^{+} \qquad \text{least\_squares: } (S^\top S)^{+} S^\top T

    `"pinv"` is the paper's: a vector's scores over the source's tokens, then the vector of the target whose scores are
    nearest. `"least_squares"` is the map that takes each token's embedding nearest to its embedding in the target,
    minimising ‖S K − T‖; `"ridge"` the same with 1 % of the mean eigenvalue of SᵀS added to it; `"procrustes"` its best
    rotation, scaled; `"transpose"` is SᵀT, scaled, which is no inverse and serves as a control. Token masks and
    `score="centered"` are those of the lenses.

    Args:
        source: The lens of the model that vectors come from.
        target: The lens of the model that they go to.
        inverse: One of the five.
        rank: Keep so many singular directions of the map; all of them by default.

    Returns:
        A `Translation`: call it on probes, steering vectors, rows of an SAE, a classifier's directions.

    Raises:
        EmbspaceError: If the models share fewer than 100 tokens, or an option is unknown.

    Example:
        >>> translation = translate(lens, lens)
        >>> round(translation.round_trip_error, 3)
        0.0

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    if inverse not in INVERSES:
        raise errors.choice("inverse", inverse, INVERSES)
    require_lenses(source, target)
    ids_source, ids_target = shared_tokens(source, target)
    S, T = shared_rows(source, "write", ids_source), shared_rows(target, "write", ids_target)
    d_source, d_target = S.shape[1], T.shape[1]
    shapes = ((d_source, d_source), (d_source, d_target), (d_target, d_target))
    moments = Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    for rows in chunks(len(ids_source), 8 * (d_source + d_target)):
        index = torch.arange(rows.start, rows.stop)
        s, t = (float64(side[index]).cpu() for side in (S, T))
        for total, left, right in ((moments.ss, s, s), (moments.st, s, t), (moments.tt, t, t)):
            total.addmm_(left.T, right)
    return fitted(moments, inverse, rank, source.name, target.name, len(ids_source))


def fitted(
    moments: Moments,
    inverse: str,
    rank: int | None,
    source: str,
    target: str,
    n_tokens: int,
    means: tuple[Tensor, Tensor] | None = None,
    named: str | None = None,
) -> Translation:
    """The translation that the moments of paired rows give."""
    there, back = _kernel(moments, inverse), _kernel(moments.swapped, inverse)
    largest = min(there.shape)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest):
        raise EmbspaceError(f"rank={rank!r} is not between 1 and {largest}, the smaller of the two widths.")
    there, back = _factored(there, rank), _factored(back, rank)
    lost = torch.eye(len(moments.ss), dtype=torch.float64) - there.A @ (there.B @ back.A) @ back.B
    error = (lost * (moments.ss @ lost)).sum().clamp_min(0) / moments.ss.trace()
    if means is None:
        means = moments.ss.new_zeros(len(moments.ss)), moments.tt.new_zeros(len(moments.tt))
    return Translation(
        source=source,
        target=target,
        inverse=named or inverse,
        n_tokens=n_tokens,
        there=FactoredMatrix(there.A.float(), there.B.float()),
        back=FactoredMatrix(back.A.float(), back.B.float()),
        mean_source=means[0].float(),
        mean_target=means[1].float(),
        round_trip_error=float(error.sqrt()),
    )


def identity(source: EmbeddingLens, target: EmbeddingLens) -> Translation:
    """No translation at all, as a control: states as they are, cut or filled with zeros where widths differ."""
    same = torch.eye(source.weights.d_model, target.weights.d_model)
    there, back = FactoredMatrix(same, torch.eye(len(same.T))), FactoredMatrix(same.T, torch.eye(len(same)))
    lost = max(0.0, 1 - len(same.T) / len(same)) ** 0.5
    zeros = torch.zeros(len(same)), torch.zeros(len(same.T))
    return Translation(source.name, target.name, "untranslated", 0, there, back, *zeros, lost)


def random_translation(like: Translation, seed: int) -> Translation:
    """A Gaussian map as large as another one, as a control; its way back is its transpose."""
    kernel = torch.randn(like.d_source, like.d_target, generator=torch.Generator().manual_seed(seed))
    kernel *= like.there.norm() / kernel.norm()
    there, back = FactoredMatrix(kernel, torch.eye(like.d_target)), FactoredMatrix(kernel.T, torch.eye(like.d_source))
    return replace(like, inverse="random", there=there, back=back, round_trip_error=float("nan"))


def _kernel(m: Moments, inverse: str) -> Float[Tensor, "d_source d_target"]:
    if inverse == "pinv":
        return m.st @ _pinv(m.tt)
    if inverse == "least_squares":
        return _pinv(m.ss) @ m.st
    if inverse == "ridge":
        eye = torch.eye(len(m.ss), dtype=torch.float64)
        return torch.linalg.solve(m.ss + RIDGE * m.ss.trace() / len(m.ss) * eye, m.st)
    kernel = m.st
    if inverse == "procrustes":
        u, _, v = torch.linalg.svd(m.st, full_matrices=False)
        kernel = u @ v
    # the scale that brings S K nearest to T
    return kernel * (kernel * m.st).sum() / (kernel * (m.ss @ kernel)).sum()


def _pinv(gram: Tensor) -> Tensor:
    """Directions below 1e-5 of the largest singular value are rounding, as in `Embedding.inverse_gram`."""
    return torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)


def _factored(kernel: Tensor, rank: int | None) -> FactoredMatrix:
    u, s, v = torch.linalg.svd(kernel, full_matrices=False)
    kept = int((s > s[0] * 1e-10).sum()) if rank is None else rank
    root = s[:kept].sqrt()
    return FactoredMatrix(u[:, :kept] * root, root[:, None] * v[:kept])
