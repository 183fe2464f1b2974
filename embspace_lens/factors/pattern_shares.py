"""How many of a factor's top contexts follow a stated rule, layer by layer."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..tables.frames import tidy
from ..tables.intervals import proportion_interval

COLUMNS = ["factor", "layer", "share", "control", "low", "high", "n"]
NEEDED = ("factor", "layer", "token_string", "before", "after")
OPEN, CLOSE = "«", "»"
"""The marks around the target of a context or of a constructed sentence."""

Rule = str | re.Pattern[str] | Callable[[str, str, str], bool]


def pattern_share(contexts: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    r"""Measure the share of each factor's top contexts that follow a rule, in each layer.

    .. math:: \mathrm{share}_c^{(l)} = \frac{1}{n} \sum_{i=1}^{n} [\text{context } i \text{ of factor } c \text{ in layer } l \text{ follows the rule}]

    The control is the share among the contexts of all other factors in the same layer: how often top contexts follow the rule
    whatever the factor is.

    Args:
        contexts: A table of `top_contexts`, or `activity(…).contexts`.
        rule: A regular expression, searched in the text of a context; or a function of the text before the target, the
            target, and the text after it, that returns whether the context follows the rule. If the expression contains «
            or », the text is `before«target»after`, so that the expression can refer to the target; otherwise the text has
            no marks.

    Returns:
        One row per (factor, layer), with `share` of its `n` contexts, the interval `low` and `high`, and `control`, which is
        NaN if the table has contexts of one factor only.

    Raises:
        EmbspaceError: If the table lacks a column, or the rule is not a regular expression or a function.

    Example:
        >>> from embspace_lens.factors import Factors, top_contexts
        >>> contexts = top_contexts(Factors(torch.eye(32), l1=0.01), model, ["w2 w3", "w4 w3"], layers=[0], n=1)
        >>> result = pattern_share(contexts, r"w2 ?«.*w3»")
        >>> set(result["share"]) <= {0.0, 1.0}
        True

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §4. https://arxiv.org/abs/2103.15949
    """
    missing = [name for name in NEEDED if name not in contexts.columns]
    if missing:
        raise errors.table_lacks_column("contexts", missing[0], "top_contexts or activity(…).contexts")
    follows = _follows(rule)
    columns = (contexts[name].tolist() for name in ("before", "token_string", "after"))
    hits = pd.Series([bool(follows(*row)) for row in zip(*columns)], index=contexts.index, dtype=np.int64)
    by_factor: Any = hits.groupby([contexts["factor"], contexts["layer"]], sort=True).agg(["sum", "size"])
    layer = by_factor.index.get_level_values("layer")
    in_layer = by_factor.groupby(level="layer").sum().loc[layer]
    n_hits, n = by_factor["sum"].to_numpy(), by_factor["size"].to_numpy()
    n_others = in_layer["size"].to_numpy() - n
    intervals = [proportion_interval(int(k), int(total)) for k, total in zip(n_hits, n)]
    block = {
        "factor": by_factor.index.get_level_values("factor").to_numpy(),
        "layer": layer.to_numpy(),
        "share": n_hits / n,
        "control": (in_layer["sum"].to_numpy() - n_hits) / np.where(n_others, n_others, np.nan),
        "low": np.array([low for low, _ in intervals]),
        "high": np.array([high for _, high in intervals]),
        "n": n,
    }
    return tidy(COLUMNS, [block])


def _follows(rule: Any) -> Callable[[str, str, str], bool]:
    """The rule as a function of the text before the target, the target and the text after it."""
    if not isinstance(rule, str | re.Pattern):
        if not callable(rule):
            raise errors.not_a_rule(rule)
        function: Any = rule
        return function
    try:
        pattern = re.compile(rule)
    except re.error as reason:
        raise errors.bad_expression(rule, reason) from reason
    is_marked = OPEN in pattern.pattern or CLOSE in pattern.pattern
    before_mark, after_mark = (OPEN, CLOSE) if is_marked else ("", "")
    return lambda before, target, after: pattern.search(f"{before}{before_mark}{target}{after_mark}{after}") is not None
