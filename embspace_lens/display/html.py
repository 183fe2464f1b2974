"""Tables and their parts as escaped, self-contained HTML."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from .. import errors
from . import theme
from .measurements import n_numeric_at_end, text_cells
from .table_groups import TOKEN_KINDS, VERBS, count_groups, kind, name_of, noun_of, pair_ends, table_groups
from .tokens import chip, display, format_score, pair_chip

Column = tuple[str, Literal["quiet", "number", "tokens"]]
"""The title of a column and its class in the template."""


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
    """The strength of each chip's tint: the cube of score / largest |score|, because scores of a list differ little."""
    largest = max(map(abs, scores), default=0.0) or 1.0
    return [abs(score / largest) ** 3 for score in scores]


def chips(rows: pd.DataFrame, k: int | None = None) -> Any:
    """The first k tokens, or pairs, of a group as chips (all for None)."""
    rows = rows.iloc[:k]
    tints = strengths(rows["score"].tolist())
    if "token_string" in rows.columns:
        tokens = zip(rows["token_string"], rows["token_index"], rows["score"], tints, strict=True)
        return safe(" ".join(chip(*token) for token in tokens))
    ends = pair_ends(rows)
    texts = (rows[f"{end}_token_string"] for end in ends)
    ids = (rows[f"{end}_token_index"] for end in ends)
    return safe(" ".join(pair_chip(*pair) for pair in zip(*texts, *ids, rows["score"], tints, strict=True)))


def table(df: pd.DataFrame, *, n: int | None = None) -> str:
    """A table of the lens as HTML: one line for each of the first n neurons, heads or directions, its tokens as chips.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    table_kind = kind(df)
    total = count_groups(df) if table_kind in TOKEN_KINDS else len(df)
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    if table_kind in ("tokens", "pairs"):
        columns, rows = _token_table(df, n, table_kind)
    elif table_kind == "search":
        columns, rows = _search_table(df, n)
    elif table_kind == "components":
        columns, rows = _component_table(df.iloc[:n])
    else:
        first_number = len(df.columns) - n_numeric_at_end(df)
        texts, numbers = list(map(str, df.columns[:first_number])), list(map(str, df.columns[first_number:]))
        columns = [*((name, "quiet") for name in texts), *((name, "number") for name in numbers)]
        rows = text_cells(df, n)
    more = (
        f"{total - len(rows):,} more of {total:,}; show(n={min(total, 5 * len(rows))}) shows them."
        if total > len(rows)
        else ""
    )
    template = environment().get_template("table.html")
    return template.render(css=stylesheet(), columns=columns, rows=rows, more=more)


def _token_table(df: pd.DataFrame, n: int | None, table_kind: str) -> tuple[list[Column], list[list[Any]]]:
    groups = list(table_groups(df, n))
    has_weights = any(group.weight for group in groups)
    columns: list[Column] = [(noun_of(df), "quiet"), ("best", "number"), (f"{table_kind}, best first", "tokens")]
    rows: list[list[Any]] = [
        [group.name, format_score(float(group.rows["score"].iloc[0])), chips(group.rows)] for group in groups
    ]
    if has_weights:
        columns.insert(1, ("weight", "quiet"))
        for row, group in zip(rows, groups, strict=True):
            row.insert(1, _with_verb(group.weight))
    return columns, rows


def _with_verb(weight: str) -> str:
    return f"{VERBS[weight]} ({weight})" if weight in VERBS else weight


def _search_table(df: pd.DataFrame, n: int | None) -> tuple[list[Column], list[list[Any]]]:
    """The components with their scores of the token; the title names the token."""
    token = display(df["token_string"].iloc[0]) if len(df) else "the token"
    columns: list[Column] = [("component", "quiet"), ("weight", "quiet"), (f"score of {token}", "number")]
    rows = [
        [name_of(row), _with_verb(str(row["weight"])), format_score(row["score"])]
        for row in df.iloc[:n].to_dict("records")
    ]
    return columns, rows


def _component_table(df: pd.DataFrame) -> tuple[list[Column], list[list[Any]]]:
    columns: list[Column] = [
        ("layer", "quiet"),
        ("weight", "quiet"),
        ("shape", "quiet"),
        ("dtype", "quiet"),
        ("norm", "number"),
        ("folded in, notes", "quiet"),
    ]
    rows = []
    for row in df.to_dict("records"):
        heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
        shape = f"{heads}{row['rows']} × {row['columns']}" if row["rows"] else ""
        notes = ", ".join(text for text in (row.get("folded"), row.get("note")) if text)
        rows.append([name_of(row) or "–", row["weight"], shape, row.get("dtype", ""), format_score(row["norm"]), notes])
    return columns, rows
