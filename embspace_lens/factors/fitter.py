"""FactorFitter: a dictionary learnt from a stream of hidden states, which can be stopped and taken up again."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from .. import errors
from ..files import write_json, write_whole
from ..search.bounds import plain_arithmetic
from ..space.embeddings import as_tensor
from ..tables.frames import tidy
from .dictionary import CONFIG, Factors, make_folder, read_tensors
from .sparse_coding import Coder, positive, whole

STATE, KIND = "fitter.safetensors", "transformer_factors_fitter"
FIT_GAP = 1e-3  # of the codes that a step learns from
FORGETTING = 2.0  # a vector seen when the stream was a tenth as long counts (1/10)² as much
BLOCK = 64  # factors whose residuals are brought up to date together
FAINT = 1e-8  # a factor with so small a share of the strongest one's energy is left as it is
PATIENCE = 10  # a factor is dead when it was in no code for so many vectors a factor
HISTORY = ("n_vectors", "objective", "explained_variance", "n_active", "n_dead")


class FactorFitter:
    r"""Learn transformer factors from a stream of hidden states.

    .. math:: \min_{\Phi} \sum_i w_i \min_{\alpha_i \ge 0} \left( \tfrac12 \|x_i - \Phi^\top \alpha_i\|^2 + \lambda \|\alpha_i\|_1 \right), \qquad \|\Phi_c\| = 1

    Hidden states of all layers share Φ. Each step codes `batch_size` vectors, adds them to
    :math:`A = \sum w \alpha \alpha^\top` and :math:`B = \sum w \alpha x^\top`, in which older vectors fade, and then minimises
    over one factor after another: :math:`\Phi_c \propto \Phi_c + (B_c - A_c \Phi) / A_{cc}`. The original takes a gradient
    step scaled by the same :math:`A_{cc}` instead, and forgets all but the current batch; on hidden states of a demo model
    that needed about three times as long for the same objective.

    A step is taken whenever a batch is full, so how the stream is cut into updates does not show in the result. A factor
    that has been in no code for long is put where a badly explained vector is.

    Args:
        d_model: Width of the hidden states.
        n_factors: How many factors to learn.
        l1: The price λ of a code, above 0, in units of the hidden states.
        seed: Of the first directions (they are replaced by hidden states) and of all choices made later.
        batch_size: Vectors a step. The first step waits for `n_factors` vectors, if that is more.
        device: Where to compute.

    Raises:
        EmbspaceError: If a number makes no sense.

    Example:
        >>> fitter = FactorFitter(d_model=2, n_factors=2, l1=0.1, batch_size=4)
        >>> fitter.update(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]]))
        >>> fitter.factors
        Factors(2 factors, d_model 2, l1 0.1)

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §2 and appendix. https://arxiv.org/abs/2103.15949
        Mairal et al. (2010), Online Learning for Matrix Factorization and Sparse Coding, algorithms 1 and 2, §3.4.
        https://arxiv.org/abs/0908.0050
    """

    def __init__(
        self,
        d_model: int,
        n_factors: int,
        *,
        l1: float = 0.3,
        seed: int = 0,
        batch_size: int = 1024,
        device: str | torch.device = "cpu",
    ) -> None:
        whole("d_model", d_model)
        whole("n_factors", n_factors)
        whole("seed", seed, least=0)
        whole("batch_size", batch_size)
        positive("l1", l1)
        self.d_model, self.n_factors, self.l1, self.seed, self.batch_size = (
            d_model,
            n_factors,
            float(l1),
            seed,
            batch_size,
        )
        self.device = torch.device(device)
        random = torch.randn(n_factors, d_model, generator=self._generator())
        self._directions = _unit(random).to(self.device)
        self._A = torch.zeros(n_factors, n_factors, device=self.device)
        self._B = torch.zeros(n_factors, d_model, device=self.device)
        self._idle = torch.zeros(
            n_factors, dtype=torch.int64, device=self.device
        )  # vectors since a factor was in a code
        self._waiting: list[Tensor] = []  # each with its weights as a last column
        self._history: list[tuple[float, ...]] = []
        self._seen = 0

    def __repr__(self) -> str:
        return f"FactorFitter({self.n_factors} factors, d_model {self.d_model}, l1 {self.l1:g}; {self._seen:,} vectors seen)"

    @property
    def factors(self) -> Factors:
        """The factors as of the last step; vectors that wait for their batch are not in them."""
        return Factors(self._directions.clone(), self.l1)

    @property
    def n_waiting(self) -> int:
        """How many vectors wait until a batch is full."""
        return sum(map(len, self._waiting))

    @property
    def history(self) -> pd.DataFrame:
        """How the fit went: each step's measures on vectors that it had not yet learnt from.

        Returns:
            One row per (n_vectors): objective, explained_variance, n_active, n_dead.
        """
        return tidy(HISTORY, [dict(zip(HISTORY, zip(*self._history)))] if self._history else [])

    def update(self, hidden: Float[Tensor, "n d_model"], weight: Float[Tensor, " n"] | None = None) -> None:
        """Learn from hidden states; a step is taken for each batch that they fill.

        Args:
            hidden: One hidden state a row, in any precision.
            weight: What each counts, 1 by default. The original gives a token that occurs f times in the corpus 1/√f, or
                common words take up most factors.

        Raises:
            EmbspaceError: If shapes do not match, or values are not finite.
        """
        hidden = as_tensor(hidden, "hidden states").to(self.device, torch.float32)
        if hidden.ndim != 2:
            raise errors.EmbspaceError(f"hidden states have shape {tuple(hidden.shape)}; give [n, d_model].")
        if hidden.shape[1] != self.d_model:
            raise errors.bad_width(hidden.shape[1], "the dictionary", self.d_model, "hidden states")
        if weight is None:
            weight = hidden.new_ones(len(hidden))
        weight = as_tensor(weight, "weight").to(hidden)
        if weight.shape != hidden.shape[:1]:
            raise errors.EmbspaceError(f"weight has shape {tuple(weight.shape)} for {len(hidden)} hidden states.")
        if not hidden.isfinite().all():
            raise errors.not_finite("hidden states")
        if not weight.isfinite().all() or (weight < 0).any():
            raise errors.EmbspaceError("weight holds negative, NaN or infinite values; a weight is 0 or more.")
        self._waiting.append(torch.cat([hidden, weight[:, None]], 1))
        while self.n_waiting >= self._needed():
            self._step(self._needed())

    def flush(self) -> None:
        """Take a step with the vectors that wait: at the end of the stream, so that none is left out."""
        if self.n_waiting:
            self._step(self.n_waiting)

    def _needed(self) -> int:
        return self.batch_size if self._seen else max(self.batch_size, self.n_factors)

    def _step(self, size: int) -> None:
        """Code a batch, add it to the sums, improve the factors, revive dead ones."""
        waiting = torch.cat(self._waiting)
        # Memory of their own: where a batch came from must not show, not even in how products are vectorised.
        x, weight = waiting[:size, :-1].clone(), waiting[:size, -1].clone()
        self._waiting = [waiting[size:].clone()]
        with plain_arithmetic(self.device):
            if not self._seen:
                self._directions = self._first(x)
            active = Coder(self._directions, self.l1, gap=FIT_GAP).solve(x)
            residual = x - active.times(self._directions)
            codes = active.dense(self.n_factors)
            used = (codes > 0).any(0)
            self._idle = torch.where(used, 0, self._idle + size)
            self._seen += size
            fade = (1 - size / self._seen) ** FORGETTING
            weighted = codes * (weight / size)[:, None]
            self._A.mul_(fade).addmm_(weighted.T, codes)
            self._B.mul_(fade).addmm_(weighted.T, x)
            dead = self._idle > max(PATIENCE * self.n_factors, 2 * self.batch_size)
            self._note(x, residual, active.value, int(dead.sum()))
            improve(self._directions, self._A, self._B)
            if dead.any():
                self._revive(dead.nonzero()[:, 0], residual, weight)

    def _first(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n_factors d_model"]:
        """Hidden states of the first batch as factors, each only once; random directions where there are too few."""
        distinct = torch.unique(_unit(x[x.any(dim=1)]), dim=0)
        chosen = torch.randperm(len(distinct), generator=self._generator())[: self.n_factors].to(x.device)
        return torch.cat([distinct[chosen], self._directions[len(chosen) :]])

    def _revive(self, dead: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Put dead factors where vectors are badly explained, a few at a time so that they do not meet there again."""
        energy = residual.square().sum(1) * weight
        dead = dead[: min(max(1, len(residual) // 16), int((energy > 0).sum()))]
        if not len(dead):
            return
        chosen = torch.multinomial(energy.double().cpu(), len(dead), generator=self._generator(self._seen))
        self._directions[dead] = _unit(residual[chosen.to(residual.device)])
        self._A[dead], self._A[:, dead], self._B[dead], self._idle[dead] = 0.0, 0.0, 0.0, 0

    def _note(self, x: Tensor, residual: Tensor, value: Tensor, n_dead: int) -> None:
        left = residual.double().square().sum()
        objective = float((left / 2 + self.l1 * value.double().sum()) / len(x))
        spread = (x.double() - x.double().mean(0)).square().sum()
        explained = float(1 - left / spread) if spread > 0 else math.nan
        self._history.append((self._seen, objective, explained, float((value > 0).sum()) / len(x), n_dead))

    def _generator(self, number: int = 0) -> torch.Generator:
        """Randomness by the place in the stream, so that none of it need be saved."""
        return torch.Generator().manual_seed(self.seed + 2**32 * number)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all that the fit knows, vectors in waiting included; the file of an earlier save is replaced at one moment.

        A fit that is killed at any time and taken up with `load` at the vector number `n_seen + n_waiting` ends, on the
        same machine, at the same factors bit for bit.

        Args:
            folder: Where to; made if need be.

        Raises:
            EmbspaceError: If it cannot be written; what was there is then as it was.
        """
        path = make_folder(folder)
        history = torch.tensor(self._history, dtype=torch.float64).view(-1, len(HISTORY))
        tensors = {"directions": self._directions, "A": self._A, "B": self._B, "idle": self._idle, "history": history}
        if self.n_waiting:
            tensors["waiting"] = torch.cat(self._waiting)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        settings = self._settings()
        metadata = {name: repr(value) for name, value in settings.items()}
        data = save(tensors, metadata={"architecture": KIND, "n_seen": str(self._seen), **metadata})
        write_whole(path / STATE, data)
        write_json(path / CONFIG, {"architecture": KIND, **settings})
        return path

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("d_model", "n_factors", "l1", "seed", "batch_size")}

    @property
    def n_seen(self) -> int:
        """How many vectors have been learnt from."""
        return self._seen

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "FactorFitter":
        """Take up a fit where `save` left it.

        Args:
            folder: Where it was saved.
            device: Where to compute from now on.

        Raises:
            EmbspaceError: If there is none, or its file is damaged or something else's.
        """
        path = Path(folder).expanduser() / STATE
        tensors, metadata = read_tensors(path, KIND)
        try:
            numbers = {name: int(metadata[name]) for name in ("d_model", "n_factors", "seed", "batch_size")}
            fitter = cls(**numbers, l1=float(metadata["l1"]), device=device)
            fitter._seen = int(metadata["n_seen"])
            for name in ("directions", "A", "B", "idle"):
                own = getattr(fitter, f"_{name}")
                if tensors[name].shape != own.shape:
                    raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}")
                setattr(fitter, f"_{name}", tensors[name].to(own))
            fitter._history = [tuple(row) for row in tensors["history"].tolist()]
        except (KeyError, ValueError) as reason:
            raise errors.EmbspaceError(f"{path} holds no complete fit ({reason}). Start the fit anew.") from reason
        if "waiting" in tensors:
            fitter._waiting = [tensors["waiting"].to(fitter.device)]
        return fitter


def improve(
    directions: Float[Tensor, "n_factors d_model"],
    A: Float[Tensor, "n_factors n_factors"],
    B: Float[Tensor, "n_factors d_model"],
) -> None:
    r"""Minimise ½ tr(ΦᵀAΦ) − tr(ΦᵀB) over each unit row of Φ in turn, the others fixed, in place.

    With the others fixed, the best row is the unit vector along :math:`\Phi_c + (B_c - A_c \Phi) / A_{cc}`. Rows are taken
    in blocks: one product gives a block's residuals, which its own rows then keep up to date.
    """
    energy = A.diagonal()
    strong = (energy > FAINT * energy.max()).nonzero()[:, 0]
    for block in strong.split(BLOCK):
        own, rows = A[block][:, block], directions[block]
        residual = B[block] - A[block] @ directions
        scale = 1 / energy[block]
        for i in range(len(block)):
            target = rows[i] + residual[i] * scale[i]
            length = torch.linalg.vector_norm(target)
            change = torch.where(length > 0, target / length, rows[i]) - rows[i]
            rows[i] += change
            residual -= own[:, i, None] * change
        directions[block] = rows


def _unit(x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return torch.nn.functional.normalize(x, dim=-1)
