"""The tutorials and the solutions of their exercises run, and their committed outputs are visible without JavaScript."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
TABLE, FIGURE = "text/html", "application/vnd.plotly.v1+json"
SOLUTION = re.compile(r"<details>\n<summary>.+?</summary>\n\n```python\n(.+?)```\n.*?</details>", re.DOTALL)
each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def test_there_are_tutorials():
    assert TUTORIALS


def solutions(notebook):
    """The code of the folded solutions of a tutorial's exercises."""
    return [code for cell in notebook.cells if cell.cell_type == "markdown" for code in SOLUTION.findall(cell.source)]


def test_each_exercise_of_the_first_tutorial_has_a_folded_solution_with_assertions():
    notebook = nbformat.read(TUTORIALS[0], as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    n_exercises = len(re.findall(r"^\d\. ", text.partition("## Exercises")[2], re.MULTILINE))
    assert n_exercises == text.count("<details>") == len(solutions(notebook)) == 3
    for code in solutions(notebook):
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))


@pytest.mark.full
@pytest.mark.parametrize(
    "path",
    TUTORIALS,
    ids=lambda path: path.stem,
)
def test_tutorial_runs(path, monkeypatch):
    # Figures are stored as data only, because a PNG needs a browser.
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {"text/plain": 0})
    }
    assert TABLE in kinds and FIGURE in kinds


@each_tutorial
def test_first_code_cell_raises_with_installation_instructions(path):
    notebook = nbformat.read(path, as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    namespace = {"__builtins__": {**__builtins__, "__import__": without_the_package}}  # type: ignore[dict-item]
    assert "except ImportError" in source
    with pytest.raises(BaseException) as caught:
        exec(source, namespace)
    message = str(caught.value)
    assert "embspace" in message and "pip install" in message, message


def without_the_package(name, *args, **kwargs):
    """`import` where embspace_lens is not installed."""
    if name.split(".")[0] == "embspace_lens":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return __import__(name, *args, **kwargs)


@each_tutorial
def test_committed_outputs_are_visible_without_javascript(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= 31
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from the top, once"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type in ("execute_result", "display_data", "stream"), "no errors"
            data = output.get("data", {})
            if FIGURE in data:
                assert "image/png" in data, "a picture beside the interactive form"
    text = path.read_text("utf-8")
    assert path.stat().st_size < 2_000_000
    assert not re.search(r"/(home|root|tmp|work)/", text), "no path of a machine"
