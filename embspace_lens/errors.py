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


def too_few_positions(model: str, n_positions: int, needed: int) -> EmbspaceError:
    """A model has too few positions to tell the own, the previous and the first position apart."""
    return EmbspaceError(f"{model} has {n_positions} positions; position_heads needs {needed} or more.")


def bad_frequencies(shape: tuple[int, ...], d_vocab: int) -> EmbspaceError:
    """Token frequencies have a wrong shape, or are negative or not finite."""
    return EmbspaceError(
        f"frequencies have shape {shape} or hold values below 0. Give one number of 0 or more for each of {d_vocab:,} tokens."
    )


def zero_frequencies() -> EmbspaceError:
    """Token frequencies are all zero."""
    return EmbspaceError(
        "frequencies are 0 for every token that this lens reads. Give a positive number for one of them at least."
    )


def not_relations(value: object) -> EmbspaceError:
    """Relations are not a mapping."""
    return EmbspaceError(f"relations is a {type(value).__name__}. Give a mapping from names to pairs: {{name: pairs}}.")


def no_pairs(relation: object) -> EmbspaceError:
    """A relation has no pairs."""
    return EmbspaceError(f"The relation {relation!r} has no pairs. Give [(source, target), …] of words or token ids.")


def no_json_files(folder: object) -> EmbspaceError:
    """A folder has no relation files."""
    return EmbspaceError(f"{folder} contains no .json file. Give a folder of relation files, or the files.")


def not_relation_file(file: object) -> EmbspaceError:
    """A file has another format than relations."""
    return EmbspaceError(
        f"{file} does not hold relations. Write [[source, target], …], or {{name: [[source, target], …]}}."
    )


def repeated_relation(file: object, name: str) -> EmbspaceError:
    """Two relations have the same name."""
    return EmbspaceError(
        f"{file} holds the relation {name!r}, but another file has one of this name. Rename one of them."
    )


def not_table(name: str, value: object, example: str) -> EmbspaceError:
    """An argument is not a dataframe."""
    return EmbspaceError(f"{name} is a {type(value).__name__}. Give a table, such as {example}.")


def singular_directions_given() -> EmbspaceError:
    """A table of singular directions was given where components of the model are needed."""
    return EmbspaceError(
        "df holds singular directions, which are vectors and not components of the model. Compute the vectors, give them "
        "names in a column `direction` next to `layer`, and pass vectors={name: vector}."
    )


def no_component_columns(columns: Iterable[object]) -> EmbspaceError:
    """A table's columns name no components."""
    return EmbspaceError(
        f"df has the columns {_listed(columns)}. It needs `layer`, and `neuron`, `head`, `head` and `subhead`, `direction` "
        "or `factor`. df.assign(layer=…) adds a layer."
    )


def not_whole_number(name: str, value: object, row: object) -> EmbspaceError:
    """A key of a table is not a whole number."""
    return EmbspaceError(f"df has {name}={value!r} in row {row!r}, which is not a whole number. Remove such rows.")


def row_without_component(layer: int) -> EmbspaceError:
    """A row of a table names no component."""
    return EmbspaceError(f"A row of df (layer {layer}) names no neuron, head or direction. Remove such rows.")


def missing_vectors() -> EmbspaceError:
    """Rows name directions, and their vectors are missing."""
    return EmbspaceError(
        "The rows name directions or factors, but no vectors are given. Pass vectors={name: vector}, or a tensor with one row "
        "per factor."
    )


def missing_vector(name: object) -> EmbspaceError:
    """One direction's vector is missing."""
    return EmbspaceError(f"vectors has no vector for {name!r}. Add one, or leave out the rows that name it.")


def no_direction(name: object) -> EmbspaceError:
    """A vector is zero or not finite."""
    return EmbspaceError(f"The vector of {name!r} is zero or not finite, so it has no direction.")


def shared_heads(hook: str) -> EmbspaceError:
    """Several values were given for one number that query heads share."""
    return EmbspaceError(
        f"mode gives several values for the same number: query heads share key and value heads at {hook}. Name one head of "
        "each group."
    )


def mode_does_not_fit(shape: tuple[int, ...], needed: tuple[int, ...], hook: str) -> EmbspaceError:
    """Values for an ablation do not broadcast to the activations."""
    return EmbspaceError(f"mode has shape {shape}, which does not broadcast to the activations {needed} at {hook}.")


def bad_mode_shape(shape: tuple[int, ...], n_components: int, are_heads: bool) -> EmbspaceError:
    """Values for an ablation are not one per component."""
    needed = f"[{n_components}, d_head]" if are_heads else f"[{n_components}]"
    return EmbspaceError(
        f"mode has shape {shape} for {n_components} components. Give {needed}, with optional batch and position dimensions in "
        "front, or a single number. Heads need a separate call from other components."
    )


def not_one_vector_per_layer(shape: tuple[int, ...], n_layers: int) -> EmbspaceError:
    """Steering vectors do not match the layers."""
    return EmbspaceError(f"vectors have shape {shape} for {n_layers} layers. Give [d_model], or one row per layer.")


