"""Runs of experiments: the settings of each, the cache of finished ones."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..demo.catalog import names as demo_names
from ..tables.checks import check_choice
from .data_files import missing_needs
from .experiment import Experiment, Findings, Setting
from .findings_cache import findings_folder, is_finished, read_findings, write_findings
from .registry import experiments


@dataclass(frozen=True)
class RunOptions:
    """The options of the command that select and change runs.

    Attributes:
        names: The experiments; all if there are none.
        model: A model instead of those of the experiment.
        data: The data folder.
        scale: The share of the paper's sizes; by default that of the experiment for demo models, and 1 for others.
        seed: The seed of everything random.
        folder: Where finished runs are kept.
        fresh: Whether finished runs are repeated.
    """

    names: tuple[str, ...] = ()
    model: str | None = None
    data: Path | None = None
    scale: float | None = None
    seed: int = 0
    folder: Path = Path("runs/papers")
    fresh: bool = False

    def experiments(self) -> list[Experiment]:
        """The selected experiments, in the order of the registry.

        Raises:
            EmbspaceError: If a name is unknown.
        """
        known = experiments()
        chosen = {check_choice("name", name, known) for name in self.names}
        return [experiment for name, experiment in known.items() if not chosen or name in chosen]

    def settings(self, experiment: Experiment) -> list[Setting]:
        """One setting for each model on which the experiment runs."""
        models = experiment.models if self.model is None else (self.model,)
        return [Setting(model, self.data, self._scale(experiment, model), self.seed, self.folder) for model in models]

    def _scale(self, experiment: Experiment, model: str) -> float:
        if self.scale is not None:
            return self.scale
        return experiment.demo_scale if set(split_models(model)) <= set(demo_names()) else 1.0


@dataclass(frozen=True)
class Run:
    """One experiment on one model.

    Attributes:
        experiment: The experiment.
        setting: Its setting.
        findings: What it found; None if files are missing.
        missing: The needs that the data folder does not meet.
        seconds: How long it took; 0 if it was read from the cache.
    """

    experiment: Experiment
    setting: Setting
    findings: Findings | None
    missing: Sequence[str] = ()
    seconds: float = 0.0


def split_models(model: str) -> list[str]:
    """The models of a setting: experiments on two models take both names, joined by a comma."""
    return [part.strip() for part in model.split(",")]


def planned_runs(options: RunOptions) -> list[tuple[Experiment, Setting]]:
    """The runs that the options select."""
    return [(experiment, setting) for experiment in options.experiments() for setting in options.settings(experiment)]


def run_experiments(options: RunOptions) -> Iterator[Run]:
    """Run the selected experiments one after the other; finished runs are read from the cache.

    Raises:
        EmbspaceError: If a name is unknown, or a model cannot be loaded.
    """
    for experiment, setting in planned_runs(options):
        missing = missing_needs(experiment, options.data)
        if missing:
            yield Run(experiment, setting, None, missing)
            continue
        folder = findings_folder(experiment, setting)
        seconds = 0.0
        if options.fresh or not is_finished(folder):
            start = time.monotonic()
            findings = experiment.run(setting)
            seconds = time.monotonic() - start
            write_findings(folder, findings, seconds)
        # What is shown is always read from the disk, so that a new and a cached run give the same page.
        yield Run(experiment, setting, read_findings(folder), (), seconds)
