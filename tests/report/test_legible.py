"""The neurons and heads that a report shows first."""

import numpy as np
import pytest
import torch

from embspace_lens import EmbeddingLens
from embspace_lens.report.legible import TokenSimilarity, is_first_occurrence, legible_neurons, token_similarity
from embspace_lens.report.model_summary import summarize_model
from embspace_lens.search.tiles import chunk_bytes


def test_similarity_is_the_mean_cosine_of_words(lens):
    df = lens.neurons(0, range(4), weight="W_out", k=5)
    similarity = TokenSimilarity(lens)
    similarities = token_similarity(lens, df, similarity)
    assert similarities.columns.tolist() == ["layer", "neuron", "weight", "similarity"]
    for row in similarities.to_dict("records"):
        tokens = df[df["neuron"] == row["neuron"]]["token_index"].to_numpy().copy()
        rows = (
            similarity.sides["write"][torch.from_numpy(tokens)] * torch.from_numpy(similarity.counts[tokens])[:, None]
        )
        cosines = (rows @ rows.T).fill_diagonal_(0).sum() / 20
        assert row["similarity"] == pytest.approx(cosines.item(), abs=1e-5)


def test_repeated_tokens_lower_the_similarity_of_pairs(lens):
    df = lens.ov(0, 0, k=4)
    one_source = df.assign(src_token_index=df["src_token_index"].iloc[0])
    one_pair = one_source.assign(dest_token_index=df["dest_token_index"].iloc[0])
    assert token_similarity(lens, one_pair)["similarity"].tolist() == [0.0]
    assert token_similarity(lens, df.head(0)).empty


def test_chosen_neurons_are_spread_and_different(lens, moe_lens, tiny):
    df = legible_neurons(lens, 6, k=4)
    chosen = df[["layer", "neuron"]].drop_duplicates()
    assert len(chosen) == 6
    assert chosen["layer"].value_counts().max() <= 3
    written = df[df["weight"] == "W_out"].groupby(["layer", "neuron"])["token_index"].agg(set).tolist()
    assert all(len(a & b) <= 0.2 * 4 for i, a in enumerate(written) for b in written[:i])
    all_neurons = lens.neurons(k=4)
    assert len(df.merge(all_neurons)) == len(df)
    uneven = EmbeddingLens(tiny("qwen2_moe"))  # experts of 16 neurons, a shared one of 24, a dense layer of 48
    summary = summarize_model(uneven)
    assert len(summary.neurons[["layer", "expert", "neuron"]].drop_duplicates()) == 6
    assert summary.word.groupby(["layer", "expert", "neuron", "weight"], observed=True).ngroups == 6
    experts = legible_neurons(moe_lens, 3, k=4)
    assert len(experts[["layer", "expert", "neuron"]].drop_duplicates()) == 3


def test_chosen_neurons_of_the_demo_model_have_very_similar_tokens(demo_lens):
    df = legible_neurons(demo_lens, 6)
    chosen = token_similarity(demo_lens, df[df["weight"] == "W_out"])["similarity"]
    all_similarities = token_similarity(demo_lens, demo_lens.neurons(weight="W_out", k=10))["similarity"]
    assert chosen.min() > all_similarities.quantile(0.95)  # the control: all neurons


def test_similarity_is_independent_of_chunk_size(lens):
    df = lens.neurons(weight="W_out", k=5)
    unchunked = token_similarity(lens, df)
    with chunk_bytes(1024):
        assert token_similarity(lens, df).equals(unchunked)


def test_first_occurrences_are_marked():
    tokens = np.array([[3, 3, 5, 3], [1, 2, 3, 4]])
    assert is_first_occurrence(tokens).tolist() == [[True, False, True, False], [True] * 4]
