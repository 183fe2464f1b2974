"""FactorFitter: learns a dictionary from a stream of hidden states; a fit can be saved and resumed."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor

from .. import errors
from ..files import expand, make_folder, write_json, write_whole
from ..search.bounds import plain_arithmetic
from ..space.embeddings import as_tensor
from ..tables.checks import check_integer, check_number
from ..tables.frames import tidy
from .active_set import ActiveSetSolver
from .dictionary import CONFIG, Factors, read_tensors
from .dictionary_update import unit_rows, update_directions

STATE, KIND = "fitter.safetensors", "transformer_factors_fitter"
FIT_GAP = 1e-3  # the duality gap of the codes used in a step
FORGETTING = 2.0  # a vector seen when the stream was a tenth as long has (1/10)² of the weight
PATIENCE = 10  # a factor is dead if it was inactive in the last PATIENCE × n_factors vectors
SETTINGS = ("d_model", "n_factors", "l1", "seed", "batch_size")
HISTORY = ("n_vectors", "objective", "explained_variance", "n_active", "n_dead")


class FactorFitter:
    r"""Learn transformer factors from a stream of hidden states.

    .. math:: \min_{\Phi} \sum_i w_i \min_{\alpha_i \ge 0} \left( \tfrac12 \|x_i - \Phi^\top \alpha_i\|^2 + \lambda \|\alpha_i\|_1 \right), \qquad \|\Phi_c\| = 1

    Hidden states of all layers share Φ. Each step computes the codes of `batch_size` vectors and adds them to
    :math:`A = \sum w \alpha \alpha^\top` and :math:`B = \sum w \alpha x^\top`, in which the weight of older vectors decays.
    It then minimises over one factor after another: :math:`\Phi_c \propto \Phi_c + (B_c - A_c \Phi) / A_{cc}`. Yun et al.
    take a gradient step, scaled by the same :math:`A_{cc}`, on the current batch alone; on hidden states of a demo model
    this took about three times as long to reach the same objective.

    Each step uses a full batch, so the result does not depend on how the stream is split into updates. A factor that has
    been inactive for long is dead; it is replaced by the residual of a vector that the dictionary explains poorly.

    Args:
        d_model: The width of the hidden states.
        n_factors: The number of factors to learn.
        l1: The L1 penalty λ, above 0, in units of the hidden states.
        seed: Seed of the initial directions (the first batch replaces them by hidden states) and of all later choices.
        batch_size: The number of vectors per step. The first step needs at least `n_factors` vectors.
        device: The device of the fit.

    Raises:
        EmbspaceError: If a number is out of bounds.

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
        self.d_model = check_integer("d_model", d_model, minimum=1)
        self.n_factors = check_integer("n_factors", n_factors, minimum=1)
        self.seed = check_integer("seed", seed, minimum=0)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        self.l1 = check_number("l1", l1, above=0)
        self.device = torch.device(device)
        random = torch.randn(self.n_factors, self.d_model, generator=self._generator())
        self._directions = unit_rows(random).to(self.device)
        self._A = torch.zeros(self.n_factors, self.n_factors, device=self.device)
        self._B = torch.zeros(self.n_factors, self.d_model, device=self.device)
        # for each factor, how many vectors have passed since it was last active
        self._idle = torch.zeros(self.n_factors, dtype=torch.int64, device=self.device)
        self._waiting: list[Tensor] = []  # vectors of an incomplete batch; their weights are the last column
        self._history: list[tuple[float, ...]] = []
        self._n_seen = 0

    def __repr__(self) -> str:
        return f"FactorFitter({self.n_factors} factors, d_model {self.d_model}, l1 {self.l1:g}; {self._n_seen:,} vectors seen)"

    @property
    def factors(self) -> Factors:
        """The factors after the last step. Waiting vectors have no effect yet."""
        return Factors(self._directions.clone(), self.l1)

    @property
    def n_seen(self) -> int:
        """The number of vectors used in steps so far."""
        return self._n_seen

    @property
    def n_waiting(self) -> int:
        """The number of vectors that wait until a batch is full."""
        return sum(map(len, self._waiting))

    @property
    def history(self) -> pd.DataFrame:
        """The measures of each step, on its batch, before the dictionary is updated.

        Returns:
            One row per (n_vectors): objective, explained_variance, n_active, n_dead.
        """
        return tidy(HISTORY, [dict(zip(HISTORY, zip(*self._history)))] if self._history else [])

    def update(self, hidden: Any, weight: Any = None) -> None:
        """Learn from hidden states. Takes one step for each batch that they fill.

        Args:
            hidden: Hidden states `[n, d_model]`, in any precision.
            weight: The weight of each hidden state, `[n]`; 1 by default. Yun et al. use 1/√f for a token that occurs f times
                in the corpus, because otherwise most factors represent frequent words.

        Raises:
            EmbspaceError: If shapes do not match, values are not finite, or a weight is negative.
        """
        hidden = as_tensor(hidden, "hidden states").to(self.device, torch.float32)
        if hidden.ndim != 2:
            raise errors.factor_input_shape("hidden states", tuple(hidden.shape), "[n, d_model]")
        if hidden.shape[1] != self.d_model:
            raise errors.bad_width(hidden.shape[1], "the dictionary", self.d_model, "hidden states")
        if weight is None:
            weight = hidden.new_ones(len(hidden))
        weight = as_tensor(weight, "weight").to(hidden)
        if weight.shape != hidden.shape[:1]:
            raise errors.factor_input_shape("weight", tuple(weight.shape), f"[{len(hidden)}], one per hidden state")
        if not hidden.isfinite().all():
            raise errors.not_finite("hidden states")
        if not weight.isfinite().all() or (weight < 0).any():
            raise errors.negative_weights()
        self._waiting.append(torch.cat([hidden, weight[:, None]], 1))
        while self.n_waiting >= self._next_batch_size():
            self._step(self._next_batch_size())

    def flush(self) -> None:
        """Take a step with the buffered vectors. Call it at the end of the stream, so that every vector is used."""
        if self.n_waiting:
            self._step(self.n_waiting)

    def _next_batch_size(self) -> int:
        return self.batch_size if self._n_seen else max(self.batch_size, self.n_factors)

    def _step(self, size: int) -> None:
        """Compute the codes of a batch, add it to the sums, update the factors, and replace dead ones."""
        waiting = torch.cat(self._waiting)
        # Copies, because the memory layout of a view could change how products are vectorised, and so their rounding.
        x, weight = waiting[:size, :-1].clone(), waiting[:size, -1].clone()
        self._waiting = [waiting[size:].clone()]
        with plain_arithmetic(self.device):
            if not self._n_seen:
                self._directions = self._initial_directions(x)
            active = ActiveSetSolver(self._directions, self.l1, gap=FIT_GAP).solve(x)
            residual = x - active.decode(self._directions)
            codes = active.dense(self.n_factors)
            is_active = (codes > 0).any(0)
            self._idle = torch.where(is_active, 0, self._idle + size)
            self._n_seen += size
            decay = (1 - size / self._n_seen) ** FORGETTING
            weighted = codes * (weight / size)[:, None]
            self._A.mul_(decay).addmm_(weighted.T, codes)
            self._B.mul_(decay).addmm_(weighted.T, x)
            dead = self._idle > max(PATIENCE * self.n_factors, 2 * self.batch_size)
            self._record(x, residual, active.value, int(dead.sum()))
            update_directions(self._directions, self._A, self._B)
            if dead.any():
                self._replace_dead(dead, residual, weight)

    def _initial_directions(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n_factors d_model"]:
        """Distinct hidden states of the first batch; random directions if there are too few."""
        distinct = torch.unique(unit_rows(x[x.any(dim=1)]), dim=0)
        chosen = torch.randperm(len(distinct), generator=self._generator())[: self.n_factors].to(x.device)
        return torch.cat([distinct[chosen], self._directions[len(chosen) :]])

    def _replace_dead(
        self, dead: Bool[Tensor, " n_factors"], residual: Float[Tensor, "n d_model"], weight: Float[Tensor, " n"]
    ) -> None:
        """Replace dead factors by residuals, drawn by their energy; few per step, so that they do not become equal."""
        energy = residual.square().sum(1) * weight
        replaced = dead.nonzero()[:, 0][: min(max(1, len(residual) // 16), int((energy > 0).sum()))]
        if not len(replaced):
            return
        drawn = torch.multinomial(energy.double().cpu(), len(replaced), generator=self._generator(self._n_seen))
        self._directions[replaced] = unit_rows(residual[drawn.to(residual.device)])
        self._A[replaced], self._A[:, replaced], self._B[replaced], self._idle[replaced] = 0.0, 0.0, 0.0, 0

    def _record(
        self,
        x: Float[Tensor, "n d_model"],
        residual: Float[Tensor, "n d_model"],
        active_codes: Float[Tensor, "n width"],
        n_dead: int,
    ) -> None:
        """Append the measures of a step to the history."""
        unexplained = residual.double().square().sum()
        objective = float((unexplained / 2 + self.l1 * active_codes.double().sum()) / len(x))
        total = (x.double() - x.double().mean(0)).square().sum()
        explained = float(1 - unexplained / total) if total > 0 else math.nan
        n_active = float((active_codes > 0).sum()) / len(x)
        self._history.append((self._n_seen, objective, explained, n_active, n_dead))

    def _generator(self, n_seen: int = 0) -> torch.Generator:
        """A random generator that depends on the seed and the position in the stream, so no random state is saved."""
        return torch.Generator().manual_seed(self.seed + 2**32 * n_seen)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the state of the fit, waiting vectors included. An earlier state in the folder is replaced atomically.

        A fit that stops at any time can be resumed: `load` it and pass the stream from vector `n_seen + n_waiting` on. On
        the same machine it ends with the same factors, bit for bit.

        Args:
            folder: The folder to write to; created if needed.

        Raises:
            EmbspaceError: If the files cannot be written. Files of an earlier save are then unchanged.
        """
        path = make_folder(folder)
        history = torch.tensor(self._history, dtype=torch.float64).view(-1, len(HISTORY))
        tensors = {"directions": self._directions, "A": self._A, "B": self._B, "idle": self._idle, "history": history}
        if self.n_waiting:
            tensors["waiting"] = torch.cat(self._waiting)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        settings = {name: getattr(self, name) for name in SETTINGS}
        metadata = {name: repr(value) for name, value in settings.items()}
        data = save(tensors, metadata={"architecture": KIND, "n_seen": str(self._n_seen), **metadata})
        write_whole(path / STATE, data)
        write_json(path / CONFIG, {"architecture": KIND, **settings})
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "FactorFitter":
        """Resume a fit from what `save` wrote.

        Args:
            folder: The folder of the saved fit.
            device: The device on which to continue.

        Raises:
            EmbspaceError: If the folder contains no saved fit, or its file is damaged.
        """
        path = expand(folder) / STATE
        tensors, metadata = read_tensors(path, KIND)
        try:
            integers = {name: int(metadata[name]) for name in SETTINGS if name != "l1"}
            fitter = cls(**integers, l1=float(metadata["l1"]), device=device)
            fitter._n_seen = int(metadata["n_seen"])
            for name in ("directions", "A", "B", "idle"):
                initial = getattr(fitter, f"_{name}")
                if tensors[name].shape != initial.shape:
                    raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}")
                setattr(fitter, f"_{name}", tensors[name].to(initial))
            fitter._history = [tuple(row) for row in tensors["history"].tolist()]
        except (KeyError, ValueError) as reason:
            raise errors.incomplete_fit(path, reason) from reason
        if "waiting" in tensors:
            fitter._waiting = [tensors["waiting"].to(fitter.device)]
        return fitter
