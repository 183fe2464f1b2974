"""The report's summary of one model as text for the terminal."""

from textwrap import wrap

import pandas as pd

from ..display import terminal
from ..display.table_groups import table_groups
from ..display.tokens import display, format_score, ordinal
from .model_summary import ModelSummary, model_lines

MAX_HEADS = 12  # heads of a layer that fit on a line


def overview(summary: ModelSummary) -> str:
    """A model's summary as text of at most 100 columns."""
    lens = summary.lens
    facts = [line for text in [*model_lines(lens), repr(lens)] for line in wrap(text, terminal.COLUMNS)]
    lines = [lens.name, *facts, ""]
    ov = qk = summary.heads
    if len(summary.heads):
        ov, qk = (summary.heads[summary.heads["weight"] == weight] for weight in ("W_OV", "W_QK"))
    word = display(summary.word_text)
    sections = {
        "Neurons with similar tokens: what they write (W_out) and read (W_in)": summary.neurons,
        "Heads: attending to a promotes b, a→b (W_OV)": ov,
        "Heads: a query on a attends to a key on b, a→b (W_QK)": qk,
    }
    for title, df in sections.items():
        if len(df):
            lines += [title, *terminal.render(df).splitlines()[1:], ""]
    if len(summary.word):
        title = f"Neurons that write {word} (W_out), and that read it (W_in): its score and rank"
        lines += [title, *_word_lines(summary), ""]
    if len(summary.ov):
        lines += ["The score of each head's best pair (W_OV)", *head_map_lines(summary.ov)]
    return "\n".join(lines).rstrip()


def _word_lines(summary: ModelSummary) -> list[str]:
    """One line for each neuron that writes or reads the word: the word's score and rank, then the neuron's best tokens."""
    scores = [(format_score(score), ordinal(rank + 1)) for score, rank in summary.word_scores]
    widths = [max(map(len, column)) for column in zip(*scores, strict=True)]
    lines = terminal.render(summary.word, columns=terminal.COLUMNS - sum(widths) - 4).splitlines()[1:]
    return [
        f"{score:>{widths[0]}}  {rank:>{widths[1]}}  {line}" for (score, rank), line in zip(scores, lines, strict=True)
    ]


def head_map_lines(df: pd.DataFrame) -> list[str]:
    """The score of every head's best pair, as rows of layers and columns of heads."""
    best = {
        (int(group.rows["layer"].iloc[0]), int(group.rows["head"].iloc[0])): format_score(
            float(group.rows["score"].iloc[0])
        )
        for group in table_groups(df)
    }
    layers, heads = sorted({layer for layer, _ in best}), sorted({head for _, head in best})
    shown = heads[:MAX_HEADS]
    more = f"  … {len(heads) - len(shown)} more" if len(heads) > len(shown) else ""
    titles = " " * 4 + "".join(f"{f'H{head}':>7}" for head in shown) + more
    return [titles] + [
        f"{f'L{layer}':<4}" + "".join(f"{best.get((layer, head), ''):>7}" for head in shown) for layer in layers
    ]