def positions_in_expert() -> EmbspaceError:
    """Positions were given for neurons of an expert."""
    return EmbspaceError(
        "An expert receives only the tokens that are routed to it, without their positions. Leave out positions."
    )


def no_positions_in_expert(hook: str) -> EmbspaceError:
    """Activations of an expert have no positions."""
    return EmbspaceError(
        f"Activations at {hook} are not read: an expert receives only the tokens that are routed to it, without their positions."
    )


def bad_positions(positions: object, n_tokens: int) -> EmbspaceError:
    """Positions are not indices of the tokens."""
    return EmbspaceError(f"positions={positions!r} are not indices of {n_tokens} tokens (0 to {n_tokens - 1}).")


def not_token_ids(dtype: str, shape: tuple[int, ...]) -> EmbspaceError:
    """Tokens are neither ids nor texts."""
    return EmbspaceError(f"tokens are {dtype} of shape {shape}. Give integer ids [batch, pos], or a list of texts.")


def longer_than_context(n_tokens: int, model: str, n_ctx: int) -> EmbspaceError:
    """A sequence is longer than the context window."""
    return EmbspaceError(f"tokens are {n_tokens} long, but the context window of {model} is {n_ctx}. Shorten them.")


def channels_not_written(weight: str) -> EmbspaceError:
    """Channels of a reading weight were given, which a neuron does not write."""
    return EmbspaceError(
        f"These are channels of {weight}. Only channels of W_out can be removed from a neuron's output."
    )


def too_few_texts() -> EmbspaceError:
    """An interval over texts needs two of them."""
    return EmbspaceError("Fewer than two texts have a token. Give more texts.")


def not_result(function: str, value: object, needed: str) -> EmbspaceError:
    """A value is not a result of the host's tool."""
    return EmbspaceError(f"{function} takes {needed}; this is a {type(value).__name__}.")


def axes_do_not_fit(shape: tuple[int, ...], axes: object, options: Iterable[str]) -> EmbspaceError:
    """Axes do not name the dimensions of a tensor."""
    return EmbspaceError(f"The tensor has shape {shape}, and axes={axes!r}. Name {len(shape)} of {', '.join(options)}.")


def repeated_axis(axes: Sequence[str]) -> EmbspaceError:
    """Two dimensions have the same name."""
    return EmbspaceError(f"axes={tuple(axes)!r} name the same dimension twice.")


def unknown_patch_types(count: int) -> EmbspaceError:
    """A stack of patches has an unknown number of types."""
    return EmbspaceError(f"patch_type has {count} types. TransformerLens stacks 5 (patches of heads) or 3 (of blocks).")


def lens_needed_for_shared_heads() -> EmbspaceError:
    """Query heads seem to share key-value heads, and no lens says which."""
    return EmbspaceError(
        "Patches of the last head's keys and values have no effect, so query heads seem to share key-value heads. Pass lens=…"
    )


def not_composition_scores(scores: object) -> EmbspaceError:
    """Scores have another shape than composition scores."""
    shape = f" of shape {tuple(shape)}" if (shape := getattr(scores, "shape", None)) is not None else ""
    return EmbspaceError(
        f"scores is a {type(scores).__name__}{shape}. Give CompositionScores, or a tensor [layer, head, layer, head]."
    )


def bad_attribution_shape(shape: tuple[int, ...]) -> EmbspaceError:
    """An attribution has too many dimensions."""
    return EmbspaceError(
        f"The attribution has shape {shape}. It may have dimensions for labels, examples and positions."
    )


def unknown_label(label: str) -> EmbspaceError:
    """A label of an attribution is not one of TransformerLens's."""
    return EmbspaceError(f"label {label!r} is not a known label of TransformerLens, such as 'L3H7' or '3_attn_out'.")


def no_keys() -> EmbspaceError:
    """No columns identify a component."""
    return EmbspaceError("on is empty. Give the keys of a component, such as ('layer', 'head').")


def missing_column(name: str, column: str, columns: Iterable[object]) -> EmbspaceError:
    """A table lacks a column."""
    return EmbspaceError(f"{name} has no column {column!r}. Its columns are {_listed(columns)}.")


def scores_not_numeric(name: str, column: str, dtype: object) -> EmbspaceError:
    """A column does not hold numbers."""
    return EmbspaceError(f"Column {column!r} of {name} has dtype {dtype}. Name a column of numbers in scores=.")


def too_few_components(n_components: int, minimum: int) -> EmbspaceError:
    """Two tables share too few components."""
    return EmbspaceError(
        f"{n_components} components are in both tables; a rank correlation needs at least {minimum}. Do the keys have the same "
        "types in both?"
    )


def constant_score(name: str, n_components: int) -> EmbspaceError:
    """A score is the same for all components."""
    return EmbspaceError(f"The {name} score is the same for all {n_components} components, so it has no ranks.")


# -- comparing models and evidence


# -- factors and their site


# -- display, plots and reports


# -- command line
