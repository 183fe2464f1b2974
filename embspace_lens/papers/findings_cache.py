"""Findings on disk, one folder for each run of an experiment, so that finished runs are not repeated."""

import ast
import re
from functools import partial
from hashlib import sha256
from inspect import getsourcefile, unwrap
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import make_folder, read_json, whole, write_json, write_whole
from .data_files import find_file
from .experiment import Experiment, Findings, Setting

INDEX, FIGURES, PLOT = "findings.json", "figures.parquet", "plot.json"


def findings_folder(experiment: Experiment, setting: Setting) -> Path:
    """The folder of one run.

    Its name depends on the experiment and the source of its module, the model, the scale, the seed, and the names and sizes
    of the data files; a change of any of them is another run.
    """
    source = getsourcefile(unwrap(experiment.run))
    files = [(path.name, path.stat().st_size) for need in experiment.needs if (path := find_file(setting.data, need))]
    code = ast.dump(ast.parse(Path(source).read_text("utf-8"))) if source else ""
    arguments = [experiment.name, experiment.protocol, code, setting.model, setting.scale, setting.seed, files]
    key = sha256(repr(arguments).encode()).hexdigest()[:10]
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{experiment.name} {setting.model}").strip("-")
    return setting.folder / "findings" / f"{name[-100:]}-{key}"


def write_findings(folder: Path, findings: Findings, seconds: float) -> None:
    """Write findings; the index is written last, so that an interrupted run leaves no folder that counts as finished."""
    make_folder(folder)
    tables = {FIGURES: findings.figures}
    tables |= {f"details-{i}.parquet": table for i, table in enumerate(findings.details.values())}
    for name, table in tables.items():
        with whole(folder / name) as part:
            table.to_parquet(part, index=False)
    if findings.plot is not None:
        write_whole(folder / PLOT, findings.plot().to_json().encode())
    index = {"details": list(findings.details), "notes": list(findings.notes), "seconds": round(seconds, 1)}
    write_json(folder / INDEX, index | {"plot": findings.plot is not None})


def is_finished(folder: Path) -> bool:
    """Whether the folder holds complete findings."""
    return (folder / INDEX).is_file()


def read_findings(folder: Path) -> Findings:
    """The findings that `write_findings` wrote.

    Raises:
        EmbspaceError: If the index is damaged.
    """
    index = read_json(folder / INDEX)
    details = {title: pd.read_parquet(folder / f"details-{i}.parquet") for i, title in enumerate(index["details"])}
    plot = partial(_read_plot, folder / PLOT) if index["plot"] else None
    return Findings(pd.read_parquet(folder / FIGURES), details, plot, tuple(index["notes"]))


def _read_plot(path: Path) -> Any:
    from plotly.io import from_json

    return from_json(path.read_text("utf-8"))
