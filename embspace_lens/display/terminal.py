"""Tables made to be read in a terminal: one line a neuron or head, a hundred columns at most."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pandas as pd

from .measurements import cells, n_numeric
from .table_groups import Unit, count, ends, kind, name_of, units
from .tokens import ELLIPSIS, figures, for_terminal, has_rtl, pad, width

COLUMNS = 100


def line(cells: Iterable[str], room: int, separator: str = " ") -> str:
    """As many cells as fit into `room` columns, and … where some do not; always the first, cut if need be."""
    cells = list(cells)
    shown: list[str] = []
    used = 0
    for place, cell in enumerate(cells):
        needed = width(cell) + (width(separator) if shown else 0)
        tail = 0 if place == len(cells) - 1 else width(separator) + 1
        if used + needed + tail > room:
            break
        shown.append(cell)
        used += needed
    if not shown and cells:
        return cut(cells[0], room)
    return separator.join(shown if len(shown) == len(cells) else [*shown, ELLIPSIS])


def cut(text: str, room: int) -> str:
    """A text cut to a terminal's columns, … at its end."""
    if width(text) <= room:
        return text
    kept = ""
    for character in text:
        if width(kept + character) > room - 1:
            break
        kept += character
    return kept + ELLIPSIS + ("\u2069" if has_rtl(kept) else "")


def token_cells(rows: pd.DataFrame) -> Iterator[str]:
    """A unit's tokens, or pairs, as a terminal shows them."""
    if "token_string" in rows.columns:
        return map(for_terminal, rows["token_string"])
    left, right = ends(rows)
    pairs = zip(rows[f"{left}_token_string"], rows[f"{right}_token_string"], strict=True)
    return (f"{for_terminal(a)}→{for_terminal(b)}" for a, b in pairs)


def _rows(
    table: Sequence[tuple[list[str], Iterable[str]]],
    columns: int,
    titles: list[str],
    last: str,
    n_right: int,
    gap: str = " ",
) -> list[str]:
    """Lines under a line of titles: fixed cells in columns (the last `n_right` to the right), then what fits."""
    widths = [max(map(width, cells)) for cells in zip(titles, *(fixed for fixed, _ in table), strict=True)]
    room = max(10, columns - sum(widths) - 2 * len(widths))

    def fixed_part(cells: list[str]) -> str:
        parts = []
        for place, (cell, columns_) in enumerate(zip(cells, widths, strict=True)):
            right = place >= len(cells) - n_right
            parts.append(" " * (columns_ - width(cell)) + cell if right else pad(cell, columns_))
        return "  ".join(parts)

    heading = f"{fixed_part(titles)}  {last}".rstrip()
    return [heading, *(f"{fixed_part(fixed)}  {line(cells, room, gap)}".rstrip() for fixed, cells in table)]


def _unit_rows(shown: Iterable[Unit], columns: int, pairs: bool) -> list[str]:
    shown = list(shown)
    weights = any(unit.weight for unit in shown)
    names = any(unit.name for unit in shown)
    table = []
    for unit in shown:
        best = figures(float(unit.rows["score"].iloc[0]))
        fixed = ([unit.name] if names else []) + ([unit.weight] if weights else []) + [best]
        table.append(([cut(cell, 30) for cell in fixed], token_cells(unit.rows)))
    titles = (["unit"] if names else []) + (["weight"] if weights else []) + ["best"]
    return _rows(table, columns, titles, "pairs, best first" if pairs else "tokens, best first", 1)


def _search_rows(df: pd.DataFrame, columns: int) -> list[str]:
    """One line for each weight: the units that read or write the token, each with its score."""
    table = []
    for weight, rows in df.groupby("weight", sort=False, observed=True):
        cells = [f"{name_of(row)} {figures(row['score'])}" for row in rows.sort_values("rank").to_dict("records")]
        table.append(([str(weight)], cells))
    token = for_terminal(df["token_string"].iloc[0]) if len(df) else ""
    return _rows(table, columns, ["weight"], f"who scores {token} highest" if token else "nobody", 0, "  ")


