"""Sheets for raters are blind and seeded, and agreement equals its formula."""

import numpy as np
import pandas as pd
import pytest
from tables import check_tidy

from embspace_lens import EmbspaceError
from embspace_lens.factors import rater_agreement, rating_sheet
from embspace_lens.tables.frames import tidy

CONTEXTS = ["factor", "layer", "rank", "token_string", "before", "after"]


@pytest.fixture
def contexts():
    """Contexts that name their factor, layer and rank."""
    grid = [(f, layer, r) for f in (713, 829) for layer in (0, 1) for r in range(4)]
    rows = [dict(zip(CONTEXTS, (*key, f" t{key[0]}", "=a\n", f" {key[1]}.{key[2]}"))) for key in grid]
    return tidy(CONTEXTS, rows, kind="contexts")


def test_sheet_has_every_item_and_the_key_identifies_it(contexts, tmp_path):
    key = rating_sheet(contexts, tmp_path / "a.csv", n_contexts=3, n_controls=2)
    check_tidy(key, ["item"], ["factor", "layer", "sample", "item"])
    sheet = pd.read_csv(tmp_path / "a.csv")
    assert sheet.columns.tolist() == ["item", "context", "rating"] and sheet["rating"].isna().all()
    assert len(sheet) == 3 * 6 and sheet["item"].tolist() == sorted(sheet["item"])
    assert sorted(map(tuple, key[["factor", "layer"]].values.tolist())) == [(-1, -1)] * 2 + [
        (713, 0),
        (713, 1),
        (829, 0),
        (829, 1),
    ]
    for row in key[key["sample"] == "own"].to_dict("records"):
        texts = sheet.loc[sheet["item"] == row["item"], "context"]
        assert sorted(texts) == [f" =a « t{row['factor']}» {row['layer']}.{rank}" for rank in range(3)]
    assert not sheet["context"].str.match(r"[=+\-@]").any(), "no cell is a formula"


def test_order_depends_on_the_seed_alone(contexts, tmp_path):
    keys = [rating_sheet(contexts, tmp_path / f"{i}.csv", seed=seed) for i, seed in enumerate((0, 0, 1))]
    texts = [(tmp_path / f"{i}.csv").read_bytes() for i in range(3)]
    assert texts[0] == texts[1] != texts[2] and keys[0].equals(keys[1]) and not keys[0].equals(keys[2])
    assert keys[0]["factor"].tolist() != sorted(keys[0]["factor"]), "items are not in the order of the table"


def write(path, ratings):
    """A filled sheet; an item's rating stands in its second row."""
    rows = [(item, "x", cell) for item, rating in enumerate(ratings) for cell in ("", rating)]
    pd.DataFrame(rows, columns=["item", "context", "rating"]).to_csv(path, index=False)
    return path


def test_agreement_equals_its_formula(tmp_path):
    pytest.importorskip("sklearn")
    a = ["word", "Word ", "pattern", "none", "none", "", "word"]
    b = ["word", "pattern", "pattern", "none", "word", "none", "word"]
    c = ["word"] * 7
    sheets = {name: write(tmp_path / f"{name}.csv", r) for name, r in (("b", b), ("a", a), ("c", c))}
    df = rater_agreement(sheets)
    check_tidy(df, ["rater_a", "rater_b"], ["rater_a", "rater_b", "share", "control", "kappa", "n"])
    assert df[["rater_a", "rater_b"]].values.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    expected = (3 * 3 + 1 * 2 + 2 * 1) / 36  # counts of word, pattern, none of a and b
    observed = 4 / 6
    row = df.iloc[0]
    assert row["n"] == 6 and row["share"] == pytest.approx(observed) and row["control"] == pytest.approx(expected)
    assert row["kappa"] == pytest.approx((observed - expected) / (1 - expected)) and df["kappa"].iloc[1] == 0
    same = rater_agreement({"c": sheets["c"], "d": sheets["c"]}).iloc[0]
    assert same["share"] == 1 and np.isnan(same["kappa"]), "one rating alone has no kappa"


def test_unknown_ratings_and_other_files_are_refused(contexts, tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(EmbspaceError, match="rating='wrod' is not one of .* Did you mean 'word'"):
        rater_agreement({"a": write(tmp_path / "a.csv", ["wrod"])})
    (tmp_path / "b.csv").write_text("item,label\n0,word\n", "utf-8")
    with pytest.raises(EmbspaceError, match="rating"):
        rater_agreement({"b": tmp_path / "b.csv"})
    with pytest.raises(EmbspaceError, match="contexts has no column 'rank'"):
        rating_sheet(contexts.drop(columns="rank"), tmp_path / "c.csv")
    with pytest.raises(EmbspaceError, match="empty"):
        rating_sheet(contexts.iloc[:0], tmp_path / "c.csv")
