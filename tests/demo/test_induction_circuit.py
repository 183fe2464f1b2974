"""The model with a planted induction circuit: its behaviour, and the heads that its docstring lists."""

import pytest
import torch

from embspace_lens import EmbeddingLens, EmbspaceError, demo, head_statistics, position_heads

TEXT = "qwertyuiopasdfgh"


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_the_model_continues_a_repetition_at_its_offset(offset):
    model = demo.induction_model(offset)
    with torch.no_grad():
        predicted = model.tokenizer.decode(model(TEXT * 2)[0].argmax(dim=-1))
    # The output at the first repeated letter, index 17 after the start, is the letter `offset` places after it.
    assert predicted[17:][: 16 - offset] == TEXT[offset:]


def test_without_a_repetition_the_next_letter_is_not_predicted():
    model = demo.induction_model()
    with torch.no_grad():
        predicted = model.tokenizer.decode(model(TEXT)[0].argmax(dim=-1))
    assert sum(a == b for a, b in zip(predicted[1:], TEXT[1:])) <= 2


def test_weights_show_the_planted_heads():
    lens = EmbeddingLens(demo.induction_model())
    heads = head_statistics(lens).set_index(["layer", "head"])
    assert set(heads.index[heads["ov_copying"] > 0.9]) == {(1, 0), (1, 2)}
    assert set(heads.index[heads["qk_matching"] > 0.9]) == {(1, 1)}
    positions = position_heads(lens).set_index(["layer", "head"])
    assert set(positions.index[positions["previous_token"] > 0.9]) == {(0, 1)}


def test_texts_are_split_into_letters_after_the_start():
    model = demo.induction_model()
    assert model.to_str_tokens("abca") == ["|", "a", "b", "c", "a"]
    assert model.to_tokens("aé")[0].tolist() == [0, 1, 0], "unknown characters are the start token"
    assert EmbeddingLens(model).vocabulary.array[1] == "a"


def test_the_model_is_the_same_each_time_and_leaves_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = demo.induction_model(), demo.induction_model()
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("offset", [0, 41, True])
def test_offsets_beyond_the_context_raise(offset):
    with pytest.raises(EmbspaceError, match=f"offset={offset!r} is not an integer from 1 to 40"):
        demo.induction_model(offset)
