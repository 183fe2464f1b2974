"""What an experiment is: its source, its run on one model, and its result as tables and a figure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..tables.frames import tidy

COLUMNS = ("experiment", "measure", "model", "value", "low", "high", "control", "published", "published_control", "n")


@dataclass(frozen=True)
class Setting:
    """What one run of an experiment is given.

    Attributes:
        model: A demo model, a local folder or a hub model.
        data: The folder of texts and word lists; None if there is none.
        scale: The share of the paper's corpus and sample sizes; 1 for the paper's own.
        seed: The seed of everything random.
        folder: Where long runs keep their checkpoints.
    """

    model: str
    data: Path | None = None
    scale: float = 1.0
    seed: int = 0
    folder: Path = Path("runs/papers")

    def size(self, published: int, minimum: int = 1) -> int:
        """A published size times the scale, rounded, and at least `minimum`."""
        return max(minimum, round(self.scale * published))


@dataclass(frozen=True)
class Findings:
    """The result of one experiment on one model.

    Attributes:
        figures: One row per measure, made by `figures`.
        details: Further tables by their titles, in the order in which they are shown.
        plot: Draws the paper's figure as a plotly figure; None if the paper has none.
        notes: What differs from the paper's setting on this model, one sentence each.
    """

    figures: pd.DataFrame
    details: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    plot: Callable[[], Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper.

    Attributes:
        name: The paper's letter or name, a colon, and a short name: `A:keep-k`.
        title: What is measured, as a heading.
        source: The paper and the section, table or figure.
        protocol: One or two sentences: what is measured, with which options, and what the control is.
        run: Measures it on one model.
        demo_scale: The scale that is used for demo models if none is given.
        models: The demo models on which it is run for the results page.
        needs: The files of the data folder that it reads, such as `"reviews"`, `"relations"`, `"sentiment"`, `"brown"`.
    """

    name: str
    title: str
    source: str
    protocol: str
    run: Callable[[Setting], Findings]
    demo_scale: float = 1.0
    models: tuple[str, ...] = ("reviews-small-0",)
    needs: tuple[str, ...] = ()


def figures(name: str, setting: Setting, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of an experiment as a table; a number that a row lacks is NaN, and a count that it lacks is 0.

    Returns:
        One row per (experiment, measure, model), with `value`, its interval `low` and `high`, its `control`, and the paper's
        `published` and `published_control`.
    """
    empty = dict.fromkeys(("value", "low", "high", "control", "published", "published_control"), np.nan)
    blocks = [{"experiment": name, "model": setting.model, "n": 0, **empty, **row} for row in rows]
    return tidy(COLUMNS, blocks)
