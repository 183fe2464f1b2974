"""EmbspaceError, and the sentences it speaks: the value, the truth, the way out.

The helpers return the error and the caller raises it, so that tracebacks end where the mistake was seen.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class EmbspaceError(ValueError):
    """Something asked of the package that it cannot do; the message says the value, the truth and the way out."""


def _listed(options: Iterable[object]) -> str:
    return ", ".join(map(repr, options))


def choice(name: str, value: object, options: Iterable[str]) -> EmbspaceError:
    """Say that `value` is not among `options`, and guess what was meant."""
    options = list(options)
    guess = get_close_matches(str(value), options, n=1)
    hint = f" Did you mean {guess[0]!r}?" if guess else ""
    return EmbspaceError(f"{name}={value!r} is not one of {_listed(options)}.{hint}")


def out_of_range(name: str, value: object, model: str, count: int, plural: str) -> EmbspaceError:
    """Say that an index is not one of the model's `count` things."""
    return EmbspaceError(f"{name}={value!r} is out of range: {model} has {count} {plural} (0 to {count - 1}).")


def not_selector(name: str, value: object) -> EmbspaceError:
    """Say what a selector may be."""
    return EmbspaceError(
        f"{name}={value!r} does not select anything. Give an int, a range, a slice, a sequence of ints, or None for all."
    )


def blocks_lack(model: str, layers: Sequence[int], sublayer: str, having: Sequence[int]) -> EmbspaceError:
    """Some blocks have no attention, or no MLP."""
    noun = {"attn": "attention", "mlp": "MLP"}[sublayer]
    blocks = f"block {layers[0]} has" if len(layers) == 1 else f"blocks {', '.join(map(str, layers))} have"
    rest = f"Blocks with one: {', '.join(map(str, having))}." if having else "No block of it has one that can be read."
    return EmbspaceError(f"{model}'s {blocks} no {noun}. {rest}")


def no_readable_blocks(model: str, is_encoder_decoder: bool) -> EmbspaceError:
    """A model has no blocks that can be read."""
    kind = "an encoder–decoder model" if is_encoder_decoder else "a model without blocks"
    return EmbspaceError(f"{model} is {kind}: only its W_E and W_U can be read.")


def no_experts(model: str, expert: object) -> EmbspaceError:
    """Experts were selected in a model that has none."""
    return EmbspaceError(f"expert={expert!r} selects nothing: {model} has no mixture of experts.")


def no_such_expert(model: str, layer: int, expert: object, experts: Sequence[int]) -> EmbspaceError:
    """A block does not have this expert."""
    listed = ", ".join(map(str, experts))
    return EmbspaceError(f"expert={expert!r} is not an expert of block {layer} of {model}. Its experts: {listed}.")


def not_gated(model: str, layer: int) -> EmbspaceError:
    """A block's MLP has no W_gate."""
    return EmbspaceError(f"{model}'s MLP in block {layer} is not gated: it has no W_gate.")


def no_hook(model: str, hook: str) -> EmbspaceError:
    """The model has no hook point of this name."""
    return EmbspaceError(f"{model} has no hook point {hook}.")


def no_neuron_hook(model: str, layer: int) -> EmbspaceError:
    """A mixture of experts has no hook point for neurons."""
    return EmbspaceError(
        f"The mixture of experts in block {layer} of {model} has no hook point for neurons. "
        f"blocks.{layer}.hook_mlp_out holds the sum of its experts' outputs."
    )


def resid_mid_of_bridge() -> EmbspaceError:
    """An edit of hook_resid_mid on a TransformerBridge would reach the MLP alone."""
    return EmbspaceError(
        "An edit of hook_resid_mid of a TransformerBridge reaches the MLP and not the residual stream after it. "
        "Use hook='hook_attn_out'."
    )


def no_resid_post(model: str, layer: int) -> EmbspaceError:
    """Edits of the residual stream after the last block are discarded."""
    return EmbspaceError(
        f"Edits of the residual stream after the last block of {model} are discarded. "
        f"Use hook='hook_mlp_out', or a layer up to {layer - 1}."
    )


