"""The command that repeats the papers' tables and figures: paper."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import errors
from ..files import refuse_unwritable
from .loading import no_chatter
from .output import DrawnOutput, Output, print_text, write_figure

if TYPE_CHECKING:
    from ..papers.runs import Run, RunOptions


def paper(
    name: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Experiments, such as A:keep-k. Without a name, they are listed."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Run all experiments.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|FOLDER",
            help="A demo model, a local folder, or a model of the Hugging Face hub; two of them with a comma for "
            "experiments on two models. By default the demo models of the experiment.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="The folder of texts and word lists. `data` by default, if it exists."
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            metavar="X",
            min=0.0,
            help="The share of the paper's corpus and sample sizes. By default 1, and less for slow experiments on demo models.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where finished runs are kept; the same command resumes.")
    ] = Path("runs/papers"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat runs that are finished.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the results as a Markdown page.")
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Compare the numbers of a Markdown file with runs of the experiments that it names. Repeat the option for several.",
        ),
    ] = None,
    *,
    output: DrawnOutput,
) -> None:
    """Repeat tables and figures of the papers.

    The published value stands beside the one measured here, with its control. Finished runs are kept, so that an
    interrupted command resumes.

    For example:

        embspace-lens paper A:related-pairs
    """
    if write is not None:
        refuse_unwritable(write)
    from ..papers.number_check import named_experiments
    from ..papers.runs import RunOptions

    if data is None and Path("data").is_dir():
        data = Path("data")
    texts = [_read(path) for path in check or []]
    names = tuple(
        name or [] if not texts or name or all else sorted({n for text in texts for n in named_experiments(text)})
    )
    options = RunOptions(names, model, data, scale, seed, folder, fresh)
    if not (names or all):
        if texts:
            raise errors.no_experiment_named(check or [])
        print_text(_listing(options))
        return
    if output.plot is not None:
        _check_one_experiment(options)
    runs = _finish(options, is_shown=not (write or texts or output.out))
    if output.plot is not None:
        _draw(output.plot, runs)
    if write is not None:
        _write_page(write, runs, options)
    if output.out is not None or output.format != "table":
        Output(output.format, output.out).write(_figures(runs))
    if texts:
        _report_check(check or [], runs, options)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise errors.not_readable(path, reason) from reason


def _listing(options: "RunOptions") -> str:
    """All experiments by paper, one per line, with their needs if one is missing."""
    from itertools import groupby

    from ..papers.data_files import missing_needs

    experiments = options.experiments()
    width = max((len(experiment.name) for experiment in experiments), default=0)
    lines = []
    for paper, group in groupby(experiments, lambda experiment: _authors_and_year(experiment.source)):
        lines.append(paper)
        for experiment in group:
            needs = f"  [needs {', '.join(experiment.needs)}]" if missing_needs(experiment, options.data) else ""
            lines.append(f"  {experiment.name:{width}}  {experiment.title}{needs}")
    return "\n".join([*lines, "", "Next: embspace-lens paper NAME"])


def _authors_and_year(source: str) -> str:
    """A source without its title and section: `Dar et al. (2023), §4.2` is `Dar et al. (2023)`."""
    match = re.match(r".*?\b\d{4}\b\)?", source)
    return match.group() if match else source


def _finish(options: "RunOptions", is_shown: bool) -> "list[Run]":
    """Run the experiments; each is reported when it is finished."""
    from itertools import groupby

    from ..papers.results_page import write_section
    from ..papers.runs import planned_runs, run_experiments

    n = len(planned_runs(options))
    runs: list[Run] = []
    with no_chatter():
        for run in run_experiments(options):
            runs.append(run)
            state = (
                f"not run, the data folder lacks {', '.join(run.missing)}" if run.missing else f"{run.seconds:.0f} s"
            )
            state = "finished earlier" if run.findings is not None and not run.seconds else state
            typer.echo(f"{run.experiment.name}, {run.setting.model}: {state} ({len(runs)} of {n})", err=True)
    for _, group in groupby(runs, key=lambda run: run.experiment.name) if is_shown else ():
        print_text(write_section(list(group), options))
    if all(run.findings is None for run in runs):
        run = runs[0]
        from ..papers.data_files import data_file

        data_file(run.setting, run.missing[0])
    return runs


def _figures(runs: "list[Run]") -> Any:
    import pandas as pd

    return pd.concat([run.findings.figures for run in runs if run.findings is not None], ignore_index=True)


def _check_one_experiment(options: "RunOptions") -> None:
    """Check that a figure is of one experiment, before it runs."""
    if len(options.experiments()) > 1:
        raise errors.one_experiment_needed()


def _draw(path: Path, runs: "list[Run]") -> None:
    plots = [run.findings.plot for run in runs if run.findings is not None and run.findings.plot is not None]
    if not plots:
        raise errors.no_figure(runs[0].experiment.name)
    write_figure(plots[0](), path)
    typer.echo(f"{path}: the figure of {runs[0].experiment.name}, {runs[0].setting.model}", err=True)


def _write_page(path: Path, runs: "list[Run]", options: "RunOptions") -> None:
    from ..files import write_whole
    from ..papers.results_page import write_page

    write_whole(path, write_page(runs, options).encode())
    typer.echo(f"{path}: {len({run.experiment.name for run in runs})} experiments", err=True)


def _report_check(paths: list[Path], runs: "list[Run]", options: "RunOptions") -> None:
    from ..papers.number_check import check_document

    problems = [f"{path}: {problem}" for path in paths for problem in check_document(path, runs, options)]
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"The numbers of {', '.join(map(str, paths))} are those of the experiments.")
