"""`df.embspace`: show, label and plot."""

import sys
from io import StringIO

import pandas as pd
import pytest
from handmade import TABLES, assert_harmless, neurons_of, pairs_of
from rich.console import Console
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError, accessor, align, plots
from embspace_lens.circuits.operations import salient_operations
from embspace_lens.display import terminal
from embspace_lens.display.table_groups import count_groups
from embspace_lens.tables.frames import KINDS


@pytest.mark.parametrize("name", TABLES)
def test_show_is_text_in_a_terminal_and_html_in_a_notebook(lens, name):
    df = TABLES[name](lens)
    shown = df.embspace.show(n=2)
    assert repr(shown) == terminal.render(df, n=2)
    parsed = assert_harmless(shown._repr_html_())
    assert parsed.tags.count("tr") == (9 if name == "search" else 3)
    assert "prefers-color-scheme" not in shown._repr_html_(), "the notebook's theme decides, not the system's"
    if name == "directions":
        assert "<i>b</i>" in parsed.text


@pytest.mark.parametrize("name", [name for name in TABLES if name != "components"])
def test_label_has_one_row_per_group(lens, name):
    df = TABLES[name](lens)
    labels = df.embspace.label(k=2)
    assert len(labels) == count_groups(df)
    assert labels.columns[-1] == "label" and isinstance(labels.index, pd.RangeIndex)
    assert not {"rank", "score"} & set(labels.columns)
    merged = df.merge(labels, on=list(labels.columns[:-1]))
    assert len(merged) == len(df)


def test_labels_join_the_best_tokens():
    assert neurons_of([" a", " b", "c"]).embspace.label(k=2)["label"].tolist() == ["␣a ␣b", "␣a ␣b"]
    assert pairs_of([" a", " b"]).embspace.label()["label"].tolist() == ["␣a→␣b ␣b→␣a"]
    assert pairs_of([" a", " b"], "W_QK").embspace.label()["label"].tolist() == ["␣b→␣a ␣a→␣b"]
    shuffled = neurons_of([" a", " b"], ["W_out"]).iloc[::-1]
    assert shuffled.embspace.label()["label"].tolist() == ["␣a ␣b"]
    assert neurons_of([]).embspace.label().columns.tolist() == ["layer", "neuron", "weight", "label"]


def test_other_tables_and_invalid_arguments_raise(lens):
    other_table = pd.DataFrame({"a": [1]})
    for call in (other_table.embspace.show, other_table.embspace.label, other_table.embspace.plot):
        with pytest.raises(EmbspaceError, match=r"not one of EmbeddingLens's tables.*'a'"):
            call()
    with pytest.raises(EmbspaceError, match=r"label\(\) takes a table of .*; this is a table of components\(\)"):
        lens.components().embspace.label()
    with pytest.raises(EmbspaceError, match=r"plot\(\) takes a table of .*; this is a table of components\(\)\."):
        lens.components().embspace.plot()
    for n in (0, -1, True, 2.5):
        with unchecked_types(), pytest.raises(EmbspaceError, match=f"n={n!r} is not an integer of 1 or more"):
            lens.neurons(k=1).embspace.show(n=n)
        with unchecked_types(), pytest.raises(EmbspaceError, match=f"k={n!r} is not an integer of 1 or more"):
            lens.neurons(k=1).embspace.label(k=n)


def test_repr_names_the_kind_and_the_methods(lens):
    assert (
        repr(lens.neurons(k=1).embspace)
        == "<embspace: a table of tokens, 192 lines; .show(n=10), .label(k=5), .plot()>"
    )
    assert repr(lens.components().embspace) == "<embspace: a table of components, 15 lines; .show(n=10)>"
    assert repr(pd.DataFrame({"a": [1]}).embspace) == "<embspace: not a table of this package>"
    assert ".embspace" in EmbeddingLens.__doc__


def test_plot_depends_on_the_kind_of_the_table(lens):
    assert len(lens.neurons(0, 3, k=4).embspace.plot().data) == 2
    assert lens.ov(0, [0, 1], k=4).embspace.plot().data[0].mode == "lines"
    table_of_twelve_heads = pd.concat([pairs_of([" a", " b"], head=h) for h in range(12)], ignore_index=True)
    assert table_of_twelve_heads.embspace.plot().data[0].type == "heatmap"
    assert len(lens.search(5, k=2).embspace.plot().data) == 8
    with pytest.raises(EmbspaceError, match="draws at most 9 lists at a time, and this table holds 12"):
        salient_operations(lens, 0, 0, n=12, k=2).embspace.plot()  # one list for each source token, not for each head
    assert len(lens.singular(0, 0, n_directions=1, k=3).embspace.plot().data) == 2


def test_error_names_the_extra_if_plotly_is_missing(monkeypatch, lens):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(EmbspaceError, match=r"needs plotly, .* pip install 'embspace-lens\[plots\]'"):
        lens.neurons(0, 0, k=2).embspace.plot()


def test_label_accepts_a_repeated_index(lens):
    repeated = pd.concat([lens.ov(k=2), lens.qk(k=2)])
    assert repeated.index.has_duplicates
    labels = repeated.embspace.label(k=1)
    assert labels["label"].tolist() == repeated.reset_index(drop=True).embspace.label(k=1)["label"].tolist()


def test_every_plot_of_a_kind_is_public():
    by_kind = accessor.plots_by_kind()
    assert all(getattr(plots, plot.__name__) is plot for plot in by_kind.values())
    assert set(by_kind) <= set(KINDS)


def test_the_table_of_an_alignment_is_drawn_with_the_alignment(lens):
    alignment = align(lens, lens, weights=["W_V", "W_O"], space="residual")
    figure = alignment.correlation.embspace.plot(alignment=alignment, weights="W_V")
    assert len(figure.data) == 1 and "matched one to one" in figure.layout.title.text
    with pytest.raises(EmbspaceError, match=r"Call alignment\.plot\(\)"):
        alignment.correlation.embspace.plot()


def test_show_has_colours_in_a_rich_console(lens):
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(lens.neurons(0, 3, k=4).embspace.show())
    assert "\x1b[1m" in console.file.getvalue() and "L0N3" in console.file.getvalue()


def test_text_in_a_notebook_is_returned_and_not_displayed(lens, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown = lens.neurons(layer=0, neuron=3, k=2).embspace.show()
    assert repr(shown).startswith("neuron") and all(line == line.rstrip() for line in repr(shown).split("\n"))
