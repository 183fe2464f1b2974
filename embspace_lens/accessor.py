"""`df.embspace`: show, label and plot any table of the lens."""

from typing import Any

import pandas as pd

from .display.table_groups import count, in_glossary_order, keys, kind, tokens_or_pairs
from .display.tokens import display, pair
from .errors import EmbspaceError


class Shown:
    """A table as a reader sees it: HTML in a notebook, plain lines in a terminal."""

    def __init__(self, df: pd.DataFrame, n: int) -> None:
        self.df, self.n = df, n

    def __repr__(self) -> str:
        from .display.terminal import render

        return render(self.df, n=self.n)

    def _repr_html_(self) -> str:
        from .display.html import table

        return table(self.df, n=self.n)


@pd.api.extensions.register_dataframe_accessor("embspace")
class EmbspaceAccessor:
    """Look at a table that an EmbeddingLens made.

    Example:
        >>> lens.neurons(layer=0, neuron=3, k=2).embspace.label()["weight"].tolist()
        ['W_in', 'W_out']
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self._df = df

    def show(self, n: int = 10) -> Shown:
        """Show the table with one line for each neuron, head or direction.

        Args:
            n: How many of them.

        Returns:
            An object that a notebook shows as token chips and a terminal as lines.

        Raises:
            EmbspaceError: If the frame is not one of the lens's tables, or n is no positive number.
        """
        kind(self._df)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise EmbspaceError(f"n={n!r} is not a positive number of neurons, heads or directions.")
        return Shown(self._df, n)

    def label(self, k: int = 5) -> pd.DataFrame:
        """Collapse the table to one label for each neuron, head or direction: its best tokens, as they are displayed.

        Args:
            k: How many tokens (or pairs) make a label.

        Returns:
            One row per unit of the table, (layer, neuron, weight) say, with `label`, in the table's order; it joins
            with other tables on its keys. From `search()`: one row per unit found, the label being the token.

        Raises:
            EmbspaceError: If the frame is not one of the lens's tables of tokens or pairs, or k is no positive number.
        """
        df = self._df
        found = tokens_or_pairs(df, "label()", ("tokens", "pairs", "search"))
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise EmbspaceError(f"k={k!r} is not a positive number of tokens.")
        names = keys(df)
        if "rank" in df.columns and found != "search":
            df = df.sort_values("rank", kind="stable")
        if names:
            place = self._df.groupby(names, sort=False, observed=True, dropna=False).ngroup()
        else:
            place = pd.Series(0, index=self._df.index)
        df = df.assign(_unit=place)
        df = df.groupby("_unit", sort=True).head(k)
        if found == "pairs":
            query_first = (df["weight"] == "W_QK").tolist() if "weight" in df.columns else [False] * len(df)
            strings = zip(df["src_token_string"], df["dest_token_string"], query_first, strict=True)
            text = [pair(dest, src) if query else pair(src, dest) for src, dest, query in strings]
        else:
            text = list(map(display, df["token_string"]))
        joined = df.assign(label=text).groupby("_unit", sort=True)["label"].agg(" ".join)
        first = df.drop_duplicates("_unit").sort_values("_unit")[in_glossary_order(names)].reset_index(drop=True)
        return first.assign(label=joined.astype("str").to_numpy() if len(joined) else pd.Series([], dtype="str"))

    def plot(self, **options: Any) -> Any:
        """Draw the table as its columns suggest: bars for tokens and searches, lines for pairs, a map for many heads,
        curves for what `evidence`, `stitch_sweep` and `displacement` measure.

        Args:
            **options: As for `plot_tokens`, `plot_pairs` or `plot_heads`.

        Returns:
            A plotly figure.

        Raises:
            EmbspaceError: If the frame is not one of the lens's tables, or holds more than a picture can.
        """
        from . import plots
        from .plots import plot_heads, plot_pairs, plot_tokens
        from .plots.pair_lines import MAX_HEADS

        if kind(self._df) == "measurements":
            drawn = {
                "jaccard": plots.plot_related_pairs,
                "recall": plots.plot_recall,
                "inverse": plots.plot_keep_k,
                "kernel": plots.plot_stitch,
                "share": plots.plot_displacement,
                "importance": plots.plot_importance,
            }
            for column, plot in drawn.items():
                if column in self._df.columns:
                    return plot(self._df, **options)
        found = tokens_or_pairs(self._df, "plot()", ("tokens", "pairs", "search"))
        if found != "pairs":
            return plot_tokens(self._df, **options)
        n_heads = count(self._df)
        one_weight = "weight" not in self._df.columns or len(self._df["weight"].unique()) == 1
        many = n_heads > MAX_HEADS and one_weight and {"layer", "head"} <= set(self._df.columns)
        return (plot_heads if many else plot_pairs)(self._df, **options)
