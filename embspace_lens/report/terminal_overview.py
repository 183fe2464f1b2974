"""What a model's weights say, in a screenful of text; the report shows the same."""

from textwrap import wrap

import pandas as pd

from ..display import terminal
from ..display.table_groups import units
from ..display.tokens import display, figures
from .model_summary import Findings, model_lines

MAX_HEADS = 12  # heads of a layer that a line has room for


def overview(found: Findings) -> str:
    """The findings as text of at most 100 columns."""
    lens = found.lens
    parts = [
        lens.name,
        *(line for text in [*model_lines(lens), repr(lens)] for line in wrap(text, terminal.COLUMNS)),
        "",
    ]
    moved = attended = found.heads
    if len(found.heads):
        moved, attended = (found.heads[found.heads["weight"] == weight] for weight in ("W_OV", "W_QK"))
    text = display(found.text)
    for title, df in (
        (
            "Neurons: what they write (W_out) and read (W_in), chosen by rule: those whose tokens are alike",
            found.neurons,
        ),
        ("Heads: attending to a promotes b (W_OV)", moved),
        ("Heads: a query on a finds a key on b (W_QK)", attended),
        (f"Who writes {text} (W_out), and who reads it (W_in)", found.word),
    ):
        if len(df):
            parts += [title, *terminal.render(df).splitlines()[1:], ""]
    if len(found.ov):
        parts += ["The score of each head's best pair, W_OV", *heads_map(found.ov)]
    return "\n".join(parts).rstrip()


def heads_map(df: pd.DataFrame) -> list[str]:
    """The best pair's score of every head, as rows of layers and columns of heads."""
    best = {
        (int(unit.rows["layer"].iloc[0]), int(unit.rows["head"].iloc[0])): figures(float(unit.rows["score"].iloc[0]))
        for unit in units(df)
    }
    layers, heads = (sorted({key[place] for key in best}) for place in (0, 1))
    shown = heads[:MAX_HEADS]
    more = f"  … {len(heads) - len(shown)} more" if len(heads) > len(shown) else ""
    lines = [" " * 4 + "".join(f"{f'H{head}':>7}" for head in shown) + more]
    return lines + [
        f"{f'L{layer}':<4}" + "".join(f"{best.get((layer, head), ''):>7}" for head in shown) for layer in layers
    ]
