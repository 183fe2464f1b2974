"""`df.embspace`: show, label and plot any table of this package."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from . import errors
from .display.labels import label_groups
from .display.line_counts import count_lines
from .display.table_groups import TOKEN_KINDS, check_kind, count_groups, features_as_tokens, kind
from .tables.checks import check_integer


def plots_by_kind() -> dict[str, Callable[..., Any]]:
    """The function that draws each kind of table; plots are imported here, since most users of tables need none."""
    from .plots.alignment_maps import plot_alignment
    from .plots.comparison_curves import plot_displacement, plot_stitch
    from .plots.evidence_curves import plot_keep_k, plot_recall, plot_related_pairs
    from .plots.importance_curves import plot_importance
    from .plots.pair_lines import plot_pairs
    from .plots.token_bars import plot_tokens

    return {
        "tokens": plot_tokens,
        "search": plot_tokens,
        "pairs": plot_pairs,
        "alignment": plot_alignment,
        "related_pairs": plot_related_pairs,
        "recall": plot_recall,
        "keep_k": plot_keep_k,
        "stitch": plot_stitch,
        "displacement": plot_displacement,
        "importance": plot_importance,
    }


class ShownTable:
    """A table for display: HTML in a notebook, lines in a terminal, with colours in a rich console."""

    def __init__(self, df: pd.DataFrame, n: int) -> None:
        self.df, self.n = df, n

    def __repr__(self) -> str:
        from .display.terminal import render

        return render(self.df, n=self.n)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from .display.terminal import lay_out

        yield lay_out(self.df, n=self.n, columns=options.max_width)

    def _repr_html_(self) -> str:
        from .display.html import table

        return table(self.df, n=self.n)


@pd.api.extensions.register_dataframe_accessor("embspace")
class EmbspaceAccessor:
    """Show, label and plot a table of this package: `df.embspace.show()`, `.label()`, `.plot()`.

    Example:
        >>> lens.neurons(layer=0, neuron=3, k=2).embspace
        <embspace: a table of tokens, 2 lines; .show(n=10), .label(k=5), .plot()>
        >>> lens.neurons(layer=0, neuron=3, k=2).embspace.label()["weight"].tolist()
        ['W_in', 'W_out']
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self._df = features_as_tokens(df)

    def __repr__(self) -> str:
        try:
            table_kind = kind(self._df)
        except errors.EmbspaceError:
            return "<embspace: not a table of this package>"
        _, n_lines = count_lines(self._df, table_kind, None)
        methods = [".show(n=10)"]
        methods += [".label(k=5)"] * (table_kind in TOKEN_KINDS) + [".plot()"] * (table_kind in plots_by_kind())
        return f"<embspace: a table of {table_kind.replace('_', ' ')}, {n_lines:,} lines; {', '.join(methods)}>"

    def show(self, n: int = 10) -> ShownTable:
        """Show the table with one line per neuron, head or direction and weight; for `search()`, one line per weight.

        Args:
            n: How many lines to show; for `search()`, how many components of each weight.

        Returns:
            An object that a notebook shows as token chips and a terminal as lines.

        Raises:
            EmbspaceError: If the frame is not a table of this package, or n is not a positive integer.
        """
        kind(self._df)
        return ShownTable(self._df, check_integer("n", n, minimum=1))

    def label(self, k: int = 5) -> pd.DataFrame:
        """Reduce the table to one label per neuron, head or direction: its best tokens as displayed.

        Args:
            k: How many tokens (or pairs) make a label.

        Returns:
            One row per group of the table, such as (layer, neuron, weight), with `label`, in the table's order; it joins with
            other tables on its keys. For a table of `search()`: one row per component, and the label is the token.

        Raises:
            EmbspaceError: If the frame is not a table of tokens or pairs, or k is not a positive integer.
        """
        return label_groups(self._df, check_integer("k", k, minimum=1))

    def plot(self, **options: Any) -> Any:
        """Draw the table by the plot of its kind.

        A table of pairs of many heads becomes a map of layers × heads, direct virtual weights a graph of features.

        Args:
            **options: The options of the plot, such as `k` of `plot_tokens`; for the table of an alignment, `alignment`.

        Returns:
            A plotly figure.

        Raises:
            EmbspaceError: If there is no plot for this kind of table, or the table holds more than the plot has room for.
        """
        from .plots.feature_graph import plot_feature_graph
        from .plots.head_maps import plot_heads
        from .plots.pair_lines import MAX_HEADS

        plots = plots_by_kind()
        table_kind = check_kind(self._df, "plot()", tuple(plots))
        plot = plots[table_kind]
        if table_kind == "alignment":
            if "alignment" not in options:
                raise errors.alignment_missing()
            return plot(**options)
        if table_kind == "pairs" and "circuit" in self._df.columns and (self._df["circuit"] == "direct").any():
            plot = plot_feature_graph
        elif table_kind == "pairs" and _is_of_one_weight(self._df) and count_groups(self._df) > MAX_HEADS:
            plot = plot_heads
        return plot(self._df, **options)


def _is_of_one_weight(df: pd.DataFrame) -> bool:
    """Whether a table of pairs can be drawn as a map of layers × heads; a table of operations has several lists for each head."""
    has_keys = {"layer", "head"} <= set(df.columns) and "src_rank" not in df.columns
    return has_keys and ("weight" not in df.columns or len(df["weight"].unique()) == 1)
