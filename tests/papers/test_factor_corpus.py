"""The corpus of the experiments on factors: chunks of equal length, stored activity, tagged sentences."""

import json
from pathlib import Path

import pandas as pd
import pytest

from embspace_lens import EmbspaceError
from embspace_lens.papers import Setting
from embspace_lens.papers.factor_corpus import CHUNK, brown, corpus, corpus_activity, shown_contexts

SCALE = 20 / 298_489


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A setting with ten long test reviews and one of the training reviews."""
    folder = tmp_path_factory.mktemp("papers")
    text = " ".join(f"The film number {i} was very good, and I liked the story." for i in range(40))
    rows = [{"split": "test", "text": f"{i} {text}"} for i in range(10)] + [{"split": "train", "text": "unused"}]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return Setting("reviews-small-0", folder, SCALE, folder=folder / "runs")


def test_chunks_are_pieces_of_test_reviews_with_equal_numbers_of_tokens(setting):
    its = corpus(setting)
    texts = pd.read_json(setting.data / "reviews.jsonl", lines=True)["text"]
    assert len(its.chunks) == 20 and its.layers == (0, 1, 2, 3)
    for chunk in its.chunks:
        assert texts.str.contains(chunk, regex=False).any() and "unused" not in chunk
        assert abs(len(its.model.tokenizer(chunk, add_special_tokens=False)["input_ids"]) - CHUNK) <= 2
    assert any("reviews.jsonl" in note and "20 chunks" in note for note in its.notes)


def test_stored_activity_equals_the_computed_one(setting):
    computed = corpus_activity(setting)
    (folder,) = setting.folder.glob("activity-*")
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    corpus_activity.cache_clear()
    stored = corpus_activity(setting)
    for name in ("importance", "measures", "contexts"):
        pd.testing.assert_frame_equal(getattr(stored, name), getattr(computed, name))
    assert written == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}, "nothing is computed again"
    assert shown_contexts(setting)["rank"].max() < 200


def test_without_reviews_texts_are_sampled_and_a_note_states_it(tmp_path):
    its = corpus(Setting("reviews-small-0", None, SCALE, folder=tmp_path))
    assert its.chunks and any("sampled from the model" in note for note in its.notes)


def test_tagged_sentences_are_in_order_and_a_missing_corpus_is_refused(tmp_path):
    rows = [("b", 0, 1, "left", "vbd"), ("b", 0, 0, "They", "pp"), ("a", 3, 0, "Left", "jj")]
    table = pd.DataFrame(rows, columns=["file", "sentence", "position", "word", "tag"])
    setting = Setting("reviews-small-0", tmp_path)
    with pytest.raises(EmbspaceError, match=r"has no file for 'brown'. The experiment needs the tagged Brown"):
        brown(setting)
    with pytest.raises(EmbspaceError, match="There is no data folder. The experiment needs"):
        brown(Setting("reviews-small-0"))
    table.to_parquet(Path(tmp_path) / "brown_tagged.parquet")
    sentences, files = brown(setting)
    assert sentences == [[("Left", "jj")], [("They", "pp"), ("left", "vbd")]] and files == ["a", "b"]
