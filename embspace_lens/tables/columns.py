"""The glossary: every column that a table of this package may have, in the order in which tables show them.

The columns of a table depend on the function alone, never on its arguments or on the data. The one exception is `expert`,
which depends on the architecture. `frames.tidy` makes every table from this glossary.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """A column's dtype, its unit (empty for counts, names and indices) and its meaning."""

    dtype: str
    unit: str
    meaning: str


WEIGHTS = ("W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O", "W_OV", "W_QK", "W_E", "W_U", "W_pos")

GLOSSARY: dict[str, Column] = {
    "experiment": Column("str", "", "Name of a paper's table or figure, such as A:keep-k."),
    "measure": Column("str", "", "What one row of an experiment measures."),
    "model": Column("str", "", "Name of the model on which the row was measured."),
    "target": Column(
        "str",
        "",
        "Hidden state that is compared: layer (output of the row's block) or final (output of the last block).",
    ),
    "source": Column("str", "", "Origin of the vectors: gaussian, W_out, or a name that the user gave."),
    "word": Column("str", "", "A word with several senses, in lower case."),
    "tag": Column(
        "str",
        "",
        "One sense of the word, as named in the tagged text; it is compared with all other senses of the word.",
    ),
    "method": Column(
        "str",
        "",
        "How the sense is predicted: factor (a threshold on the code of one factor), code or state (logistic regression on that code, or on the hidden state), tagger, or the control (majority).",
    ),
    "rater_a": Column("str", "", "Name of the first of two raters."),
    "rater_b": Column("str", "", "Name of the second of two raters."),
    "factor": Column("int64", "", "Index of a factor in its dictionary, from 0; −1 if the method uses no factor."),
    "feature": Column("int64", "", "Index of the feature that is described, in its dictionary, from 0."),
    "relation": Column("str", "", "Name of a relation between words, such as antonyms."),
    "circuit": Column(
        "str",
        "",
        "The path from one feature to another: direct (the residual stream alone), ov or qk (through a head).",
    ),
    "metric": Column(
        "str", "", "What a forward pass was scored by: a name that the user gave, or logit, log_prob, probability."
    ),
    "patch_type": Column(
        "str", "", "Which activation of a head or block was patched: out, q, k, v …; empty if not stated."
    ),
    "composition": Column("str", "", "Q, K or V: the input through which a head reads the output of an earlier head."),
    "src_layer": Column("int64", "", "Block of the earlier head, of two heads that compose."),
    "src_head": Column("int64", "", "Index of the earlier head, of two heads that compose."),
    "row": Column("int64", "", "Position, in the table that was given, of the row whose component is read; from 0."),
    "layer": Column("int64", "", "Block number, as in blocks.{layer}; −1 for the embedding and unembedding."),
    "node": Column(
        "str", "", "Part of the forward pass: embed, attn_out, mlp_out, head, neuron, resid_pre … or remainder."
    ),
    "expert": Column("int64", "", "Expert of a mixture of experts, from 0; −1 for a dense MLP or a shared expert."),
    "head": Column("int64", "", "Query head of the block, from 0."),
    "neuron": Column("int64", "", "MLP neuron of the block (or of the expert), from 0."),
    "subhead": Column("int64", "", "Index within d_head, from 0: one column of W_Q, W_K or W_V, one row of W_O."),
    "weight": Column("category", "", "Name of the parameter in TransformerLens (W_in, W_OV …)."),
    "channel": Column("int64", "", "Index of a neuron's vocabulary channel; channel 0 is computed first."),
    "pair": Column("str", "", "Two weights whose directions are compared one to one, such as W_in-W_out."),
    "recipient": Column("str", "", "The model whose first blocks run in a stitched model."),
    "donor": Column("str", "", "The tuned model whose last blocks and head run in a stitched model."),
    "inverse": Column(
        "str",
        "",
        "Right inverse of the embedding matrix: transpose or pinv; in stitched models how states are mapped to the donor, or a control.",
    ),
    "k": Column("int64", "", "How many entries of a vector of scores are kept."),
    "sample": Column(
        "str",
        "",
        "What is measured: the claim (paired, aligned, own, repeated) or a control (shuffled, permuted, other, random).",
    ),
    "item": Column("int64", "", "Number of an item in a sheet for raters, from 0."),
    "layer_a": Column("int64", "", "Block of the first of two models."),
    "layer_b": Column("int64", "", "Block of the second of two models."),
    "expert_a": Column("int64", "", "Expert of the first of two models; −1 for a dense MLP or a shared expert."),
    "neuron_a": Column("int64", "", "MLP neuron of the first of two models, from 0."),
    "match": Column(
        "category", "", "nearest: the most similar neuron; one_to_one: the best assignment that uses every neuron once."
    ),
    "expert_b": Column("int64", "", "Expert of the second of two models; −1 for a dense MLP or a shared expert."),
    "neuron_b": Column("int64", "", "MLP neuron of the second of two models, from 0."),
    "direction": Column("str", "", "Name of a vector that the user gave."),
    "component": Column("int64", "", "Index of a singular direction; 0 has the largest singular value."),
    "side": Column(
        "category",
        "",
        "read or write: whether the direction reads from or writes to the residual stream; query or key: the two sides of W_QK.",
    ),
    "keep": Column("int64", "", "How many of the recipient's first blocks run; −1 for a control without them."),
    "effect": Column("str", "", "What a head does to the targets of a relation: promotion or suppression."),
    "src_rank": Column("int64", "", "Rank of a source token by its amplification; 0 is best."),
    "rank": Column("int64", "", "Position in the sorted list; 0 is best."),
    "token_index": Column(
        "int64", "", "Vocabulary id of the token; −1 if a search was for several tokens or for a vector."
    ),
    "token_string": Column(
        "str",
        "",
        "Exact text of the token, leading space kept; the texts of several tokens without spaces, joined by +; or vector.",
    ),
    "dictionary": Column(
        "str", "", "Name of the dictionary that the row's feature_index is from; empty if the row is about a token."
    ),
    "feature_index": Column(
        "int64", "", "Index of a feature in its dictionary, from 0; −1 if the row is about a token instead."
    ),
    "feature_label": Column(
        "str", "", "Label of the feature, its index by default; empty if the row is about a token."
    ),
    "example": Column("int64", "", "Index of the text, from 0."),
    "variant": Column(
        "str", "", "Form of a constructed sentence: kept or broken (the pattern), or shuffled (the control)."
    ),
    "half": Column("int64", "", "Half of a text that is made of two sequences: 0 is the first, 1 the second."),
    "pos": Column(
        "int64",
        "tokens",
        "Position in the run, from 0, special tokens such as BOS included; −1 if the row is about no position.",
    ),
    "dest_pos": Column(
        "int64", "tokens", "Position of the attending token (query) in the run, from 0, special tokens included."
    ),
    "src_pos": Column(
        "int64",
        "tokens",
        "Position of the attended-to token (key) in the run, from 0, special tokens included; −1 if the row is about no position.",
    ),
    "dest_token_index": Column(
        "int64",
        "",
        "Vocabulary id of the attending (query) or promoted (OV output) token; −1 if the row is not a pair of tokens.",
    ),
    "dest_token_string": Column(
        "str", "", "Exact text of the attending or promoted token; empty if the row is not a pair."
    ),
    "dest_feature_index": Column(
        "int64", "", "Index of the feature that attends (query), or that reads what was moved; −1 if it is a token."
    ),
    "dest_feature_label": Column(
        "str", "", "Label of the feature that attends, or that reads; empty if it is a token."
    ),
    "src_token_index": Column(
        "int64", "", "Vocabulary id of the attended-to (key, OV input) token; −1 if the row is not a pair of tokens."
    ),
    "src_token_string": Column("str", "", "Exact text of the attended-to token; empty if the row is not a pair."),
    "src_feature_index": Column(
        "int64", "", "Index of the feature that is attended to (key, OV input), or that writes; −1 if it is a token."
    ),
    "src_feature_label": Column(
        "str", "", "Label of the feature that is attended to, or that writes; empty if it is a token."
    ),
    "value": Column(
        "float32", "as the metric", "The metric, its change, or the part of it that is attributed to the row."
    ),
    "score": Column(
        "float32",
        "as the lens's score",
        "The lens's score: an inner product, plain or centred, or a cosine. The cosine score of a pair is the bilinear form of normalised centred embeddings, divided by the form's largest singular value: between −1 and 1.",
    ),
    "z_score": Column(
        "float32",
        "standard deviations",
        "The score minus the mean of a pool of the best scores, divided by the pool's standard deviation.",
    ),
    "is_outlier": Column(
        "bool", "", "Whether the z-score is above the threshold; below its negative for the lowest scores."
    ),
    "era": Column(
        "float32",
        "as the score",
        "Expected residual attribution: the score times the mean of the source's activation where the target is active.",
    ),
    "twera": Column(
        "float32",
        "as the score",
        "Target-weighted expected residual attribution: the score times the source's mean activation, weighted by the target's; NaN for a target that is never active.",
    ),
    "frequency": Column("float32", "", "Share of tokens at which a feature is active."),
    "mean_activation": Column("float32", "", "Mean activation of a feature over all tokens, with zeros."),
    "joint_frequency": Column("float32", "", "Share of tokens at which both features of a pair are active."),
    "mean_product": Column("float32", "", "Mean over tokens of the product of the activations of a pair of features."),
    "mean_where_active": Column(
        "float32",
        "",
        "Mean over all tokens of the source's activation where the target is active, and 0 elsewhere.",
    ),
    "token_rank": Column(
        "int64",
        "",
        "How many tokens a component scores higher than the searched token; −1 for several tokens, a vector or a head.",
    ),
    "activation": Column(
        "float32",
        "as at the hook point",
        "Activation at a token: the factor on a neuron's output row, the coordinate of a sub-head or direction, or the norm of a head's output.",
    ),
    "is_legible": Column(
        "bool",
        "",
        "Whether the feature's encoder reads at least one token that is an outlier, and that activates it if this was tested.",
    ),
    "activation_change": Column(
        "float32", "as at the hook point", "Absolute change of a neuron's activation under an intervention; a mean."
    ),
    "offset": Column("int64", "tokens", "Position of a token relative to the target; negative before it."),
    "saliency": Column(
        "float32", "as the hidden states", "How much a factor's code decreases when the token is replaced."
    ),
    "code": Column("float32", "as the hidden states", "Activation of a factor in a hidden state; 0 or more."),
    "amplification": Column(
        "float32", "", "Norm of a head's output for a token, divided by the norm of the token's vector."
    ),
    "singular_value": Column(
        "float32", "", "Singular value of the direction; norms are folded into the weight as in the lens."
    ),
    "similarity": Column("float32", "cosine", "Cosine similarity of two vectors, between −1 and 1."),
    "skew": Column(
        "float32", "", "Skewness of scores over the vocabulary; above 0 if the tail of high scores is longer."
    ),
    "kurtosis": Column("float32", "", "Excess kurtosis of scores over the vocabulary; 0 for a normal distribution."),
    "explained": Column("float32", "", "Share of a neuron's squared norm in the span of its channels up to this one."),
    "n_tokens": Column(
        "int64", "", "How many tokens stand out in a channel; they are masked for the channels after it."
    ),
    "n_nearest": Column("int64", "", "How many layers have the layer of the same number as their nearest layer."),
    "n_matched": Column(
        "int64", "", "How many layers the one-to-one assignment matches with the layer of the same number."
    ),
    "n_layers": Column("int64", "", "How many layers have the weight in both models."),
    "chance": Column(
        "float32",
        "layers",
        "How many layers a random assignment matches with the layer of the same number, on average.",
    ),
    "correlation": Column(
        "float32",
        "",
        "Pearson correlation over the tokens that two models share; between layers, the mean absolute value; between a score and an effect, Spearman correlation.",
    ),
    "jaccard": Column(
        "float32", "", "Jaccard index of two token lists: shared tokens divided by tokens in either; a mean."
    ),
    "recall": Column(
        "float32",
        "",
        "Share of a hidden state's top tokens among the top tokens of its parameters (a mean); or share of a tag's occurrences that are predicted.",
    ),
    "share": Column(
        "float32",
        "",
        "Share of a direction's top tokens that are words of the more frequent sentiment, of contexts that follow a rule, or of items that two raters label equally; a mean.",
    ),
    "precision": Column("float32", "", "Share of the predicted occurrences that have the tag."),
    "f1": Column("float32", "", "F1 score: the harmonic mean of precision and recall."),
    "accuracy": Column("float32", "", "Share of texts that are classified correctly."),
    "relation_score": Column(
        "float32", "", "Share of a relation's pairs whose target is among a head's top tokens for the source."
    ),
    "matching": Column(
        "float32",
        "",
        "Share of tokens that are among the best for themselves in the scores of a later head's queries with what an earlier head writes.",
    ),
    "loss": Column("float32", "nats", "Loss of the prediction of a token: minus the log of its probability."),
    "gain": Column(
        "float32", "nats", "How much lower the loss is after a repetition than after the row's control; a mean."
    ),
    "control": Column(
        "float32",
        "as the row's estimate",
        "The same estimate for the control that the function's docstring names, such as shuffled targets; a mean.",
    ),
    "kappa": Column(
        "float32", "", "Cohen's kappa of two raters: 1 if they agree on all items, 0 if as often as by chance."
    ),
    "published": Column("float32", "as the value", "The value that the paper reports for its own model; NaN if none."),
    "published_control": Column("float32", "as the value", "The control that the paper reports; NaN if none."),
    "p_value": Column(
        "float32",
        "",
        "Share of shuffles that score at least as high as the row; the function's docstring states the exact rule.",
    ),
    "logit_change": Column(
        "float32", "logits", "Absolute change of the logits of tokens under an intervention; a mean."
    ),
    "low": Column("float32", "as the row's estimate", "Lower end of the 95 % interval of the row's estimate."),
    "high": Column("float32", "as the row's estimate", "Upper end of the 95 % interval of the row's estimate."),
    "code_from": Column(
        "float32",
        "as the hidden states",
        "Lower end of a bin of a histogram of codes; the upper end is √2 times as large.",
    ),
    "n": Column("int64", "", "How many observations the row's estimate is computed from."),
    "n_left_out": Column(
        "int64",
        "",
        "How many pairs were left out, because one of their words is not a single token that the lens reads.",
    ),
    "n_vectors": Column("int64", "", "How many hidden states were used for fitting up to and including this row."),
    "importance": Column("float32", "as the hidden states", "Mean of a factor's largest codes in a layer."),
    "level": Column(
        "str",
        "",
        "word, pattern or long range where the reach was measured; early, middle or late elsewhere; empty for a factor that is never active. The rule is in `factors.level`.",
    ),
    "peak": Column(
        "float32", "share of the depth", "Depth at which a factor is most important: 0 is the first layer, 1 the last."
    ),
    "onset": Column(
        "float32", "share of the depth", "Depth at which a factor first reaches half of its largest importance."
    ),
    "purity": Column(
        "float32",
        "",
        "Share of a factor's strong contexts, those with at least half of its largest code, that have its most frequent target.",
    ),
    "sharpness": Column(
        "float32",
        "",
        "How concentrated the targets of a factor's strong contexts are: 1 minus their entropy divided by its largest value; 1 if all are the same token.",
    ),
    "reach": Column(
        "float32",
        "tokens",
        "Distance from the target of the tokens that determine a factor's code; NaN if not measured.",
    ),
    "n_contexts": Column(
        "int64", "", "How many strong contexts of the factor the purity and the sharpness are computed from."
    ),
    "n_texts": Column("int64", "", "How many different texts these contexts are from."),
    "objective": Column(
        "float32",
        "",
        "For factors: half the squared residual plus l1 times the sum of codes, a mean over vectors. For a vocabulary channel: the function that is maximised.",
    ),
    "explained_variance": Column(
        "float32", "", "One minus the squared residuals divided by the squared deviations from the mean."
    ),
    "n_active": Column("float32", "", "How many codes are above zero; a mean over vectors."),
    "n_dead": Column("int64", "", "How many factors have been inactive for a long time."),
    "role": Column(
        "str", "", "prediction, suppression or entropy, by the rules of `neuron_statistics`; empty for other neurons."
    ),
    "in_norm": Column("float32", "", "Norm of a neuron's W_in column, norms folded."),
    "gate_norm": Column("float32", "", "Norm of a neuron's W_gate column, norms folded; NaN without a gate."),
    "out_norm": Column("float32", "", "Norm of a neuron's W_out row, norms folded."),
    "in_out_similarity": Column("float32", "cosine", "Cosine similarity of a neuron's W_in column and W_out row."),
    "gate_out_similarity": Column(
        "float32", "cosine", "Cosine similarity of a neuron's W_gate column and W_out row; NaN without a gate."
    ),
    "in_gate_similarity": Column(
        "float32", "cosine", "Cosine similarity of a neuron's W_in column and W_gate column; NaN without a gate."
    ),
    "vocab_mean": Column(
        "float32", "cosine", "Mean over tokens of the cosine between a W_out row and the centred embeddings."
    ),
    "vocab_variance": Column(
        "float32",
        "cosine squared",
        "Variance over tokens of the cosine between a W_out row and the centred embeddings.",
    ),
    "vocab_skew": Column(
        "float32", "", "Skewness over tokens of the same cosine; above 0 if few tokens are strongly promoted."
    ),
    "vocab_kurtosis": Column(
        "float32",
        "",
        "Kurtosis over tokens of the same cosine; large if few tokens stand out, 3 for a normal distribution.",
    ),
    "ov_norm": Column("float32", "", "Frobenius norm of a head's W_OV, norms folded."),
    "qk_norm": Column("float32", "", "Frobenius norm of a head's W_QK, norms folded."),
    "ov_effective_rank": Column(
        "float32", "", "Effective rank of W_OV: the exponential of the entropy of its singular values."
    ),
    "qk_effective_rank": Column(
        "float32", "", "Effective rank of W_QK: the exponential of the entropy of its singular values."
    ),
    "ov_copying": Column(
        "float32",
        "",
        "Sum of the eigenvalues of the full OV circuit, divided by the sum of their absolute values: 1 for a head that copies, −1 for one that suppresses.",
    ),
    "qk_matching": Column(
        "float32",
        "",
        "The same ratio for the full QK circuit: 1 for a head that attends to equal tokens, −1 for one that attends to them least.",
    ),
    "previous_token": Column(
        "float32", "", "Attention to the previous position, from positions alone; a mean over positions."
    ),
    "first_token": Column("float32", "", "Attention to position 0, from positions alone; a mean over positions."),
    "same_position": Column(
        "float32", "", "Attention to the token's own position, from positions alone; a mean over positions."
    ),
    "copied": Column(
        "float32",
        "",
        "Share of words that rank below the most attended word in what a head adds to the logits, measured; a mean, 0.5 by chance.",
    ),
    "attends_previous": Column("float32", "", "Attention to the previous position, measured on random words; a mean."),
    "attends_first": Column("float32", "", "Attention to position 0, measured on random words; a mean."),
    "attends_duplicate": Column(
        "float32", "", "Attention to the earlier occurrence of the query's word, measured on a repetition; a mean."
    ),
    "attends_induction": Column(
        "float32",
        "",
        "Attention to the word after the earlier occurrence of the query's word, measured on a repetition; a mean.",
    ),
    "uniform": Column("float32", "", "The same attention if it were uniform over positions; a control."),
    "token_token": Column("float32", "", "Share of the scores' mean square from pairs of query token and key token."),
    "token_position": Column(
        "float32", "", "Share of the scores' mean square from pairs of query token and key position."
    ),
    "position_token": Column(
        "float32", "", "Share of the scores' mean square from pairs of query position and key token."
    ),
    "position_position": Column(
        "float32", "", "Share of the scores' mean square from pairs of query position and key position."
    ),
    "rows": Column("int64", "", "First dimension of the weight, without the dimensions of heads and experts."),
    "columns": Column("int64", "", "Second dimension of the weight, without the dimensions of heads and experts."),
    "n_heads": Column("int64", "", "How many heads the stored weight is split into; 0 if it is not split."),
    "norm": Column("float32", "", "Frobenius norm of the effective weight, all heads together."),
    "dtype": Column("str", "", "Precision in which the model stores the weight."),
    "folded": Column(
        "str", "", "Which norm's gain the lens folded in, and whether it centred the weight; empty for none."
    ),
    "label": Column(
        "str", "", "The best tokens of a direction or head as displayed, best first; for reading, not for computing."
    ),
    "note": Column(
        "str",
        "",
        "Operations between the weight and the residual stream that no weight contains, such as caps and scales; or why the weight cannot be read.",
    ),
    "before": Column("str", "", "The text before the target, as far as it is stored."),
    "after": Column("str", "", "The text after the target, as far as it is stored."),
}
