"""Graphs of the strongest virtual weights between two dictionaries."""

import pandas as pd
import pytest
import torch
from handmade import UNSAFE_TOKENS, pairs_of

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.features import Features, feature_labels, virtual_weights
from embspace_lens.plots import plot_feature_graph


def dictionary(n, labels=None, name="axes"):
    return Features(torch.eye(n), torch.diag(torch.arange(1.0, n + 1)), name=name, labels=labels)


def lines_of(figure):
    return [trace for trace in figure.data if trace.mode == "lines"]


def labels_of(figure):
    """The labels of the left and of the right column, without their headings."""
    return [[text.strip() for text in trace.text[1:]] for trace in figure.data if trace.mode == "text"]


def test_every_weight_is_a_line_between_its_features():
    pairs = virtual_weights(dictionary(4), dictionary(4, list("wxyz")), k=3)
    figure = plot_feature_graph(pairs)
    assert [line.hovertext for line in lines_of(figure)][::-1] == [
        "#3 → z<br>weight 4.00",
        "#2 → y<br>weight 3.00",
        "#1 → x<br>weight 2.00",
    ]
    assert labels_of(figure) == [["#3", "#2", "#1"], ["z", "y", "x"]]
    assert figure.layout.title.subtitle.text == "directly through the stream; thicker lines: larger weights"


def test_strongest_weights_of_both_signs_are_drawn():
    source = dictionary(3)
    target = Features(torch.eye(3), torch.diag(torch.tensor([1.0, -3.0, 2.0])))
    pairs = pd.concat([virtual_weights(source, target, k=2, largest=largest) for largest in (True, False)])
    figure = plot_feature_graph(pairs, k=2)
    assert [line.hovertext.partition("<br>")[0] for line in lines_of(figure)] == ["#2 → #2", "#1 → #1"]
    assert [line.line.dash for line in lines_of(figure)] == ["solid", "dot"]
    assert "dotted: negative" in figure.layout.title.subtitle.text


def test_labels_are_tokens_that_sources_write_and_targets_read(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    d_model = lens.weights.d_model
    source, target = (Features(torch.eye(d_model), torch.eye(d_model), name=name) for name in "st")
    labels = feature_labels(lens, source, k=2)
    pairs = virtual_weights(source, target, k=1)
    figure = plot_feature_graph(pairs, source_labels=labels, target_labels=labels)
    feature = int(pairs["src_feature_index"].iloc[0])
    for shown, side in zip(labels_of(figure), ("write", "read"), strict=True):
        rows = labels[(labels["feature"] == feature) & (labels["side"] == side)]
        assert shown == [" ".join([f"#{feature}", *(text.replace(" ", "␣") for text in rows["token_string"])])]


def test_weights_through_heads_name_their_heads(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    d_model = lens.weights.d_model
    source = Features(torch.eye(d_model), torch.eye(d_model), name="s", hook="hook_embed", layer=None)
    for circuit, subtitle in (("ov", "moved by L1H0"), ("qk", "attention of L1H0")):
        pairs = (
            virtual_weights(source, source, lens=lens, layer=1, head=0, circuit=circuit, k=3)
            if circuit == "qk"
            else None
        )
        if pairs is None:
            target = Features(torch.eye(d_model), torch.eye(d_model), name="t", hook="blocks.1.hook_resid_post")
            pairs = virtual_weights(source, target, lens=lens, layer=1, head=0, circuit=circuit, k=3)
        figure = plot_feature_graph(pairs)
        assert figure.layout.title.subtitle.text.startswith(subtitle)
        ends = ("src", "dest") if circuit == "ov" else ("dest", "src")
        expected = " → ".join(f"#{pairs[f'{end}_feature_index'].iloc[0]}" for end in ends)
        assert lines_of(figure)[-1].hovertext.startswith(f"L1H0<br>{expected}<br>")


def test_hostile_labels_are_escaped():
    labels = list(dict.fromkeys(UNSAFE_TOKENS))
    pairs = virtual_weights(dictionary(len(labels), labels), dictionary(len(labels)), k=len(labels))
    figure = plot_feature_graph(pairs)
    for text in [
        *(line.hovertext for line in lines_of(figure)),
        *(text for column in labels_of(figure) for text in column),
    ]:
        assert "<script" not in text and "<b>" not in text and "\u202e" not in text


def test_other_tables_raise():
    with pytest.raises(EmbspaceError, match="nothing to draw"):
        plot_feature_graph(virtual_weights(dictionary(2), dictionary(2), k=1).head(0))
    with pytest.raises(EmbspaceError, match="circuit"):
        plot_feature_graph(pairs_of([" a"]))
    direct = virtual_weights(dictionary(2), dictionary(2), k=1)
    with pytest.raises(EmbspaceError, match="draws one circuit, and this table holds direct, ov"):
        plot_feature_graph(pd.concat([direct, direct.assign(circuit="ov")]))


def test_accessor_shows_and_draws_virtual_weights():
    pairs = virtual_weights(dictionary(3), dictionary(3), k=2)
    assert repr(pairs.embspace.show()).splitlines() == [
        "weight  best  pairs, best first",
        "direct  3.00  #2→#2 #1→#1",
    ]
    assert pairs.embspace.label()["label"].tolist() == ["#2→#2 #1→#1"]
    assert pairs.embspace.plot().layout.title.text == "The strongest virtual weights"
