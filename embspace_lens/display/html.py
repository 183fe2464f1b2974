"""Tables and their parts as escaped, self-contained HTML."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from .. import errors
from . import theme
from .measurements import text_cells
from .table_groups import TOKEN_KINDS, VERBS, TableGroup, count_groups, kind, name_of, noun_of, pair_ends, table_groups
from .tokens import chip, format_score, pair_chip


@cache
def environment() -> Any:
    """The templates of tables, reports and sites; text that this module did not mark as HTML is escaped.

    Raises:
        EmbspaceError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as reason:
        raise errors.missing_extra("jinja2", "plots") from reason
    package = Path(__file__).parents[1]
    return Environment(
        loader=FileSystemLoader([package / wing / "templates" for wing in ("display", "report", "site")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def safe(html: str) -> Any:
    """Mark HTML that needs no escaping."""
    environment()
    from markupsafe import Markup

    return Markup(html)


@cache
def stylesheet() -> Any:
    """The styles of chips, for light and dark screens and for print; all selectors begin with `.esl`."""
    css = environment().get_template("theme.css")
    tint = round(100 * theme.TINT)
    return safe(
        css.render(light=theme.LIGHT, dark=theme.DARK, sans=safe(theme.SANS), mono=safe(theme.MONO), tint_percent=tint)
    )


def strengths(scores: list[float]) -> list[float]:
    """How strong each chip's tint is: its score over the largest in size, cubed, since scores of a list differ little."""
    largest = max(map(abs, scores), default=0.0) or 1.0
    return [abs(score / largest) ** 3 for score in scores]


def chips(rows: pd.DataFrame, k: int | None = None) -> Any:
    """The first k tokens, or pairs, of a group as chips (None: all)."""
    rows = rows.iloc[:k]
    tints = strengths(rows["score"].tolist())
    if "token_string" in rows.columns:
        tokens = zip(rows["token_string"], rows["token_index"], rows["score"], tints, strict=True)
        return safe(" ".join(chip(*token) for token in tokens))
    ends = pair_ends(rows)
    texts = (rows[f"{end}_token_string"] for end in ends)
    ids = (rows[f"{end}_token_index"] for end in ends)
    return safe(" ".join(pair_chip(*pair) for pair in zip(*texts, *ids, rows["score"], tints, strict=True)))


def _group_row(group: TableGroup) -> dict[str, Any]:
    weight = group.weight
    cells = [f"{VERBS[weight]} ({weight})" if weight in VERBS else weight] if weight else []
    best = format_score(float(group.rows["score"].iloc[0]))
    return {"name": group.name, "cells": cells, "number": best, "chips": chips(group.rows)}


def _component_row(row: dict[str, Any]) -> dict[str, Any]:
    heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
    notes = ", ".join(text for text in (row.get("folded"), row.get("note")) if text)
    cells = [row["weight"], f"{heads}{row['rows']} × {row['columns']}", row.get("dtype", "")]
    return {"name": name_of(row) or "–", "cells": cells, "number": format_score(row["norm"]), "chips": notes}


def table(df: pd.DataFrame, *, n: int | None = None) -> str:
    """A table of the lens as HTML: one line for each of the first n neurons, heads or directions, its tokens as chips.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    table_kind = kind(df)
    has_chips = table_kind in TOKEN_KINDS
    total = count_groups(df) if has_chips else len(df)
    if has_chips:
        rows = [_group_row(group) for group in table_groups(df, n)]
        weight = ["weight"] if any(row["cells"] for row in rows) else []
        content = "pairs" if table_kind == "pairs" else "tokens"
        titles = [noun_of(df), *weight, "best", f"{content}, best first"]
    elif table_kind == "components":
        rows = [_component_row(row) for row in df.iloc[:n].to_dict("records")]
        titles = ["layer", "weight", "shape", "dtype", "norm", "folded in, notes"]
    else:
        rows = [{"name": "", "cells": row, "number": "", "chips": ""} for row in text_cells(df, n)]
        titles = ["", *df.columns, "", ""]
    more = (
        f"{total - len(rows):,} more of {total:,}; show(n={min(total, 5 * len(rows))}) shows them."
        if total > len(rows)
        else ""
    )
    template = environment().get_template("table.html")
    return template.render(css=stylesheet(), titles=titles, rows=rows, more=more, notes=not has_chips)
