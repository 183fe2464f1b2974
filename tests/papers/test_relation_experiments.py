"""The experiments of MAPS and ROTATE: their parts compared with slow loops, and runs on a demo model with small data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_relation import planted
from reference import brute_relation_hits

from embspace_lens import EmbeddingLens
from embspace_lens.circuits import vocabulary_channels
from embspace_lens.papers.channels import random_directions
from embspace_lens.papers.experiment import COLUMNS, Setting
from embspace_lens.papers.registry import experiments
from embspace_lens.papers.relation_ablation import AFTER_SOURCE, WITHOUT_SOURCE, find_positions, mean_costs
from embspace_lens.papers.relation_prompts import correlation, dynamic_scores, prompts, static_scores
from embspace_lens.papers.relation_tables import PUBLISHED, published, top_k

TEMPLATE = "w2 w3 <X> w4 w5"
OURS = ("MAPS:relations", "MAPS:suppression", "MAPS:operations", "MAPS:dynamic", "MAPS:ablation",
        "circuits:head-statistics", "ROTATE:objective", "ROTATE:ablation")  # fmt: skip


def pairs_of(n=12, seed=0):
    return [
        tuple(pair) for pair in torch.randint(6, 97, (n, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    ]


def test_only_the_planted_head_has_static_hits():
    model, pairs = planted(1)
    scores = static_scores(EmbeddingLens(model, fold_ln=False), pairs, 1, first_mlp=False)
    assert (scores["hits"] == 1).nonzero()[0].tolist() == [4 + 2], "layer 1, head 2"
    assert scores["score"].argmax() == 6 and scores["score"].shape == (8,)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_dynamic_scores_equal_runs_with_a_fixed_attention_pattern(tiny, family):
    """As in the authors' code: the pattern of the last position is set to the source, while the input is that of the run."""
    lens, pairs, k = EmbeddingLens(tiny(family), fold_ln=False), pairs_of(), 5
    batch, position = prompts(lens, torch.tensor([s for s, _ in pairs]), TEMPLATE)
    assert batch.tokens[:, position].tolist() == [s for s, _ in pairs]
    without, with_context = dynamic_scores(lens, pairs, TEMPLATE, k)
    U = torch.cat(list(lens.space.rows("write").tiles())).T
    _, cache = lens.model.run_with_cache(batch.tokens)

    def attend_to_source(pattern, hook):
        pattern = pattern.clone()
        pattern[:, :, -1] = 0
        pattern[:, :, -1, position] = 1
        return pattern

    fixed = {}
    for layer in range(2):
        hooks = [
            (f"blocks.{layer}.attn.hook_pattern", attend_to_source),
            (f"blocks.{layer}.attn.hook_z", lambda z, hook: fixed.update(z=z)),
        ]
        lens.model.run_with_hooks(batch.tokens, fwd_hooks=hooks)
        for scores, z in ((with_context, cache[f"blocks.{layer}.attn.hook_z"]), (without, fixed["z"])):
            for head in range(lens.weights.n_heads):
                x = z[:, -1].flatten(1).unflatten(1, (lens.weights.n_heads, -1))[:, head]
                hits = brute_relation_hits(x, lens.weights.W_OV(layer).B[head], U, [t for _, t in pairs], k, 1)
                expected = sum(hits[i][i] for i in range(len(hits))) / len(hits)
                assert scores["hits"][layer * lens.weights.n_heads + head] == pytest.approx(expected)
                assert scores["hits control"][layer * lens.weights.n_heads + head] == pytest.approx(np.mean(hits))


def test_correlation_of_constant_scores_is_missing():
    assert np.isnan(correlation(np.zeros(5), np.arange(5.0)))
    assert correlation(np.arange(5.0), 3 - 2 * np.arange(5.0)) == pytest.approx(-1)


def test_positions_after_a_source_are_separate_from_those_without():
    sequences = np.full((3, 40), 9)
    sequences[0, [3, 20]] = 1, 2  # the source 1 before the target 2
    sequences[1, 15] = 2  # the target alone
    sequences[2, [4, 5]] = 1, 2  # too early
    positions = find_positions({(1, 2), (7, 8)}, sequences)
    assert positions == {AFTER_SOURCE: {(1, 2): [(0, 19)]}, WITHOUT_SOURCE: {(1, 2): [(1, 14)]}}
    assert mean_costs(np.arange(80.0).reshape(2, 40), {(1, 2): [(0, 1), (4, 3)]}, [0, 4]).tolist() == [22.0]


def test_random_directions_keep_length_and_cosine(tiny):
    lens = EmbeddingLens(tiny("gpt2"))
    channels = vocabulary_channels(lens, 0, [1, 2], n_channels=2, k=2)
    control = random_directions(lens, channels, seed=0)
    w = lens.weights.W_out(0)[[1, 1, 2, 2]]
    for measure in (lambda r: r.norm(dim=1), lambda r: torch.cosine_similarity(r, w, dim=1)):
        torch.testing.assert_close(measure(control.directions), measure(channels.directions), atol=1e-4, rtol=1e-4)
    assert torch.cosine_similarity(control.directions, channels.directions, dim=1).max() < 0.99


def test_published_values_are_those_of_the_effect():
    assert published("name_copying", "promotion") == (0.92, 0.97, 0.70)
    assert published("name_copying", "suppression") == (0.97, 0.99, 0.72)
    assert np.isnan(published("unknown", "promotion")).all() and len(PUBLISHED) == 18
    assert (top_k("name_copying"), top_k("adj_antonym")) == (1, 10)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "relations").mkdir()
    words = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="frequent").space.token_ids[:200].tolist()
    strings = EmbeddingLens.from_pretrained("reviews-small-0").vocabulary.array
    pairs = [[strings[word].strip()] * 2 for word in words]
    (folder / "relations" / "copying.json").write_text(json.dumps(pairs))
    text = "The film is a great film, and the cast of the film is great. " * 12
    rows = [{"split": "test", "label": "pos", "text": f"Number {i}. {text}"} for i in range(4)]
    (folder / "reviews.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in OURS if name != "ROTATE:objective"])
def test_experiments_run_on_a_demo_model(name, data):
    experiment = experiments()[name]
    findings = experiment.run(Setting("reviews-small-0", data, scale=0.01))
    assert set(findings.figures.columns) == set(COLUMNS)
    assert findings.figures["measure"].is_unique and len(findings.figures) > 0
    assert set(findings.figures["experiment"]) == {name} and findings.figures["n"].gt(0).all()


def test_experiments_are_registered():
    assert set(OURS) <= set(experiments())
