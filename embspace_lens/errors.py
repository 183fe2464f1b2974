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


def not_transformer_lens(kind: str) -> EmbspaceError:
    """The object is not a TransformerLens model."""
    return EmbspaceError(
        f"{kind} is not a TransformerLens model. Wrap it with TransformerBridge.boot_transformers(name), "
        "or use EmbeddingLens.from_pretrained(name)."
    )


def no_weight(weight: str, model: str) -> EmbspaceError:
    """The model has no embedding or no unembedding."""
    return EmbspaceError(f"{model} has no {weight}.")


def no_positions(model: str) -> EmbspaceError:
    """The model has no learned position embeddings."""
    return EmbspaceError(f"{model} has no W_pos: its positions are not learned embeddings.")


def wrong_stream_width(weight: str, model: str, width: int, d_model: int) -> EmbspaceError:
    """A projection lies between the residual stream and an embedding."""
    reason = f"its width is {width}, the residual stream has d_model={d_model}, and a projection lies between them"
    return unsupported(f"{weight} of {model}", reason)


def latent_attention(weight: str, model: str) -> EmbspaceError:
    """Keys and values are compressed, so that heads have no W_K and W_V of their own."""
    return unsupported(f"{weight} of {model}", "multi-head latent attention compresses its keys and values")


def falcon_heads(weight: str, model: str) -> EmbspaceError:
    """TransformerLens splits the fused weights of this Falcon model incorrectly."""
    reason = "TransformerLens splits its fused query, key and value weights incorrectly (new_decoder_architecture)"
    return unsupported(f"{weight} of {model}", reason)


def no_attribute(weight: str, model: str, module: str) -> EmbspaceError:
    """TransformerLens's module has no attribute for the weight."""
    return unsupported(f"{weight} of {model}", f"TransformerLens's {module} has no such attribute")


