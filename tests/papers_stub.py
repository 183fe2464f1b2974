"""Experiments of the tests: quick, and with known figures."""

from embspace_lens.papers import number_check, runs
from embspace_lens.papers.experiment import Experiment, Findings, Setting, figures
from embspace_lens.tables.frames import tidy

NAME = "T:counted"


def counted(calls: list[Setting], **changes) -> Experiment:
    """An experiment that appends its setting to `calls`, with known figures."""

    def run(setting: Setting) -> Findings:
        calls.append(setting)
        rows = [
            {"measure": "overlap", "value": 0.1234, "control": 0.05, "published": 0.0083, "n": setting.size(100)},
            {"measure": "k = 64", "value": 24.0, "n": 24},
        ]
        details = {"Heads": tidy(["layer", "head", "label"], [{"layer": [0, 1], "head": 2, "label": ["␣a", "␣b"]}])}
        return Findings(figures(NAME, setting, rows), details, draw, ("A note.",))

    def draw():
        import plotly.graph_objects as go

        return go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))

    options = {
        "name": NAME,
        "title": "Counted",
        "source": "Nobody (2020)",
        "protocol": "Count.",
        "run": run,
        "models": ("reviews-small-0",),
    }
    return Experiment(**(options | changes))


def only_counted(monkeypatch) -> list[Setting]:
    """Make `counted` the only experiment of the registry; the settings with which it runs are appended to the list."""
    calls: list[Setting] = []
    registry = {NAME: counted(calls)}
    for module in (runs, number_check):
        monkeypatch.setattr(module, "experiments", lambda: registry)
    return calls
