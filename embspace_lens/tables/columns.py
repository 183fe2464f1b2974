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
    "target": Column("str", "", "Hidden state that is compared: layer (the output of the row's own block) or final."),
    "source": Column("str", "", "Where vectors come from: gaussian, W_out, or the name that the user gave."),
    "word": Column("str", "", "A word whose senses are told apart, in lower case."),
    "tag": Column("str", "", "The sense to be found, as the tagged text names it; all others are against it."),
    "method": Column("str", "", "factor: one factor's code; or a control: logistic regression, the majority."),
    "factor": Column("int64", "", "Number of a dictionary's factor, from 0; −1 where a method uses none."),
    "relation": Column("str", "", "Name of a relation between words, such as antonyms, given as pairs."),
    "metric": Column(
        "str", "", "What a forward pass was measured by: a name of the user's, or logit, log_prob, probability."
    ),
    "patch_type": Column(
        "str", "", "Which activation of a head or block was patched: out, q, k, v …; empty if not said."
    ),
    "composition": Column("str", "", "Q, K or V: by which input of its own a head reads what an earlier head wrote."),
    "src_layer": Column("int64", "", "Block of the head that writes, where two heads compose."),
    "src_head": Column("int64", "", "The head that writes, where two heads compose."),
    "layer": Column("int64", "", "Block number, as in blocks.{layer}; −1 for the embedding and unembedding."),
    "node": Column(
        "str", "", "Part of the forward pass: embed, attn_out, mlp_out, head, neuron, resid_pre … or remainder."
    ),
    "expert": Column(
        "int64", "", "Expert of a mixture; −1 for weights that every token passes (shared, or dense layer)."
    ),
    "head": Column("int64", "", "Query head of the block, from 0."),
    "neuron": Column("int64", "", "MLP unit of the block (or of the expert), from 0."),
    "subhead": Column("int64", "", "Index within d_head: one column of W_Q, W_K or W_V, one row of W_O."),
    "weight": Column("category", "", "Which parameter, in TransformerLens's words (W_in, W_OV …)."),
    "channel": Column("int64", "", "Number of a neuron's vocabulary channel, in the order of finding; 0 is the first."),
    "pair": Column("str", "", "Two weights whose units are compared one to one, such as W_in-W_out."),
    "inverse": Column("str", "", "Right inverse of the embedding matrix: transpose or pinv."),
    "k": Column("int64", "", "How many entries of a vector of scores are kept."),
    "sample": Column(
        "str",
        "",
        "The claim (paired, aligned, own) or its control (shuffled, permuted, other, random), which should be lower.",
    ),
    "layer_a": Column("int64", "", "Block of the first of two models."),
    "layer_b": Column("int64", "", "Block of the second of two models."),
    "expert_a": Column("int64", "", "Expert of the first of two models; −1 for weights that every token passes."),
    "neuron_a": Column("int64", "", "MLP unit of the first of two models, from 0."),
    "match": Column(
        "category", "", "nearest: the best partner of all; one_to_one: the best where every neuron is taken once."
    ),
    "expert_b": Column("int64", "", "Expert of the second of two models; −1 for weights that every token passes."),
    "neuron_b": Column("int64", "", "MLP unit of the second of two models, from 0."),
    "direction": Column("str", "", "Name of a vector that the user gave."),
    "component": Column("int64", "", "Number of a singular direction; 0 has the largest singular value."),
    "side": Column(
        "category", "", "read or write: what the component listens to or adds; query or key: the two sides of W_QK."
    ),
    "recipient": Column("str", "", "The model whose first blocks run."),
    "donor": Column("str", "", "The tuned model whose last blocks and head run."),
    "kernel": Column("str", "", "How states go from recipient to donor; donor and chance are controls."),
    "keep": Column("int64", "", "How many of the recipient's first blocks run; −1 where none does."),
    "effect": Column("str", "", "What a head does to a relation's targets: promotion or suppression."),
    "src_rank": Column("int64", "", "Place of a source token among those that a head amplifies most; 0 is best."),
    "rank": Column("int64", "", "Place in the list; 0 is best."),
    "token_index": Column("int64", "", "Vocabulary id of the token."),
    "token_string": Column("str", "", "Exact text of the token, leading space kept."),
    "example": Column("int64", "", "Which of the texts, counted from 0."),
    "pos": Column("int64", "tokens", "Which of the text's own tokens, from 0."),
    "dest_pos": Column("int64", "tokens", "Position of the attending token (query), from 0."),
    "src_pos": Column("int64", "tokens", "Position of the attended-from token (key), from 0; −1 where none is meant."),
    "dest_token_index": Column("int64", "", "Vocabulary id of the attending (query) or promoted (OV output) token."),
    "dest_token_string": Column("str", "", "Exact text of the attending or promoted token."),
    "src_token_index": Column("int64", "", "Vocabulary id of the attended-from (key, OV input) token."),
    "src_token_string": Column("str", "", "Exact text of the attended-from token."),
    "value": Column(
        "float32", "as the metric", "What the metric was, or which part or change of it belongs to the row."
    ),
    "score": Column(
        "float32",
        "as the lens's score",
        "The lens's score: an inner product, plain or centred, or a cosine; for pairs under cosine, the bilinear score of "
        "their normalised centred embeddings.",
    ),
    "activation": Column(
        "float32",
        "as at the hook point",
        "How active a unit is at a token: what a neuron's output row is multiplied by, a sub-head's or direction's coordinate, "
        "the length of what a head adds.",
    ),
    "offset": Column("int64", "tokens", "Where a token stands, counted from the target; negative is before it."),
    "saliency": Column("float32", "as the hidden states", "How much a factor's code loses when the token is replaced."),
    "code": Column("float32", "as the hidden states", "How strong a factor is in a hidden state; 0 or more."),
    "amplification": Column(
        "float32", "", "Length of what a head writes for a token, over that of the token's vector."
    ),
    "singular_value": Column(
        "float32", "", "Singular value of the direction, with norms folded as the lens folds them."
    ),
    "similarity": Column("float32", "cosine", "Cosine of two vectors, between −1 and 1."),
    "skew": Column(
        "float32", "", "Third standardised moment of scores over the vocabulary; above 0, the high tail is long."
    ),
    "kurtosis": Column("float32", "", "Excess kurtosis of scores over the vocabulary; 0 for a Gaussian."),
    "explained": Column(
        "float32", "", "Share of a neuron's squared length in the span of its channels up to this one."
    ),
    "n_tokens": Column("int64", "", "How many tokens stand out in a channel; further channels hardly see them."),
    "n_matched": Column("int64", "", "How many layers are matched with the layer of their own number."),
    "n_layers": Column("int64", "", "How many layers both models have that hold the weight."),
    "chance": Column(
        "float32", "layers", "How many layers a random assignment matches with their own number, on average."
    ),
    "correlation": Column(
        "float32",
        "",
        "Pearson correlation over the tokens that two models share; of layers, the mean of its size; of a score and an effect, "
        "Spearman's.",
    ),
    "jaccard": Column("float32", "", "Tokens that two lists share, over the tokens of either; a mean."),
    "recall": Column(
        "float32",
        "",
        "Share found: of a hidden state's top tokens among its parameters' (a mean); of a tag's occurrences.",
    ),
    "share": Column("float32", "", "Share of a direction's top tokens that are words of the commoner sign; a mean."),
    "precision": Column("float32", "", "Share of the occurrences found that have the tag."),
    "f1": Column("float32", "", "Harmonic mean of precision and recall."),
    "accuracy": Column("float32", "", "Share of texts whose class is right."),
    "relation_score": Column(
        "float32", "", "Share of a relation's pairs whose target is among a head's top tokens for the source."
    ),
    "control": Column(
        "float32", "as the row's estimate", "The same with targets shuffled; the mean over all shuffles."
    ),
    "p_value": Column(
        "float32", "", "Share of shuffles that reach what the row found, by the rule that its function states."
    ),
    "logit_change": Column("float32", "logits", "Mean absolute change of the logits of tokens by an intervention."),
    "low": Column("float32", "as the row's estimate", "Lower end of a 95 % interval of the row's estimate."),
    "high": Column("float32", "as the row's estimate", "Upper end of a 95 % interval of the row's estimate."),
    "n": Column("int64", "", "How many observations the row's estimate rests on."),
    "n_left_out": Column(
        "int64", "", "How many pairs were left out: a word of theirs is not one token that the lens reads."
    ),
    "n_vectors": Column("int64", "", "How many hidden states a fit had seen, those that the row measures included."),
    "importance": Column("float32", "as the hidden states", "Mean of a factor's largest codes in a layer."),
    "level": Column(
        "str",
        "",
        "word, pattern or long range, by the rule that `factors.level` states; empty for a factor that is never active.",
    ),
    "peak": Column("float32", "share of the depth", "Where a factor is most important: 0 the first layer, 1 the last."),
    "onset": Column("float32", "share of the depth", "Where a factor first has half of its largest importance."),
    "purity": Column("float32", "", "Share of a factor's strongest targets that are one and the same token."),
    "reach": Column(
        "float32", "tokens", "How far from the target lies what decides a factor's code; NaN if not measured."
    ),
    "objective": Column(
        "float32",
        "",
        "Of factors, half the squared residual plus l1 times the sum of codes, a mean over vectors; of a vocabulary channel, "
        "what it maximises.",
    ),
    "explained_variance": Column(
        "float32", "", "One less the squared residuals over the squared deviations from the mean."
    ),
    "n_active": Column("float32", "", "How many codes are above zero; a mean over vectors."),
    "n_dead": Column("int64", "", "How many factors have been in no code for long."),
    "role": Column(
        "str", "", "prediction, suppression or entropy, by the rules that neuron_statistics states; or empty."
    ),
    "in_norm": Column("float32", "", "Length of a neuron's W_in column, norms folded."),
    "gate_norm": Column("float32", "", "Length of a neuron's W_gate column, norms folded; NaN without a gate."),
    "out_norm": Column("float32", "", "Length of a neuron's W_out row, norms folded."),
    "in_out_similarity": Column("float32", "cosine", "Between a neuron's W_in column and its W_out row."),
    "gate_out_similarity": Column("float32", "cosine", "Between W_gate column and W_out row; NaN without a gate."),
    "in_gate_similarity": Column("float32", "cosine", "Between W_in column and W_gate column; NaN without a gate."),
    "vocab_mean": Column(
        "float32", "cosine", "Mean of a W_out row's cosines with centred embeddings, over the tokens."
    ),
    "vocab_variance": Column("float32", "cosine squared", "Variance of those cosines over the tokens that are read."),
    "vocab_skew": Column("float32", "", "Skew of those cosines: above 0 where few tokens are promoted."),
    "vocab_kurtosis": Column(
        "float32", "", "Kurtosis of those cosines: large where few tokens are meant; normal is 3."
    ),
    "ov_norm": Column("float32", "", "Frobenius norm of a head's W_OV, norms folded."),
    "qk_norm": Column("float32", "", "Frobenius norm of a head's W_QK, norms folded."),
    "ov_effective_rank": Column("float32", "", "Exponential of the entropy of W_OV's singular values."),
    "qk_effective_rank": Column("float32", "", "Exponential of the entropy of W_QK's singular values."),
    "ov_copying": Column(
        "float32", "", "Sum of the full OV circuit's eigenvalues over the sum of their sizes: 1 copies, −1 suppresses."
    ),
    "qk_matching": Column(
        "float32", "", "The same of the full QK circuit: 1 attends to its own token, −1 away from it."
    ),
    "previous_token": Column("float32", "", "Attention to the position before, by place alone; a mean over positions."),
    "first_token": Column("float32", "", "Attention to position 0, by place alone; a mean over positions."),
    "same_position": Column("float32", "", "Attention to the token's own position, by place alone; a mean."),
    "uniform": Column("float32", "", "What attention that is spread evenly would give each of these, a control."),
    "token_token": Column("float32", "", "Share of the scores' mean square in which token meets token (query first)."),
    "token_position": Column("float32", "", "Share in which the query's token meets the key's position."),
    "position_token": Column("float32", "", "Share in which the query's position meets the key's token."),
    "position_position": Column("float32", "", "Share in which position meets position."),
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
    "before": Column("str", "", "The text in front of the target, as far as it is kept."),
    "after": Column("str", "", "The text behind the target, as far as it is kept."),
}
