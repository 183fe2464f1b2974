"""The strongest virtual weights between two dictionaries as a graph of features."""

from typing import Any

import pandas as pd

from .. import errors
from ..display.table_groups import check_kind, features_as_tokens, name_of
from ..display.tokens import cut_end, display, format_score, width
from .figure import escape, finish, plotly
from .pair_lines import ROW_HEIGHT, PairColumn, draw_pairs

N_TOKENS = 3  # tokens of a label
LONGEST_LABEL = 36  # characters
MAX_NAMES = 6  # heads that the subtitle has room for

COLUMNS = {
    "direct": (("src", "write", "features that write"), ("dest", "read", "features that read")),
    "ov": (("src", "write", "features attended to"), ("dest", "read", "features that read")),
    "qk": (("dest", "write", "features at the query"), ("src", "write", "features at the key")),
}
"""For each circuit, the left and the right column: the end of the pair, the side of its labels, and its heading."""


def plot_feature_graph(
    pairs: pd.DataFrame,
    k: int = 20,
    *,
    source_labels: pd.DataFrame | None = None,
    target_labels: pd.DataFrame | None = None,
) -> Any:
    """Draw the strongest virtual weights between two dictionaries as lines from feature to feature.

    A thicker line is a larger weight; negative weights are orange and dotted. Features are in the order of their strongest
    weight. Weights of several heads are drawn together; a line's head is shown when the pointer is on it.

    Args:
        pairs: A table of `virtual_weights`, of one circuit.
        k: How many weights, by absolute value.
        source_labels: A table of `feature_labels` of the source, from which tokens are added to the labels: those that a feature
            writes.
        target_labels: The same for the target: the tokens that a feature reads; for `"qk"`, those that it writes.

    Returns:
        A plotly figure.

    Raises:
        EmbspaceError: If the table is of another kind, of several circuits, or empty; or plotly is not installed.

    Example:
        >>> from embspace_lens.features import Features, virtual_weights
        >>> axes = Features(torch.eye(3), torch.eye(3), name="axes", labels=["x", "y", "z"])
        >>> plot_feature_graph(virtual_weights(axes, axes, k=3)).layout.title.text
        'The strongest virtual weights'
    """
    go = plotly()
    df = features_as_tokens(pairs)
    check_kind(df, "plot_feature_graph()", ("pairs",))
    if "circuit" not in df.columns:
        raise errors.missing_columns("plot_feature_graph()", ["circuit"])
    if df.empty:
        raise errors.empty_table()
    circuit, *others = map(str, df["circuit"].unique())
    if others:
        raise errors.several_circuits("plot_feature_graph()", [circuit, *others])
    strongest = df.iloc[df["score"].abs().argsort(kind="stable")[::-1]].head(k)
    tokens = {"src": source_labels, "dest": target_labels}
    columns = [
        PairColumn(strongest[f"{end}_token_index"].tolist(), _labels(strongest, end, tokens[end], side), heading)
        for end, side, heading in COLUMNS[circuit]
    ]
    heads = [name_of(row) for row in strongest[["layer", "head"]].to_dict("records")]
    scores = strongest["score"].to_numpy()
    hover = [
        "<br>".join([*([head] if head else []), escape(f"{a} → {b}"), f"weight {format_score(float(score))}"])
        for head, a, b, score in zip(heads, *(column.labels for column in columns), scores, strict=True)
    ]
    label_width = 8.2 * max(width(label) for column in columns for label in column.labels) + 18
    panel_width = 2 * label_width + 190
    n_rows = max(len(column.distinct) for column in columns)
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 1)
    draw_pairs(go, figure, columns, scores, hover, (1, 1), label_width / panel_width)
    figure.update_xaxes(visible=False, range=[0, 1])
    figure.update_yaxes(visible=False, range=[n_rows - 0.4, -1.3])
    figure.update_layout(margin={"l": 16, "r": 16, "t": 76, "b": 12})
    subtitle = _subtitle(circuit, sorted(set(heads)), has_negative=bool((scores < 0).any()))
    return finish(figure, "The strongest virtual weights", int(panel_width) + 32, ROW_HEIGHT * n_rows + 140, subtitle)


def _labels(df: pd.DataFrame, end: str, labels: pd.DataFrame | None, side: str) -> list[str]:
    """The label of each row's feature as displayed, with its best tokens if a table of `feature_labels` is given."""
    index, names = df[f"{end}_token_index"].tolist(), list(map(display, df[f"{end}_token_string"]))
    tokens: dict[int, list[str]] = {}
    if labels is not None:
        rows = labels.loc[(labels["side"] == side) & (labels["token_index"] >= 0) & labels["feature"].isin(index)]
        for feature, token in zip(rows["feature"], rows["token_string"], strict=True):
            tokens.setdefault(feature, []).append(display(token))
    texts = (" ".join([name, *tokens.get(i, [])[:N_TOKENS]]) for i, name in zip(index, names, strict=True))
    return [cut_end(text, LONGEST_LABEL) for text in texts]


def _subtitle(circuit: str, heads: list[str], *, has_negative: bool) -> str:
    """The path of the weights, and how they are drawn."""
    named = ", ".join(heads[:MAX_NAMES]) + (f" and {len(heads) - MAX_NAMES} more" if len(heads) > MAX_NAMES else "")
    paths = {"direct": "directly through the stream", "ov": f"moved by {named}", "qk": f"attention of {named}"}
    return paths[circuit] + "; thicker lines: larger weights" + ("; dotted: negative" if has_negative else "")
