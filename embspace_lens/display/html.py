"""Tables and their parts as escaped, self-contained HTML."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from .. import errors
from . import theme
from .line_counts import (
    component_name,
    context_numbers,
    count_lines,
    score_and_rank,
    search_lines,
    search_title,
    searched_token,
)
from .measurements import n_numeric_at_end, text_cells
from .table_groups import VERBS, features_as_tokens, holds_pairs, kind, name_of, pair_ends, table_groups, title_of
from .tokens import chip, cut_end, cut_start, display, format_score, pair_chip, text_chip, token_in_text, visible

Column = tuple[Any, Literal["quiet", "number", "tokens", "before", "target", "after"]]
"""The title of a column and its class in the template."""

Table = tuple[Sequence[Column], Sequence[Sequence[Any]]]
CONTEXT_WIDTH = 48  # characters of the text before and after the target of a context
MAX_OFFSET = 12  # tokens before and after the target of which the saliency is shown


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
    """The styles of chips on pages, for light and dark screens and for print; all selectors begin with `.esl`."""
    return _styles("theme.css")


@cache
def notebook_stylesheet() -> Any:
    """The styles of tables in notebooks, in the colours of the notebook's theme; all selectors begin with `.esl`."""
    return _styles("notebook.css")


def _styles(template: str) -> Any:
    fonts = {"sans": safe(theme.SANS), "mono": safe(theme.MONO)}
    css = environment().get_template(template)
    return safe(css.render(light=theme.LIGHT, dark=theme.DARK, tint_percent=round(100 * theme.TINT), **fonts))


def strengths(scores: list[float]) -> list[float]:
    """The strength of each chip's tint: the cube of score / largest |score|, because scores of a list differ little."""
    largest = max(map(abs, scores), default=0.0) or 1.0
    return [abs(score / largest) ** 3 for score in scores]


def chips(rows: pd.DataFrame, k: int | None = None, marked: int | None = None) -> Any:
    """The first k tokens, or pairs, of a group as chips (all for None); the token with the id `marked` has an outline."""
    rows = rows.iloc[:k]
    tints = strengths(rows["score"].tolist())
    if not holds_pairs(rows):
        tokens = zip(rows["token_string"], rows["token_index"], rows["score"], tints, strict=True)
        return safe(" ".join(chip(*token, marked=token[1] == marked) for token in tokens))
    ends = pair_ends(rows)
    texts = (rows[f"{end}_token_string"] for end in ends)
    ids = (rows[f"{end}_token_index"] for end in ends)
    return safe(" ".join(pair_chip(*pair) for pair in zip(*texts, *ids, rows["score"], tints, strict=True)))


def table(df: pd.DataFrame, *, n: int | None = None) -> str:
    """A table of the lens as HTML: one line for each of the first n neurons, heads, directions or contexts, tokens as chips.

    A table of `search()` has one line for each weight, with its n best components.

    Raises:
        EmbspaceError: If it is not a table of this package.
    """
    df = features_as_tokens(df)
    table_kind = kind(df)
    columns, rows = _BUILDERS.get(table_kind, _measurement_table)(df, n)
    template = environment().get_template("table.html")
    return template.render(css=notebook_stylesheet(), columns=columns, rows=rows, more=_footer(df, table_kind, n))


def _footer(df: pd.DataFrame, table_kind: str, n: int | None) -> str:
    """How many lines are left out, and how to show them."""
    if df.empty:
        return "The table is empty: nothing was selected."
    n_shown, total = count_lines(df, table_kind, n)
    if n is None or n_shown == total:
        return ""
    largest = max(len(line.components) for line in search_lines(df)) if table_kind == "search" else total
    remedy = f"show(n={largest}) shows all" if largest <= 5 * n else f"show(n={5 * n}) shows more"
    return f"{total - n_shown:,} more of {total:,}; {remedy}."


def _token_table(df: pd.DataFrame, n: int | None) -> Table:
    groups = list(table_groups(df, n))
    entries = df.attrs.get("embspace_entries", "tokens") if kind(df) == "tokens" else kind(df)
    columns: list[Column] = [(title_of(df), "quiet"), ("best", "number"), (f"{entries}, best first", "tokens")]
    rows: list[list[Any]] = [
        [group.name, format_score(float(group.rows["score"].iloc[0])), chips(group.rows)] for group in groups
    ]
    if any(group.weight for group in groups):
        columns.insert(1, ("weight", "quiet"))
        for row, group in zip(rows, groups, strict=True):
            row.insert(1, _with_verb(group.weight))
    return columns, rows


def _with_verb(weight: str) -> str:
    return f"{VERBS[weight]} ({weight})" if weight in VERBS else weight


