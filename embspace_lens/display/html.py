"""Tables and their parts as escaped, self-contained HTML."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from .. import errors
from . import theme
from .measurements import cells
from .table_groups import VERBS, Unit, count, ends, kind, name_of, units
from .tokens import chip, figures, pair_chip


@cache
def environment() -> Any:
    """The templates, with everything escaped that is not marked as HTML by this module.

    Raises:
        EmbspaceError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as reason:
        raise errors.missing_extra("jinja2", "plots") from reason
    wings = Path(__file__).parents[1]
    return Environment(
        loader=FileSystemLoader([wings / wing / "templates" for wing in ("display", "report", "site")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def safe(html: str) -> Any:
    """Mark HTML whose text is escaped already."""
    environment()
    from markupsafe import Markup

    return Markup(html)


@cache
def stylesheet() -> Any:
    """The look that chips need, for light, dark and print, all of it under `.esl`."""
    css = environment().get_template("theme.css")
    tint = round(100 * theme.TINT)
    return safe(
        css.render(light=theme.LIGHT, dark=theme.DARK, sans=safe(theme.SANS), mono=safe(theme.MONO), tint_percent=tint)
    )


def strengths(scores: list[float]) -> list[float]:
    """How strong each score is beside the strongest, cubed: lists fall slowly, and small steps are not seen."""
    best = max(map(abs, scores), default=0.0) or 1.0
    return [abs(score / best) ** 3 for score in scores]


def chips(rows: pd.DataFrame, k: int | None = None) -> Any:
    """A unit's first k tokens, or pairs, as chips."""
    rows = rows.iloc[:k]
    tints = strengths(rows["score"].tolist())
    if "token_string" in rows.columns:
        cells = zip(rows["token_string"], rows["token_index"], rows["score"], tints, strict=True)
        return safe(" ".join(chip(*cell) for cell in cells))
    left, right = ends(rows)
    texts = (rows[f"{end}_token_string"] for end in (left, right))
    ids = (rows[f"{end}_token_index"] for end in (left, right))
    return safe(" ".join(pair_chip(*cell) for cell in zip(*texts, *ids, rows["score"], tints, strict=True)))


def _row(unit: Unit) -> dict[str, Any]:
    best = figures(float(unit.rows["score"].iloc[0]))
    weight = unit.weight
    cells = [f"{VERBS[weight]} ({weight})" if weight in VERBS else weight] if weight else []
    return {"name": unit.name, "cells": cells, "number": best, "chips": chips(unit.rows)}


def _component_row(row: dict[str, Any]) -> dict[str, Any]:
    heads = f"{row['n_heads']} × " if row.get("n_heads") else ""
    notes = ", ".join(text for text in (row.get("folded"), row.get("note")) if text)
    cells = [row["weight"], f"{heads}{row['rows']} × {row['columns']}", row.get("dtype", "")]
    return {"name": name_of(row) or "outer", "cells": cells, "number": figures(row["norm"]), "chips": notes}


def table(df: pd.DataFrame, *, n: int | None = None) -> str:
    """A table of the lens as HTML, one line for each neuron, head or direction (at most n), its tokens as chips.

    Raises:
        EmbspaceError: If it is not one of the lens's tables.
    """
    found = kind(df)
    if found == "components":
        total = len(df)
        rows = [_component_row(row) for row in df.head(total if n is None else n).to_dict("records")]
        titles = ["where", "weight", "shape", "stored as", "norm", "folded, notes"]
    elif found in ("measurements", "contexts", "saliency"):
        total = len(df)
        rows = [{"name": "", "cells": row, "number": "", "chips": ""} for row in cells(df, n)]
        titles = ["", *df.columns, "", ""]
    else:
        total = count(df)
        rows = [_row(unit) for unit in units(df, n)]
        weighed = any(row["cells"] for row in rows)
        titles = [
            "unit",
            *(["weight"] if weighed else []),
            "best",
            "pairs, best first" if found == "pairs" else "tokens, best first",
        ]
    more = (
        f"{total - len(rows):,} more of {total:,}; show(n={min(total, 5 * len(rows))}) shows them."
        if total > len(rows)
        else ""
    )
    return (
        environment()
        .get_template("table.html")
        .render(css=stylesheet(), titles=titles, rows=rows, more=more, notes=found not in ("tokens", "pairs", "search"))
    )
