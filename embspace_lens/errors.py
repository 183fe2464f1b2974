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


def factor_input_shape(name: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """Hidden states, directions, warm-start codes or their weights have the wrong shape."""
    return EmbspaceError(f"{name} has shape {shape}. Expected {expected}.")


def wrong_code_count(shape: tuple[int, ...], n_factors: int) -> EmbspaceError:
    """There is not one code per factor."""
    return EmbspaceError(
        f"codes has shape {shape}, but the dictionary has {n_factors} factors. Expected [..., {n_factors}]."
    )


def too_large_for_float32(name: str, largest: float, limit: float) -> EmbspaceError:
    """Values are so large that their squares overflow in float32."""
    return EmbspaceError(
        f"The largest absolute value of {name} is {largest:.2g}; the limit is {limit:.0e}, because larger values overflow "
        "when they are squared in float32. Rescale them."
    )


def negative_weights() -> EmbspaceError:
    """Weights of hidden states are negative or not finite."""
    return EmbspaceError("weight contains negative, NaN or infinite values. Pass finite weights of 0 or more.")


def texts_without_tokens() -> EmbspaceError:
    """No text contains a token."""
    return EmbspaceError("texts contain no tokens. Pass at least one text with a token in it.")


def texts_read_once(epochs: int) -> EmbspaceError:
    """Several epochs were requested of an iterator."""
    return EmbspaceError(
        f"epochs={epochs}, but texts is an iterator, which can be read only once. Pass a list, a dataset or a file, or epochs=1."
    )


def folder_not_made(path: object, reason: object) -> EmbspaceError:
    """A folder cannot be created."""
    return EmbspaceError(f"The folder {path} cannot be created: {reason}.")


def no_factors_file(path: object) -> EmbspaceError:
    """A file of factors does not exist."""
    return EmbspaceError(f"{path} does not exist. Pass the folder to which the factors were saved.")


def other_kind_of_file(path: object, expected: str, actual: object) -> EmbspaceError:
    """A safetensors file holds something else."""
    return EmbspaceError(f"{path} has architecture {actual!r}. Expected {expected!r}.")


def damaged_factors_file(path: object, reason: object) -> EmbspaceError:
    """A file of factors cannot be read."""
    return EmbspaceError(f"{path} cannot be read: {reason}. It is damaged or not a safetensors file.")


def incomplete_dictionary(folder: object) -> EmbspaceError:
    """Saved factors lack their directions or their l1."""
    return EmbspaceError(f"{folder} does not contain a complete dictionary. Save it again with Factors.save.")


def incomplete_fit(path: object, reason: object) -> EmbspaceError:
    """A saved FactorFitter lacks a part."""
    return EmbspaceError(f"{path} does not contain a complete fit ({reason}). Start a new fit.")


def not_a_checkpoint(path: object) -> EmbspaceError:
    """A file has the name of a checkpoint, but other contents."""
    return EmbspaceError(f"{path} is not a checkpoint of fit_factors. Pass another folder, or delete this file.")


def checkpoint_of_other_fit(folder: object, options: Sequence[str]) -> EmbspaceError:
    """A checkpoint was made with other options, or with another model."""
    return EmbspaceError(
        f"{folder} contains the checkpoint of another fit; these options differ: {', '.join(options)}. "
        "Pass another folder, or delete this one."
    )


def checkpoint_of_other_texts(folder: object) -> EmbspaceError:
    """A checkpoint was made from other texts."""
    return EmbspaceError(
        f"{folder} contains the checkpoint of a fit to other texts. Pass another folder, or delete this one."
    )


def unreadable_checkpoint(folder: object, reason: object) -> EmbspaceError:
    """A checkpoint is damaged."""
    return EmbspaceError(
        f"The checkpoint in {folder} cannot be read: {reason}. Pass another folder, or delete this one."
    )


def table_lacks_column(name: str, column: str, source: str) -> EmbspaceError:
    """A table lacks a column that the function needs."""
    return EmbspaceError(f"{name} has no column {column!r}. Pass a table of {source}.")


def one_layer_importance() -> EmbspaceError:
    """The importance table has a single layer, so factors have no level."""
    return EmbspaceError("importance has only one layer. Levels need two layers or more.")


def factor_not_in_dictionary(name: str, factor: int, n_factors: int) -> EmbspaceError:
    """A table has rows of a factor that the dictionary does not have."""
    return EmbspaceError(
        f"{name} has rows of factor {factor}, but the dictionary has {n_factors} factors. Was the table made from another one?"
    )


def example_not_in_texts(example: int, n_texts: int) -> EmbspaceError:
    """A context refers to a text that was not passed."""
    return EmbspaceError(
        f"contexts refers to text {example}, but there are {n_texts} texts. Pass the texts from which contexts was made."
    )


def pos_not_in_text(example: int, pos: int, n_tokens: int) -> EmbspaceError:
    """A context refers to a token beyond the end of its text."""
    return EmbspaceError(
        f"contexts refers to token {pos} of text {example}, which has {n_tokens} tokens. "
        "Pass the texts from which contexts was made."
    )


def other_target_token(example: int, pos: int) -> EmbspaceError:
    """The target of a context is another token in the text that was passed."""
    return EmbspaceError(
        f"Token {pos} of text {example} is not the target token in contexts. Pass the texts from which contexts was made."
    )


def no_replacement_token() -> EmbspaceError:
    """The tokenizer has no special token with which saliency could replace tokens."""
    return EmbspaceError(
        "The tokenizer has no mask, unknown, end-of-text or padding token. Pass a token, such as replacement=' the'."
    )


def word_not_in_sentences(word: str) -> EmbspaceError:
    """A word does not occur in the tagged sentences."""
    return EmbspaceError(f"The word {word!r} does not occur in sentences. Words are compared in lower case.")


def no_word_with_two_tags(at_least: int) -> EmbspaceError:
    """No word occurs often enough with two tags."""
    return EmbspaceError(
        f"No word has two tags with {at_least} occurrences each. Lower at_least, or pass more sentences."
    )


def too_few_occurrences() -> EmbspaceError:
    """No word has both senses in the training half and in the held-out half."""
    return EmbspaceError(
        "No word has at least two occurrences of both senses in the training half and in the held-out half. "
        "Pass more sentences."
    )


def texts_without_model() -> EmbspaceError:
    """The site needs a model to read texts."""
    return EmbspaceError(
        "texts needs a model that reads them. Pass model=, or pass seen= with the result of activity()."
    )


def site_path_is_file(path: object) -> EmbspaceError:
    """The site's folder is a file."""
    return EmbspaceError(f"{path} is a file. Pass a folder for the site.")


def not_a_site(path: object) -> EmbspaceError:
    """The site's folder contains other files."""
    return EmbspaceError(
        f"{path} contains files that are not a site of factors. Pass a new folder; nothing was changed."
    )


def no_parent_folder(path: object, parent: object) -> EmbspaceError:
    """The site's folder would lie in a folder that does not exist."""
    return EmbspaceError(f"{path} cannot be created, because {parent} is not a folder. Create it first.")


def site_not_written(path: object, reason: object) -> EmbspaceError:
    """Writing the site failed."""
    return EmbspaceError(f"{path} cannot be written: {reason}. Nothing was changed.")


# -- display, plots and reports


# -- command line
