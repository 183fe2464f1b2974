"""The report of one model."""

import copy

import numpy as np
import pytest
import zoo
from handmade import UNSAFE_TOKENS, assert_harmless

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.display.table_groups import table_groups
from embspace_lens.display.tokens import format_score, ordinal
from embspace_lens.features import demo_features, virtual_weights
from embspace_lens.report import write_report
from embspace_lens.report.feature_weights import N_PAIRS, N_TOKENS, feature_weights
from embspace_lens.report.model_summary import find_word, summarize_model
from embspace_lens.report.terminal_overview import overview


def test_report_is_one_file_without_external_resources(lens, tmp_path):
    path = write_report(lens, tmp_path / "report.html", word="w7")
    page = path.read_text(encoding="utf-8")
    parsed = assert_harmless(page)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert page.count("<h2") == 4 and page.startswith("<!doctype html>")
    assert len(page) < 200_000
    assert parsed.tags.count("code") == 4
    cells = [name for name, _ in parsed.attributes if name == "tabindex"]
    assert len(cells) == 2 * lens.weights.n_layers * lens.weights.n_heads  # every head can be reached with the keyboard


class UnsafeTokenizer:
    """A tokenizer with tokens that can break a page or a terminal."""

    def __init__(self, n):
        self.pieces = [*UNSAFE_TOKENS, *(f"w{i}" for i in range(len(UNSAFE_TOKENS), n))]

    def __len__(self):
        return len(self.pieces)

    def batch_decode(self, ids, **options):
        return [self.pieces[i] for (i,) in ids]

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]


def test_names_of_models_and_tokens_are_escaped(lens, tmp_path):
    weights = copy.copy(lens.weights)
    weights.name = "<script>evil</script>"
    named = EmbeddingLens(weights, tokenizer=UnsafeTokenizer(len(lens.vocabulary)))
    page = write_report(named, tmp_path / "r.html", word=UNSAFE_TOKENS[0], model="x; rm -rf ~ <script>").read_text(
        "utf-8"
    )
    parsed = assert_harmless(page)
    assert "<script>evil</script>" in parsed.text
    assert "--model 'x; rm -rf ~ <script>'" in "".join(parsed.text)


def test_report_of_models_without_mlp_or_attention(tmp_path):

    page = write_report(EmbeddingLens(zoo.NATIVE["native_attn_only"]()), tmp_path / "r.html").read_text("utf-8")
    assert "Heads" in page and "Neurons that write" not in page


def test_word_is_found_with_and_without_its_space(lens, demo_lens):
    assert demo_lens.vocabulary.strings[find_word(demo_lens, "film")] == " film"
    assert find_word(demo_lens, " film") == find_word(demo_lens, "film")
    assert demo_lens.vocabulary.strings[find_word(demo_lens, None)].startswith(" ")
    assert find_word(lens, None) == 0
    with pytest.raises(EmbspaceError, match="tokens in this vocabulary"):
        find_word(demo_lens, "antidisestablishment")
    with pytest.raises(EmbspaceError, match="not among the"):
        find_word(demo_lens, "!")


def test_report_of_the_demo_model(demo_lens, tmp_path):
    summary = summarize_model(demo_lens, word="film")
    assert summary.word_text == " film" and summary.neurons["weight"].iloc[0] == "W_out"
    page = write_report(demo_lens, tmp_path / "r.html", word="film").read_text("utf-8")
    assert "Large Movie Review Dataset" in page and "film" in page


def test_neurons_of_the_word_have_its_own_score_and_rank(demo_lens, tmp_path):
    summary = summarize_model(demo_lens, word="film")
    groups = list(table_groups(summary.word))
    best = demo_lens.search(summary.token, weight=["W_in", "W_out"], k=3)
    scores = best.sort_values(["weight", "rank"], ascending=[False, True])["score"]
    np.testing.assert_allclose([word_score.score for word_score in summary.word_scores], scores, rtol=1e-4)
    page = write_report(demo_lens, tmp_path / "r.html", word="film").read_text("utf-8")
    text = overview(summary)
    for group, (score, rank) in zip(groups, summary.word_scores, strict=True):
        row = group.rows.iloc[0]
        all_tokens = demo_lens.neurons(
            int(row["layer"]), int(row["neuron"]), weight=row["weight"], k=demo_lens.space.n_tokens
        )
        assert all_tokens.loc[all_tokens["token_index"] == summary.token, "rank"].item() == rank
        assert f'<span class="own">{format_score(score)}, {ordinal(rank + 1)}</span>' in page
        assert f"{ordinal(rank + 1)}  {group.name}" in text
    assert page.count("esl-marked") == 1 + sum(summary.token in set(group.rows["token_index"]) for group in groups)


def test_ordinals():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 21, 1203)] == ["1st", "2nd", "3rd", "4th", "11th", "21st", "1,203rd"]


def test_report_shows_virtual_weights_of_the_demo_transcoders(demo_lens, tmp_path):
    weights = feature_weights(demo_lens, "reviews-small-0")
    source, target = demo_features("transcoder-1"), demo_features("transcoder-3")
    pairs = virtual_weights(source, target, lens=demo_lens, k=300)
    scores = {
        (f"transcoder-1 {row['src_feature_index']}", f"transcoder-3 {row['dest_feature_index']}"): row["score"]
        for row in pairs.to_dict("records")
    }
    assert len(weights) == N_PAIRS == len({w.source for w in weights}) == len({w.target for w in weights})
    for weight in weights:
        assert format_score(scores[weight.source, weight.target]) == weight.score
        assert weight.reads["is_legible"].all() and len(weight.writes) == N_TOKENS
    page = write_report(demo_lens, tmp_path / "r.html", model="reviews-small-0").read_text("utf-8")
    assert weights[0].source in page and "embspace-lens features explore --demo" in page
    assert feature_weights(demo_lens, "reviews-small-1") == []
