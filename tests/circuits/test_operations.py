"""Salient operations: slow loops, a planted head, and errors."""

import math

import numpy as np
import pandas as pd
import pytest
from planted_relation import planted
from tables import check_tidy
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.circuits import salient_operations
from embspace_lens.search.tiles import chunk_bytes
from embspace_lens.weights.first_mlp import first_mlp_output

KEYS = ["layer", "head", "src_rank", "rank"]
COLUMNS = [*KEYS, "dest_token_index", "dest_token_string", "src_token_index", "src_token_string", "score"]
COLUMNS += ["amplification"]
OPTIONS = [
    ("gpt2", {}, dict(k=5)),
    ("gpt2", dict(vocabulary=range(5, 80), score="cosine"), dict(k=3, first_mlp=False)),
    ("llama", dict(score="centered"), dict(k=1)),  # grouped key and value heads
    ("gemma2", dict(space="unembed"), dict(k=4)),
    ("mixtral", dict(fold_ln=False), dict(k=4)),
]


@pytest.mark.parametrize(("family", "lens_options", "options"), OPTIONS)
@pytest.mark.parametrize("largest", [True, False])
def test_operations_equal_slow_loops(tiny, family, lens_options, options, largest):
    lens = EmbeddingLens(tiny(family), **lens_options)
    first_mlp, k, n = options.get("first_mlp", True), options["k"], 6
    with chunk_bytes(32 * 4 * 5):  # several chunks of tokens
        df = salient_operations(lens, n=n, k=k, largest=largest, first_mlp=first_mlp)
    check_tidy(df, KEYS, COLUMNS)
    ids = lens.space.token_ids
    for (layer, head), rows in df.groupby(["layer", "head"]):
        x = lens.weights.W_E[ids]
        x = first_mlp_output(lens.weights, x) if first_mlp and layer else x
        x = x.double()
        form = lens.weights.W_OV(layer)
        y = x @ form.A[head].double() @ form.B[head].double()
        ratio = [math.dist(b, [0] * 32) / math.dist(a, [0] * 32) for a, b in zip(x.tolist(), y.tolist())]
        order = sorted(range(len(ratio)), key=lambda i: -ratio[i])[:n]
        assert rows["src_token_index"].tolist() == [int(ids[i]) for i in order for _ in range(k)]
        np.testing.assert_allclose(rows["amplification"], np.repeat([ratio[i] for i in order], k), rtol=1e-5)
        scores = lens.project(y[order].float())[:, ids]
        best = scores.topk(k, largest=largest)
        assert rows["dest_token_index"].tolist() == ids[best.indices].flatten().tolist()
        np.testing.assert_allclose(rows["score"], best.values.flatten(), rtol=1e-4, atol=1e-5)


def test_operations_of_a_planted_head_are_its_pairs():
    model, pairs = planted()
    df = salient_operations(EmbeddingLens(model), layer=1, head=2, n=40, k=1, first_mlp=False)
    mapping = dict(zip(df["src_token_index"], df["dest_token_index"]))
    assert all(mapping[source] == target for source, target in pairs if source in mapping)
    assert len(set(mapping) & {source for source, _ in pairs}) > 30


@pytest.mark.parametrize(
    "options", [{}, dict(layer=0), dict(layer=[]), dict(head=[3, 0], k=2, first_mlp=False)], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "qwen2_moe"])
def test_tables_are_tidy(tiny, family, options):
    table = salient_operations(EmbeddingLens(tiny(family)), n=3, **options)
    check_tidy(table, KEYS, COLUMNS)
    assert (len(table) == 0) == (options.get("layer") == [])


def test_operations_need_no_forward_pass(tiny, monkeypatch):
    model = tiny("gpt2")
    expected = salient_operations(EmbeddingLens(model), layer=1, head=0, n=2, k=2)
    monkeypatch.setattr(type(model), "forward", None)
    operations = salient_operations(EmbeddingLens(model), layer=1, head=0, n=2, k=2)
    pd.testing.assert_frame_equal(operations, expected)


@pytest.mark.parametrize("n", [0, 98, 1.5])
def test_invalid_numbers_of_tokens_raise(lens, n):
    message = f"n={n} is not an integer from 1 to 97, the number of tokens that this lens reads"
    with unchecked_types(), pytest.raises(EmbspaceError, match=message):
        salient_operations(lens, n=n)