def _search_table(df: pd.DataFrame, n: int | None) -> Table:
    """One line for each weight: the components that score the token highest, each with its score."""
    lines = search_lines(df, n)
    token = searched_token(df)
    shown = "their token" if token is None else chip(*token, strength=1, marked=True)
    columns: list[Column] = [
        ("weight", "quiet"),
        (safe(search_title(df, shown)), "tokens"),
    ]
    rows: list[list[Any]] = [[_with_verb(line.weight), _component_chips(line.components)] for line in lines]
    if any(line.name for line in lines):
        columns.insert(0, ("search", "quiet"))
        rows = [[display(line.name), *row] for line, row in zip(lines, rows, strict=True)]
    return columns, rows


def _component_chips(components: list[dict[str, Any]]) -> Any:
    """The components of a search as chips, each with its score."""
    scores = [float(row["score"]) for row in components]
    parts = []
    for row, score, strength in zip(components, scores, strengths(scores), strict=True):
        name = component_name(row)
        shown = text_chip(name, f"{name} {row['weight']}, score {format_score(score)}", score, strength)
        parts.append(f'{shown}<span class="esl-score">{score_and_rank(row)}</span>')
    return safe(" ".join(parts))


def _context_table(df: pd.DataFrame, n: int | None) -> Table:
    """A concordance: targets in one column, tinted by the code, with the text before and after them."""
    df = df.iloc[:n]
    columns: list[Column] = [
        ("context", "quiet"),
        ("code", "number"),
        ("", "before"),
        ("target", "target"),
        ("", "after"),
    ]
    rows = []
    for row, strength in zip(df.to_dict("records"), strengths(df["code"].tolist()), strict=True):
        token = row["token_string"]
        title = f"{display(token)}, code {format_score(row['code'])}"
        target = text_chip(display(token.strip() or token), title, row["code"], strength)
        before, after = visible(row["before"].strip()), visible(row["after"].strip())
        texts = [cut_start(before, CONTEXT_WIDTH), safe(target), cut_end(after, CONTEXT_WIDTH)]
        rows.append([f"L{row['layer']}F{row['factor']}", format_score(row["code"]), *texts])
    return columns, rows


def _saliency_table(df: pd.DataFrame, n: int | None) -> Table:
    """A concordance with the saliency of each token as its tint; targets in one column."""
    columns: list[Column] = [("context", "quiet"), ("", "before"), ("target", "target"), ("", "after")]
    numbers, rows = context_numbers(df), []
    shown: Any = df[numbers < (len(df) if n is None else n)]
    for _, rows_of_context in shown.groupby(numbers, sort=False):
        context = rows_of_context.sort_values(["offset"], kind="stable")
        offsets, values = context["offset"].to_numpy(), context["saliency"].to_numpy(dtype=float)
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        sides: dict[str, list[str]] = {"before": [], "target": [], "after": []}
        for token, offset, value in zip(context["token_string"], offsets, values, strict=True):
            side = "target" if offset == 0 else "before" if offset < 0 else "after"
            if abs(offset) <= MAX_OFFSET:
                title = f"{display(token)}, offset {offset}, saliency {format_score(value)}"
                sides[side].append(token_in_text(token, title, value, abs(value) / largest))
        texts = [safe("".join(parts)) for parts in sides.values()]
        rows.append([f"L{context['layer'].iloc[0]}F{context['factor'].iloc[0]}", *texts])
    return columns, rows


def _measurement_table(df: pd.DataFrame, n: int | None) -> Table:
    n_texts = len(df.columns) - n_numeric_at_end(df)
    columns: list[Column] = [(str(name), "quiet" if i < n_texts else "number") for i, name in enumerate(df.columns)]
    return columns, text_cells(df, n)


def _component_table(df: pd.DataFrame, n: int | None) -> Table:
    columns: list[Column] = [
        ("layer", "quiet"),
        ("weight", "quiet"),
        ("shape", "quiet"),
        ("dtype", "quiet"),
        ("norm", "number"),
        ("folded in, notes", "quiet"),
    ]
    rows = []
    for row in df.iloc[:n].to_dict("records"):
        heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
        shape = f"{heads}{row['rows']} × {row['columns']}" if row["rows"] else ""
        notes = ", ".join(text for text in (row.get("folded"), row.get("note")) if text)
        rows.append([name_of(row) or "–", row["weight"], shape, row.get("dtype", ""), format_score(row["norm"]), notes])
    return columns, rows


_BUILDERS: dict[str, Callable[[pd.DataFrame, int | None], Table]] = {
    "tokens": _token_table,
    "pairs": _token_table,
    "search": _search_table,
    "components": _component_table,
    "contexts": _context_table,
    "saliency": _saliency_table,
}
"""The builder of each kind of table; other kinds are tables of measurements."""
