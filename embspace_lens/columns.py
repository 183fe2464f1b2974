"""The glossary: every column that a table of this package may have, in the order in which tables show them.

Tables are a contract. A function's columns depend on the function alone, never on its arguments or on the data
(`expert` alone: on the architecture); `frames.tidy` builds every table from this glossary.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """A column's dtype, its unit (empty for counts, names and indices) and what it means."""

    dtype: str
    unit: str
    meaning: str


WEIGHTS = ("W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O", "W_OV", "W_QK", "W_E", "W_U", "W_pos")

GLOSSARY: dict[str, Column] = {
    "layer": Column("int64", "", "Block number, as in blocks.{layer}; −1 for the embedding and unembedding."),
    "expert": Column(
        "int64", "", "Expert of a mixture; −1 for weights that every token passes (shared, or dense layer)."
    ),
    "head": Column("int64", "", "Query head of the block, from 0."),
    "neuron": Column("int64", "", "MLP unit of the block (or of the expert), from 0."),
    "subhead": Column("int64", "", "Index within d_head: one column of W_Q, W_K or W_V, one row of W_O."),
    "weight": Column("category", "", "Which parameter, in TransformerLens's words (W_in, W_OV …)."),
    "direction": Column("str", "", "Name of a vector that the user gave."),
    "component": Column("int64", "", "Number of a singular direction; 0 has the largest singular value."),
    "side": Column(
        "category", "", "read or write: what the component listens to or adds; query or key: the two sides of W_QK."
    ),
    "rank": Column("int64", "", "Place in the list; 0 is best."),
    "token_index": Column("int64", "", "Vocabulary id of the token."),
    "token_string": Column("str", "", "Exact text of the token, leading space kept."),
    "dest_token_index": Column("int64", "", "Vocabulary id of the attending (query) or promoted (OV output) token."),
    "dest_token_string": Column("str", "", "Exact text of the attending or promoted token."),
    "src_token_index": Column("int64", "", "Vocabulary id of the attended-from (key, OV input) token."),
    "src_token_string": Column("str", "", "Exact text of the attended-from token."),
    "score": Column(
        "float32", "as the lens's score", "The lens's score: an inner product, plain or centred, or a cosine."
    ),
    "singular_value": Column(
        "float32", "", "Singular value of the direction, with norms folded as the lens folds them."
    ),
    "similarity": Column("float32", "cosine", "Cosine of two vectors, between −1 and 1."),
    "rows": Column("int64", "", "First dimension of the weight as served (heads and experts apart)."),
    "columns": Column("int64", "", "Second dimension of the weight as served (heads and experts apart)."),
    "n_heads": Column("int64", "", "How many heads the weight is split into, as stored; 0 if it is not."),
    "norm": Column("float32", "", "Frobenius norm of the effective weight, all heads together."),
    "dtype": Column("str", "", "Precision in which the model stores the weight."),
    "folded": Column("str", "", "Which norm's gain the lens multiplied in, and whether it centred; empty for none."),
    "label": Column("str", "", "A unit's best tokens as displayed, best first, for reading rather than computing."),
    "note": Column(
        "str", "", "What lies between the weight and the residual stream that no weight holds: caps, scales."
    ),
}
