"""Tables for a terminal: one line per neuron, head or direction, at most a hundred columns wide."""

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import chain
from typing import Any, Literal

import pandas as pd
from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .line_counts import (
    CONTEXT,
    component_name,
    context_numbers,
    count_lines,
    score_and_rank,
    search_lines,
    search_title,
    searched_token,
)
from .measurements import n_numeric_at_end, text_cells
from .table_groups import features_as_tokens, holds_pairs, kind, name_of, pair_ends, table_groups, title_of
from .tokens import ELLIPSIS, SPACE, cut_end, cut_start, for_terminal, format_score, isolate, visible, width

COLUMNS = 100
LONGEST_NAME = 30  # columns of a terminal for a direction's name
LEAST_ROOM = 10  # the smallest number of columns of a terminal for a list of tokens


class Tokens:
    """A cell with as many whole tokens as fit on its line, and … for the rest."""

    def __init__(self, tokens: Iterable[str], separator: str = " ", n_bold: int = 3) -> None:
        self.tokens, self.separator, self.n_bold = tokens, separator, n_bold

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(LEAST_ROOM, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        shown, is_complete = whole_tokens(self.tokens, options.max_width, self.separator)
        line = Text(self.separator.join(shown if is_complete else [*shown, ELLIPSIS]), no_wrap=True, overflow="crop")
        if console.color_system is not None:
            line.stylize("bold", 0, len(self.separator.join(shown[: self.n_bold])))
            line.highlight_regex(SPACE, "dim")
        yield line


class Line:
    """A cell with a text that is cut at its end, or at its start, if it does not fit on its line."""

    def __init__(self, text: str, style: str = "", cut: Literal["end", "start"] = "end") -> None:
        self.text, self.style, self.cut = text, style, cut

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(width(self.text), options.max_width), min(width(self.text), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        text = (cut_end if self.cut == "end" else cut_start)(self.text, options.max_width)
        yield Text(text, style=self.style, no_wrap=True, overflow="crop")


def whole_tokens(tokens: Iterable[str], room: int, separator: str = " ") -> tuple[list[str], bool]:
    """As many tokens as fit into `room` columns, with room for … if there are more, and whether all tokens fit.

    The first token is always shown, and is cut if necessary.
    """
    tokens = list(tokens)
    gap, used = width(separator), 0
    for i, token in enumerate(tokens):
        needed = width(token) + (gap if i else 0)
        if used + needed + (gap + 1 if i < len(tokens) - 1 else 0) > room:
            return (tokens[:i], False) if i else ([cut_end(token, room)], True)
        used += needed
    return tokens, True


def _columns(*right: bool) -> Table:
    """An empty table without lines, with a column for each argument: aligned to the right for True."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for is_right in right:
        table.add_column(no_wrap=True, justify="right" if is_right else "left")
    return table


def _titled(titles: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = _columns(*(title in right for title in titles))
    for column, title in zip(table.columns, titles, strict=True):
        column.header = Text(title, overflow="ellipsis", no_wrap=True)
    table.columns[-1].no_wrap = False  # rich narrows this column first
    return table


def _group_lines(df: pd.DataFrame, n: int | None, table_kind: str) -> Table:
    """One line for each group: its name, its weight, its best score and its tokens or pairs."""
    groups = list(table_groups(df, n))
    has_names, has_weights = any(group.name for group in groups), any(group.weight for group in groups)
    entries = df.attrs.get("embspace_entries", table_kind) if table_kind == "tokens" else table_kind
    titles = [title_of(df)] * has_names + ["weight"] * has_weights + ["best", f"{entries}, best first"]
    table = _titled(titles, right=["best"])
    for group in groups:
        name = [Line(cut_end(isolate(group.name), LONGEST_NAME))] * has_names
        weight = [Line(group.weight, "dim")] * has_weights
        best = Line(format_score(float(group.rows["score"].iloc[0])), "dim")
        table.add_row(*name, *weight, best, Tokens(token_texts(group.rows)))
    return table


def token_texts(rows: pd.DataFrame) -> Iterator[str]:
    """The tokens, or pairs, of a group as a terminal shows them."""
    if not holds_pairs(rows):
        return map(for_terminal, rows["token_string"])
    left, right = pair_ends(rows)
    pairs = zip(rows[f"{left}_token_string"], rows[f"{right}_token_string"], strict=True)
    return (f"{for_terminal(a)}→{for_terminal(b)}" for a, b in pairs)


def _search_lines(df: pd.DataFrame, n: int | None) -> Table:
    """One line for each weight: the components that score the token highest, each with its score."""
    token = searched_token(df)
    lines = search_lines(df, n)
    has_names = any(line.name for line in lines)
    shown = "their token" if token is None else for_terminal(token[0])
    table = _titled([*["search"] * has_names, "weight", search_title(df, shown)])
    for line in lines:
        components = [f"{isolate(component_name(row))} {score_and_rank(row)}" for row in line.components]
        name = [Line(for_terminal(line.name))] * has_names
        table.add_row(*name, Line(line.weight), Tokens(components, "  "))
    return table


def _component_lines(df: pd.DataFrame) -> Table:
    table = _titled(["layer", "weight", "shape", "dtype", "norm", "folded in, notes"], right=["norm"])
    for row in df.to_dict("records"):
        shape = f"{row['rows']} × {row['columns']}" if row["rows"] else ""
        heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
        cells = [name_of(row) or "–", str(row["weight"]), heads + shape, str(row.get("dtype", ""))]
        notes = ", ".join(text for text in (row.get("folded"), row.get("note")) if text)
        table.add_row(*map(Line, cells), Line(format_score(row["norm"])), Line(notes, "dim"))
    return table


def _context_lines(df: pd.DataFrame) -> Table:
    """A concordance: targets in one column, with the text before and after them cut to what fits."""
    table = _titled(["context", "code", "", "target", ""], right=["code", ""])
    table.expand = True
    table.columns[2].ratio = table.columns[4].ratio = 1
    table.columns[3].max_width = COLUMNS // 4
    table.columns[4].justify = "left"
    for row in df.to_dict("records"):
        before, after = (isolate(visible(row[name].strip())) for name in ("before", "after"))
        keys = Line(f"L{row['layer']}F{row['factor']}"), Line(format_score(row["code"]), "dim")
        target = Line(for_terminal(row["token_string"]), "bold")
        table.add_row(*keys, Line(before, cut="start"), target, Line(after))
    return table


def _saliency_lines(df: pd.DataFrame) -> Table:
    """One line for each context: its tokens, the most salient first, with their offset and their saliency."""
    table = _titled(
        ["context", "rank", "tokens (offset from the target) and saliency, most salient first"], right=["rank"]
    )
    for _, rows in df.groupby(CONTEXT, sort=False):
        factor, layer, rank = (rows[name].iloc[0] for name in CONTEXT)
        strongest = rows.sort_values("saliency", ascending=False, kind="stable").to_dict("records")
        texts = [
            f"{for_terminal(row['token_string'])}({row['offset']}) {format_score(row['saliency'])}" for row in strongest
        ]
        table.add_row(Line(f"L{layer}F{factor}"), Line(str(rank)), Tokens(texts, "  "))
    return table


def _measurement_lines(df: pd.DataFrame, columns: int) -> Group | Table:
    """One line for each row; columns that do not fit are listed below the table."""
    cells = [list(map(str, df.columns)), *text_cells(df)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    n_shown = max(1, sum(sum(widths[: i + 1]) + 2 * i <= columns for i in range(len(widths))))
    first_number = len(widths) - n_numeric_at_end(df)
    table = _columns(*(i >= first_number for i in range(n_shown)))
    for column, title in zip(table.columns, cells[0]):
        column.header = Text(title)
    for row in cells[1:]:
        table.add_row(*(Line(isolate(cell)) for cell in row[:n_shown]))
    if n_shown == len(widths):
        return table
    return Group(table, Text(f"{ELLIPSIS} and columns {', '.join(cells[0][n_shown:])}", style="dim"))


def lay_out(df: Any, *, n: int | None = None, columns: int = COLUMNS, hint: str = "") -> Group | Text:
    """A table of the lens for a rich console, which adds colours where the terminal has them.

    Args:
        df: A table of any of the lens's methods.
        n: How many neurons, heads or directions to show; all by default.
        columns: The width of the terminal.
        hint: The last line, such as a command to try next.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    df = features_as_tokens(df)
    table_kind = kind(df)
    if len(df) == 0:
        return Group(Text("The table is empty: nothing was selected."), *_hint_lines(hint))
    n_shown, total = count_lines(df, table_kind, n)
    if table_kind in ("tokens", "pairs"):
        lines = _group_lines(df, n, table_kind)
    elif table_kind == "saliency":
        lines = _saliency_lines(df[context_numbers(df) < n_shown])
    elif table_kind == "search":
        lines = _search_lines(df, n)
    elif table_kind in ("components", "contexts"):
        lines = {"components": _component_lines, "contexts": _context_lines}[table_kind](df.head(n_shown))
    else:
        lines = _measurement_lines(df.head(n_shown), columns)
    more = [Text(f"{ELLIPSIS} {total - n_shown:,} more of {total:,}", style="dim")] if n_shown < total else []
    return Group(lines, *more, *_hint_lines(hint))


def _hint_lines(hint: str) -> Iterator[Text]:
    return iter((Text(), Text(hint)) if hint else ())


def render(df: Any, *, n: int | None = None, columns: int = COLUMNS, hint: str = "", colour: bool = False) -> str:
    """A table of the lens as text for a terminal.

    Args:
        df: A table of any of the lens's methods.
        n: How many neurons, heads or directions to show; all by default.
        columns: How wide the text may be.
        hint: The last line, such as a command to try next.
        colour: Whether to add escape codes for colours.

    Returns:
        A line of titles and one line per neuron, head or direction and weight, with scores to three figures. No line but the
        hint is wider than `columns`, if that is 40 or more.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    output = StringIO()
    console = Console(
        file=output,
        width=columns,
        color_system="standard" if colour else None,
        force_terminal=colour,
        force_jupyter=False,  # rich would display the text in the notebook, and return nothing
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(lay_out(df, n=n, columns=columns), soft_wrap=False)
    lines = [line.rstrip() for line in output.getvalue().rstrip("\n").split("\n")]
    return "\n".join(chain(lines, ["", hint] if hint else []))