def unexpected_shape(weight: str, model: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """A weight does not have the shape of its kind."""
    return unsupported(f"{weight} of {model}", f"its shape is {shape}, which is not {expected}")


def unknown_storage(experts: str, module: str) -> EmbspaceError:
    """A mixture stores its experts in a way that was not checked."""
    return unsupported(experts, f"the way in which {module} stores them is unknown")


def no_first_mlp(model: str) -> EmbspaceError:
    """The first block has no MLP."""
    return EmbspaceError(f"{model} has no MLP in its first block. Pass first_mlp=False.")


def first_mlp_not_callable(model: str) -> EmbspaceError:
    """The first MLP is not a module of its own."""
    return EmbspaceError(f"The first MLP of {model} cannot be called by itself. Pass first_mlp=False.")


def not_rotary(model: str) -> EmbspaceError:
    """A distance was given for a model without rotary positions."""
    return unsupported(
        f"A distance in {model}",
        "it has no rotary positions. circuits.position_qk reads learned position embeddings",
    )


def unknown_rotation(model: str, architecture: str) -> EmbspaceError:
    """It is unknown which dimensions an architecture rotates together."""
    return unsupported(
        f"A distance in {model}", f"it is unknown which dimensions of a head {architecture} rotates together"
    )


def length_dependent_rotation(model: str, rope_type: str) -> EmbspaceError:
    """Rotary frequencies depend on the length of the text."""
    return unsupported(f"A distance in {model}", f"its rotation ({rope_type}) depends on the length of the text")


def too_many_rotated(n_rotated: int, d_head: int) -> EmbspaceError:
    """More dimensions are rotated than a head has."""
    return unsupported("The rotation", f"{n_rotated} dimensions are rotated, and a head has {d_head}")


def not_causal(model: str) -> EmbspaceError:
    """Text was to be sampled from a bidirectional model."""
    return EmbspaceError(f"Sampling needs a causal model; {model or 'this one'} is bidirectional. Pass texts instead.")


def no_layers() -> EmbspaceError:
    """An empty selection of layers."""
    return EmbspaceError("layers names no layer. Omit it for all layers.")


def unknown_hook_point(name: object) -> EmbspaceError:
    """The forward pass found no hook point of this name."""
    return EmbspaceError(f"The model has no such hook point: {name}")


def hook_did_not_fire(names: Sequence[str]) -> EmbspaceError:
    """Hook points exist, but the architecture does not use them."""
    return EmbspaceError(f"No activation at {', '.join(names)}: this architecture does not use that hook point.")


def single_text() -> EmbspaceError:
    """One string was given for a sequence of texts."""
    return EmbspaceError("texts is one string; give a sequence of texts, [text] for a single one.")


def not_text(index: int, kind: str) -> EmbspaceError:
    """An element of a sequence of texts is not a string."""
    return EmbspaceError(f"Text {index} has the type {kind}; texts are strings.")


def no_texts(source: object) -> EmbspaceError:
    """An object from which texts cannot be read."""
    return EmbspaceError(f"texts={source!r} holds no texts. Give a list of texts, or the path of a file.")


def not_a_file(path: object) -> EmbspaceError:
    """A path at which there is no file."""
    return EmbspaceError(f"{path} is not a file. Name a text file, or a table with a column of texts.")


def where_without_table(where: str, path: object) -> EmbspaceError:
    """A condition on rows was given for a text file."""
    return EmbspaceError(f"where={where!r} needs a table, and {path} is a text file. Omit it.")


def not_utf8(path: object, reason: object) -> EmbspaceError:
    """A text file cannot be decoded."""
    return EmbspaceError(f"{path} cannot be read as text in UTF-8: {reason}.")


def no_text(path: object, where: str | None) -> EmbspaceError:
    """A file without texts, or without texts for which a condition holds."""
    return EmbspaceError(f"{path} holds no text" + (f" where {where}." if where else "."))


def labels_without_table(path: object) -> EmbspaceError:
    """Labelled texts were to be read from a text file."""
    return EmbspaceError(f"{path} is not a table. Labelled texts come from Parquet, JSON lines or CSV.")


def too_few_classes(path: object, only: str | None, where: str | None) -> EmbspaceError:
    """Labelled texts of one class, or none."""
    content = "no labelled text" if only is None else f"only {only!r}"
    return EmbspaceError(f"{path} holds {content}" + (f" where {where}" if where else "") + "; two classes are needed.")


def damaged_table(path: object, reason: object) -> EmbspaceError:
    """A table cannot be parsed."""
    return EmbspaceError(f"{path} cannot be read ({reason}). It is damaged, or its name has the wrong ending.")


def no_column(source: str, column: str, columns: Iterable[object]) -> EmbspaceError:
    """A table or dataset lacks a column."""
    return EmbspaceError(f"{source} has no column {column!r}; its columns are {_listed(columns)}.")


def bad_condition(where: str, path: object, reason: object) -> EmbspaceError:
    """A condition that pandas cannot evaluate."""
    return EmbspaceError(
        f"where={where!r} is not a condition on the rows of {path}: {reason}. Write it as in \"split == 'test'\"."
    )


def bad_labels(labels: list[str]) -> EmbspaceError:
    """A classifier with fewer than two different classes."""
    return EmbspaceError(f"labels={labels!r} does not name two or more different classes.")


def not_creatable(folder: object, reason: object) -> EmbspaceError:
    """A folder cannot be created."""
    return EmbspaceError(f"{folder} cannot be made a folder: {reason}.")


def other_states(path: object) -> EmbspaceError:
    """A cached file holds the states of something else."""
    return EmbspaceError(
        f"{path} was computed from other texts, other layers or another model. Name another folder, or remove it."
    )


def damaged_states(path: object, reason: object) -> EmbspaceError:
    """A cached file cannot be read."""
    return EmbspaceError(f"{path} cannot be read ({reason}). Remove it, and it is computed again.")


def not_demo_vocabulary(model: str, n_tokens: int, n_demo_tokens: int) -> EmbspaceError:
    """Token counts of the demo models were applied to another model."""
    return EmbspaceError(
        f"{model} has {n_tokens:,} tokens and the demo models have {n_demo_tokens:,}: these counts are not its own. "
        "Use seen_in(texts)."
    )


def no_classifier(folder: object, reason: object) -> EmbspaceError:
    """The files of a classifier are missing or damaged."""
    return EmbspaceError(f"{folder} holds no classifier that can be read: {reason}")


def not_a_difference(name: str, base: str, weight: str) -> EmbspaceError:
    """The weights of a difference are not those of its base."""
    return EmbspaceError(f"{name} is not a difference of {base}: {weight} does not fit.")


def too_little_text(count: int, unit: str, needed: int, purpose: str) -> EmbspaceError:
    """Training texts are too short."""
    return EmbspaceError(f"The texts have {count:,} {unit}, fewer than the {needed:,} of {purpose}. Give more text.")


def other_settings(folder: object) -> EmbspaceError:
    """A folder holds a run with another configuration."""
    return EmbspaceError(f"{folder} holds a run with other settings. Name another folder, or remove it.")


def not_divisible(name: str, value: int, divisor_name: str, divisor: int) -> EmbspaceError:
    """A width is not a multiple of a count."""
    return EmbspaceError(f"{name}={value} is not a multiple of {divisor_name}={divisor}.")


# -- circuits and interventions


# -- comparing models and evidence


# -- factors and their site


# -- display, plots and reports


# -- command line