def _component_rows(df: pd.DataFrame, columns: int) -> list[str]:
    table = []
    for row in df.to_dict("records"):
        shape = f"{row['rows']} × {row['columns']}" if row["rows"] else ""
        heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
        where = name_of(row) or "outer"
        notes = [text for text in (row.get("folded"), row.get("note")) if text]
        fixed = [where, str(row["weight"]), heads + shape, str(row.get("dtype", "")), figures(row["norm"])]
        table.append((fixed, [", ".join(notes)] if notes else []))
    return _rows(table, columns, ["where", "weight", "shape", "dtype", "norm"], "folded, notes", 1)


def _context_rows(df: pd.DataFrame, columns: int) -> list[str]:
    """A concordance: the targets under one another, what comes before and after cut to what fits."""
    rows = df.to_dict("records")
    fixed = [(f"L{row['layer']}F{row['factor']}", figures(row["code"])) for row in rows]
    targets = [for_terminal(row["token_string"]) for row in rows]
    wide = [max(map(width, cells)) for cells in zip(*fixed, strict=True)]
    middle = min(max(map(width, targets)), columns // 4)
    room = max(5, (columns - sum(wide) - middle - 8) // 2)
    lines = [f"{pad('where', wide[0])}  {'code':>{wide[1]}}  {'':{room}}  target"]
    for (where, code), target, row in zip(fixed, targets, rows, strict=True):
        around = (row["before"].strip(), row["after"].strip())
        left, after = (for_terminal(text).replace("␣", " ") if text else "" for text in around)
        while width(left) > room:  # its end stands next to the target
            left = ELLIPSIS + left[2:]
        left = " " * (room - width(left)) + left
        number = " " * (wide[1] - width(code)) + code
        lines.append(
            f"{pad(where, wide[0])}  {number}  {left}  {pad(cut(target, middle), middle)}  {cut(after, room)}".rstrip()
        )
    return lines


def _saliency_rows(df: pd.DataFrame, columns: int) -> list[str]:
    """One line a context: the tokens that decide its code, each with how far off it stands and its saliency."""
    table = []
    for _, rows in df.groupby(["factor", "layer", "rank"], sort=False):
        factor, layer, rank = (rows[name].iloc[0] for name in ("factor", "layer", "rank"))
        strongest = rows.sort_values("saliency", ascending=False, kind="stable").to_dict("records")
        shown = [f"{for_terminal(r['token_string'])}({r['offset']}) {figures(r['saliency'])}" for r in strongest]
        table.append(([f"L{layer}F{factor}", str(rank)], shown))
    return _rows(table, columns, ["where", "rank"], "tokens (places from the target), most salient first", 1, "  ")


def render(df: Any, *, n: int | None = None, columns: int = COLUMNS, hint: str = "") -> str:
    """A table of the lens as text to be read in a terminal.

    Args:
        df: A table of any of the lens's methods.
        n: How many neurons, heads or directions to show; all by default.
        columns: How wide it may be.
        hint: What to do next: its last line.

    Returns:
        One line per neuron, head or direction and weight under a line of titles; scores to three figures. No line is
        wider than `columns`, unless that is below 40.

    Raises:
        EmbspaceError: If it is none of these tables.
    """
    found = kind(df)
    if found == "saliency":
        total = len(df[["factor", "layer", "rank"]].drop_duplicates())
    else:
        total = count(df) if found in ("tokens", "pairs") else len(df)
    if total == 0:
        lines = ["An empty table: nothing was selected."]
    elif found == "search":
        lines = _search_rows(df, columns)
    elif found == "components":
        lines = _component_rows(df.head(total if n is None else n), columns)
    elif found == "contexts":
        lines = _context_rows(df.head(total if n is None else n), columns)
    elif found == "saliency":
        chosen = df.groupby(["factor", "layer", "rank"], sort=False).ngroup()
        lines = _saliency_rows(df[chosen < (total if n is None else n)], columns)
    elif found == "measurements":
        rows = [(row, []) for row in cells(df, n)]
        lines = _rows(rows, columns, list(df.columns), "", n_numeric(df))
    else:
        lines = _unit_rows(islice(units(df, n), n), columns, found == "pairs")
    if n is not None and n < total and found != "search":
        lines.append(f"{ELLIPSIS} {total - n:,} more of {total:,}")
    return "\n".join([*lines, *(["", hint] if hint else [])])
