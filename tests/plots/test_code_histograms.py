"""Histograms of codes count every code once, by sense and layer."""

import numpy as np
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.plots import plot_code_histograms
from embspace_lens.tables.frames import tidy

COLUMNS = ["word", "tag", "factor", "layer", "example", "pos", "code"]


@pytest.fixture
def codes():
    tags = np.array(["vbd", "vbn", "jj", "nr"] * 5, dtype=object)
    block = {"word": "left", "tag": tags, "factor": 30, "example": np.arange(20), "pos": np.zeros(20)}
    return tidy(COLUMNS, [block | {"layer": layer, "code": np.arange(20) * (layer + 2.0)} for layer in range(-1, 4)])


def test_shares_of_each_sense_sum_to_one_and_equal_counts(codes):
    figure = plot_code_histograms(codes, {"verb": ["vbd", "vbn"], "<other>": ["jj", "nr"]})
    assert len(figure.data) == 5 * 2
    assert all(sum(trace.y) == pytest.approx(1) for trace in figure.data)
    top = codes["code"].max()
    first = codes[(codes["layer"] == -1) & codes["tag"].isin(["vbd", "vbn"])]["code"]
    counts, _ = np.histogram(first, bins=len(figure.data[0].y), range=(0, top))
    assert list(figure.data[0].y) == pytest.approx((counts / counts.sum()).tolist())
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles[:2] == ["embedding", "layer 0"] and "factor 30" in figure.layout.title.text
    assert "&lt;other&gt;" in figure.layout.title.subtitle.text and "<other>" not in figure.to_json()


def test_every_tag_is_a_sense_by_default_and_absent_senses_are_empty(codes):
    assert len({trace.marker.color for trace in plot_code_histograms(codes).data}) == 4
    assert sum(plot_code_histograms(codes, {"noun": ["nn"]}).data[0].y) == 0


def test_unsuitable_tables_are_refused(codes):
    with pytest.raises(EmbspaceError, match=r"plot_code_histograms\(\) needs a column 'tag'"):
        plot_code_histograms(codes.drop(columns="tag"))
    with pytest.raises(EmbspaceError, match="empty"):
        plot_code_histograms(codes.iloc[:0])
    many = codes.assign(tag=[f"t{i % 9}" for i in range(len(codes))])
    with pytest.raises(EmbspaceError, match=r"at most 6 senses .* holds 9\. Pass the tags of each sense"):
        plot_code_histograms(many)