def not_integer(
    name: str, value: object, minimum: int | None = None, maximum: int | None = None, count_of: str = ""
) -> EmbspaceError:
    """An argument is not an integer, or out of bounds."""
    bounds = _bounds(minimum, maximum)
    counted = f", the number of {count_of}" if count_of and maximum is not None else ""
    return EmbspaceError(f"{name}={value!r} is not an integer{bounds}{counted}.")


def not_number(
    name: str,
    value: object,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> EmbspaceError:
    """An argument is not a finite number, or out of bounds."""
    bounds = f" above {above:g}" if above is not None else _bounds(minimum, maximum)
    return EmbspaceError(f"{name}={value!r} is not a finite number{bounds}.")


def _bounds(minimum: float | None, maximum: float | None) -> str:
    if minimum is None or maximum is None:
        return (
            f" of {minimum:,} or more" if minimum is not None else f" up to {maximum:,}" if maximum is not None else ""
        )
    return f" from {minimum:,} to {maximum:,}"


def bad_width(width: int, model: str, d_model: int, what: str = "vectors") -> EmbspaceError:
    """Say that vectors do not belong to this residual stream."""
    return EmbspaceError(
        f"{what} have width {width}, but {model}'s residual stream has d_model={d_model}. Are they from another model?"
    )


def not_tensor(name: str, reason: object) -> EmbspaceError:
    """Values cannot be made a tensor."""
    return EmbspaceError(f"{name} cannot be made a tensor: {reason}")


def different_token_counts(model: str, n_read: int, n_write: int) -> EmbspaceError:
    """W_E and W_U have different numbers of tokens."""
    return EmbspaceError(
        f"W_E of {model} has {n_read:,} tokens and W_U has {n_write:,}. Pass vocabulary= with ids that both have."
    )


def bad_score_count(n_scores: int, model: str, d_vocab: int) -> EmbspaceError:
    """There is not one score per token."""
    return EmbspaceError(f"scores have {n_scores:,} columns, but {model} has {d_vocab:,} tokens.")


def token_not_read(token: object, n_tokens: int) -> EmbspaceError:
    """A token is outside the lens's vocabulary."""
    return EmbspaceError(f"token {token!r} is not among the {n_tokens:,} tokens that this lens reads.")


def not_finite(what: str) -> EmbspaceError:
    """Say that there are NaNs or infinities."""
    return EmbspaceError(f"NaN or infinite values in {what}. Rankings would be meaningless; mend it first.")


def unreadable(weight: str, model: str, reason: str) -> EmbspaceError:
    """Say why a weight cannot be read as a matrix."""
    return EmbspaceError(
        f"{weight} of {model} cannot be read: {reason}. Load the model with real, unquantised weights."
    )


def unsupported(what: str, reason: str) -> EmbspaceError:
    """Say that an architecture would be read wrongly, and is therefore not read."""
    return EmbspaceError(f"{what} is not read: {reason}.")


def not_one_token(text: str, pieces: Sequence[str], caller: str, guess: str | None) -> EmbspaceError:
    """Say that a text is several tokens, or none."""
    hint = f" Did you mean {guess!r}?" if guess is not None else ""
    if len(pieces) < 2:
        return EmbspaceError(f'"{text}" is not a token of this vocabulary; {caller} takes one.{hint}')
    return EmbspaceError(
        f'"{text}" is {len(pieces)} tokens in this vocabulary ({_listed(pieces)}); {caller} takes one.{hint}'
    )


def no_tokenizer(model: str, caller: str) -> EmbspaceError:
    """Say that words need a tokenizer."""
    return EmbspaceError(
        f"{model} has no tokenizer, so {caller} cannot look up words. Give a token id, or EmbeddingLens(model, tokenizer=…)."
    )


def missing_extra(package: str, extra: str) -> EmbspaceError:
    """Say which extra installs an optional package."""
    return EmbspaceError(f"This needs {package}, which is not installed: pip install 'embspace-lens[{extra}]'.")


def no_heads(head: object, weight: str) -> EmbspaceError:
    """Heads were selected for a weight that has none."""
    return EmbspaceError(f"head={head!r} selects nothing: {weight} has no heads.")


def not_directions(shape: tuple[int, ...]) -> EmbspaceError:
    """Vectors are not a list of directions."""
    return EmbspaceError(f"vectors have shape {shape}. Give [n, d_model], one direction per row.")


def wrong_count_of_names(n_names: int, n_vectors: int) -> EmbspaceError:
    """There is not one name per vector."""
    return EmbspaceError(f"names has {n_names} entries for {n_vectors} vectors.")


def repeated_name(name: str) -> EmbspaceError:
    """Two directions have the same name."""
    return EmbspaceError(
        f"names holds {name!r} more than once. Rows of the table are identified by their direction's name."
    )


# -- files and loading


# -- weights, forward passes and demo models


# -- circuits and interventions


# -- comparing models and evidence


# -- factors and their site


# -- display, plots and reports


def not_a_table(columns: Sequence[str]) -> EmbspaceError:
    """A frame is not a table of this package."""
    return EmbspaceError(
        "This is not one of EmbeddingLens's tables: it lacks token_index, token_string and score, or pairs of tokens. "
        f"Its columns are {_listed(columns[:12]) or 'none'}."
    )


def wrong_kind(caller: str, accepted: Sequence[str], given: str) -> EmbspaceError:
    """A table is of another kind than the function accepts."""
    return EmbspaceError(f"{caller} takes a table of {', '.join(accepted)}; this one is of {given}.")


def missing_columns(caller: str, missing: Sequence[str]) -> EmbspaceError:
    """A table lacks columns that a plot needs."""
    noun = "a column" if len(missing) == 1 else "columns"
    return EmbspaceError(f"{caller} needs {noun} {_listed(missing)}, which this table does not have.")


def empty_table() -> EmbspaceError:
    """A table without rows was given to a plot."""
    return EmbspaceError("The table is empty: there is nothing to draw.")


def too_many_groups(caller: str, limit: int, noun: str, count: int, remedy: str) -> EmbspaceError:
    """A table holds more neurons, heads, vectors or factors than a plot has room for."""
    return EmbspaceError(f"{caller} draws at most {limit} {noun} at a time, and this table holds {count:,}. {remedy}")


def not_numeric(caller: str, column: str) -> EmbspaceError:
    """A column to be drawn does not hold numbers."""
    return EmbspaceError(f"{caller} draws numbers, and column {column!r} does not hold numbers.")


def no_finite_number(column: str) -> EmbspaceError:
    """All values of a column to be drawn are NaN or infinite."""
    return EmbspaceError(f"Column {column!r} holds no finite number.")


def several_weights(caller: str, weights: Sequence[str]) -> EmbspaceError:
    """A plot of one weight was given a table of several."""
    return EmbspaceError(
        f"{caller} draws one weight, and this table holds {', '.join(weights)}. Select one: df[df.weight == {weights[0]!r}]."
    )


def several_values_per_head(column: str) -> EmbspaceError:
    """A map of heads was given several rows of one head."""
    return EmbspaceError(
        f"A head has several values of {column!r}. Give one row per head, for example by df.groupby(['layer', 'head'])."
    )


def too_few_tokens(caller: str, minimum: int, count: int) -> EmbspaceError:
    """There are too few different tokens to lay out."""
    return EmbspaceError(f"{caller} needs {minimum} tokens or more, and was given {count}. Raise k.")


def no_weights_to_draw() -> EmbspaceError:
    """An empty list of weights was given to a plot."""
    return EmbspaceError("weights=[] leaves nothing to draw. Name a weight, or give None for all.")


def alignment_missing() -> EmbspaceError:
    """The table of an alignment was to be drawn without the alignment."""
    return EmbspaceError(
        "The plot of an alignment needs its names and its assignment, too. Call alignment.plot(), "
        "or plot(alignment=alignment) on its table."
    )


def word_not_read(word: str, n_tokens: int) -> EmbspaceError:
    """A word is a token that the lens does not read."""
    return EmbspaceError(
        f"word={word!r} is not among the {n_tokens:,} tokens that this lens reads. "
        "Choose another word, or a lens that reads all tokens."
    )


# -- command line
