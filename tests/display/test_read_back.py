"""Tables of a search and of components read back from it: pairs are pairs, in the order of the arrow."""

from embspace_lens.display.terminal import render


def test_heads_read_back_from_a_search_are_shown_as_pairs(lens):
    found = lens.search(5, weight=["W_OV", "W_QK"], k=1)
    pairs = lens.read(found, k=2)
    assert "∅" not in render(pairs) and render(pairs).count("→") == 4
    assert pairs.embspace.show()._repr_html_().count('class="esl-arrow"') == 4
    assert pairs.embspace.label()["label"].str.count("→").tolist() == [2, 2]


def test_a_table_of_neurons_and_heads_shows_tokens_and_pairs(lens):
    table = lens.read(lens.search(5, weight=["W_out", "W_OV"], k=1), k=2)
    assert "∅" not in render(table) and table.embspace.label()["label"].str.count("→").tolist() == [0, 2]


def test_a_search_and_a_reading_draw_the_same_arrow(lens):
    found = lens.search(5, weight="W_QK", k=1)
    row = found.iloc[0]
    pair = f"{row['dest_token_string']}→{row['src_token_string']}"
    assert pair in render(found) and pair in render(lens.qk(row["layer"], row["head"], k=97 * 97))


def test_the_heading_of_a_search_states_its_end_and_its_ranks(lens):
    assert "components that score w5 lowest (and its rank" in render(lens.search(5, weight="W_out", k=3, largest=False))
    assert "highest (and" in render(lens.search(5, weight="W_out", k=3))
    assert "rank" not in render(lens.search([5, 6], k=3)) and "rank" not in render(lens.search(5, weight="W_OV", k=3))
