"""Runs of experiments: scale, cache, resuming."""

import pytest
from papers_stub import NAME, counted

from embspace_lens import EmbspaceError
from embspace_lens.papers import runs
from embspace_lens.papers.findings_cache import INDEX, findings_folder
from embspace_lens.papers.runs import RunOptions, run_experiments


@pytest.fixture
def options(tmp_path):
    return RunOptions(folder=tmp_path)


def test_finished_runs_are_read_and_not_repeated(calls, options):
    (first,) = run_experiments(options)
    (second,) = run_experiments(options)
    assert len(calls) == 1 and second.seconds == 0
    assert first.findings.figures.equals(second.findings.figures) and first.findings.notes == second.findings.notes
    assert first.findings.details["Heads"].equals(second.findings.details["Heads"])
    assert list(second.findings.plot().data[0].y) == [3, 4]


def test_fresh_repeats_a_finished_run(calls, options):
    list(run_experiments(options))
    list(run_experiments(RunOptions(folder=options.folder, fresh=True)))
    assert len(calls) == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"scale": 0.5}, {"model": "reviews-small-1"}])
def test_another_setting_is_another_run(calls, options, change):
    list(run_experiments(options))
    list(run_experiments(RunOptions(folder=options.folder, **change)))
    assert len(calls) == 2


def test_interrupted_command_resumes_after_the_finished_runs(calls, options, monkeypatch):
    def interrupt(setting):
        raise KeyboardInterrupt

    other = counted([], name="T:interrupted", run=interrupt)
    registry = {NAME: counted(calls), "T:interrupted": other}
    monkeypatch.setattr(runs, "experiments", lambda: registry)
    with pytest.raises(KeyboardInterrupt):
        list(run_experiments(options))
    done: list = []
    registry["T:interrupted"] = counted(done, name="T:interrupted")
    finished = list(run_experiments(options))
    assert len(calls) == 1 and len(done) == 1 and [run.seconds > 0 for run in finished] == [False, True]


def test_folder_without_its_index_is_not_finished(calls, options):
    (run,) = run_experiments(options)
    (findings_folder(run.experiment, run.setting) / INDEX).unlink()
    list(run_experiments(options))
    assert len(calls) == 2


def test_scale_of_the_experiment_is_for_demo_models_only(calls, options, monkeypatch):
    experiment = counted(calls, demo_scale=0.1, models=("reviews-small-0", "another", "reviews-small-0,another"))
    assert [setting.scale for setting in options.settings(experiment)] == [0.1, 1.0, 1.0]
    assert RunOptions(scale=0.3).settings(experiment)[0].scale == 0.3


def test_missing_files_are_named_and_nothing_runs(calls, options, monkeypatch):
    registry = {NAME: counted(calls, needs=("reviews",))}
    monkeypatch.setattr(runs, "experiments", lambda: registry)
    (run,) = run_experiments(options)
    assert run.findings is None and run.missing == ["reviews"] and not calls
    (options.folder / "reviews.csv").write_text("text,label,split\n")
    assert not next(run_experiments(RunOptions(data=options.folder, folder=options.folder))).missing


def test_unknown_names_are_refused(calls, options):
    with pytest.raises(EmbspaceError, match="name='T:count' is not one of 'T:counted'. Did you mean 'T:counted'?"):
        RunOptions(names=("T:count",)).experiments()
