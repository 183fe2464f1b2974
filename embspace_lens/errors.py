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


def not_a_lens(value: object) -> EmbspaceError:
    """A function that compares two lenses was given something else."""
    return EmbspaceError(f"{type(value).__name__} is not an EmbeddingLens. Wrap the model: EmbeddingLens(model).")


def few_shared_tokens(a: str, b: str, n_shared: int, n_a: int, n_b: int, minimum: int) -> EmbspaceError:
    """Two lenses read too few tokens in common."""
    return EmbspaceError(
        f"{a} and {b} share {n_shared:,} of the {n_a:,} and {n_b:,} tokens that their lenses read. A comparison needs "
        f"{minimum} or more. Read more tokens (vocabulary=None), or compare models of one tokenizer."
    )


def tokens_not_comparable(without: str, n_without: int, other: str, n_other: int, has_tokenizer: bool) -> EmbspaceError:
    """A model has no tokenizer, so its tokens cannot be compared with those of another model."""
    tokenizer = "a tokenizer" if has_tokenizer else "no tokenizer either"
    return EmbspaceError(
        f"{without} has {n_without:,} tokens and no tokenizer; {other} has {n_other:,} tokens and {tokenizer}. "
        "Their tokens cannot be matched. Give EmbeddingLens(model, tokenizer=…)."
    )


def different_widths(a: str, d_a: int, b: str, d_b: int) -> EmbspaceError:
    """Residual streams of different widths are compared coordinate by coordinate."""
    return EmbspaceError(
        f"space='residual' compares coordinates, but {a} has d_model={d_a} and {b} has d_model={d_b}. "
        "Use space='embedding', which takes models of any width."
    )


def no_common_weight(a: str, b: str, reason: object = "") -> EmbspaceError:
    """There is no weight that can be read in both models."""
    reason = f" {reason}" if reason else ""
    return EmbspaceError(f"{a} and {b} have no selected weight that can be read in both.{reason}")


def not_single(name: str, value: object, what: str) -> EmbspaceError:
    """An argument selects several things, or none, where exactly one is needed."""
    return EmbspaceError(f"{name}={value!r} does not select exactly one {what}. Give one.")


def too_many_pairs(n_a: int, n_b: int, maximum: int) -> EmbspaceError:
    """Two layers have too many neurons for an assignment of one to one."""
    return EmbspaceError(
        f"{n_a:,} × {n_b:,} neurons are more than the {maximum:,} pairs that can be matched one to one. "
        "Give one_to_one=False for nearest partners."
    )


def not_tuned_from(after: str, before: str, reason: str) -> EmbspaceError:
    """A difference is asked for between models of which one was not fine-tuned from the other."""
    return EmbspaceError(
        f"{after} was not fine-tuned from {before}: {reason}. Give the model from which {after} was fine-tuned."
    )


def words_are_string() -> EmbspaceError:
    """A list of words is one string."""
    return EmbspaceError("positive and negative are lists of words, but one of them is a string.")


def too_few_words(name: str, n_words: int, minimum: int) -> EmbspaceError:
    """Too few words of a list are tokens of the lens."""
    return EmbspaceError(
        f"{n_words} of the {name} words are tokens that this lens reads. Give {minimum} or more, or read more tokens "
        "(vocabulary=None)."
    )


def not_pooled_head(value: object) -> EmbspaceError:
    """A classifier's head is of another class."""
    return EmbspaceError(
        f"{type(value).__name__} is not a PooledHead, which averages hidden states over tokens and scores classes."
    )


def bad_translation_width(end: str, width: int, model: str, d_model: int, make: str) -> EmbspaceError:
    """A translation does not fit one of the two models between which it is used."""
    return EmbspaceError(
        f"The translation's {end} has width {width}, but {model} has d_model={d_model}. Make it by {make}."
    )


def no_stitched_hook(name: str, others: Sequence[str]) -> EmbspaceError:
    """A stitched model has no hook point of this name."""
    return EmbspaceError(
        f"{name!r} is not a hook point of a stitched model. Its hook points begin with 'recipient.' or 'donor.', or are "
        f"{_listed(others)}."
    )


def block_not_run(name: str, half: str, blocks: Sequence[int]) -> EmbspaceError:
    """A hook point is in a block that the stitched model does not run."""
    listed = ", ".join(map(str, blocks)) or "none"
    return EmbspaceError(f"{name!r} is in a block that does not run. Blocks of the {half} that run: {listed}.")


def folder_not_made(folder: object, reason: object) -> EmbspaceError:
    """A folder cannot be created."""
    return EmbspaceError(f"{folder} cannot be made a folder: {reason}. Give another path.")


def unreadable_stitched_model(folder: object, reason: object) -> EmbspaceError:
    """The files of a stitched model are missing or damaged."""
    return EmbspaceError(f"{folder} has no stitched model that can be read ({reason}). Save it again.")


def stitched_with_other(folder: object, saved: str, given: str) -> EmbspaceError:
    """A saved stitched model is loaded with another model than it was made from."""
    return EmbspaceError(f"{folder} was stitched with {saved}, not with {given}. Give the lens of {saved}.")


def no_donors() -> EmbspaceError:
    """`donors` is empty or not a mapping."""
    return EmbspaceError("donors must map at least one name to a pair (lens, head).")


def no_labelled_texts() -> EmbspaceError:
    """There is no text to classify."""
    return EmbspaceError("texts holds no texts to classify. Give a sequence of texts, and their labels.")


def unequal_lengths(n_texts: int, n_labels: int) -> EmbspaceError:
    """There is not one label per text."""
    return EmbspaceError(f"There are {n_texts:,} texts and {n_labels:,} labels. Give one label per text.")


def one_class(n_texts: int, label: object) -> EmbspaceError:
    """All texts have the same label."""
    return EmbspaceError(
        f"All {n_texts:,} texts have the label {label!r}. Accuracy needs texts of two or more classes."
    )


def unknown_label(label: object, donor: str, labels: Sequence[str]) -> EmbspaceError:
    """A text's label is not a class of the head."""
    return EmbspaceError(f"label {label!r} is not a class of {donor}'s head. Its classes: {', '.join(labels)}.")


def reserved_kernel(name: str) -> EmbspaceError:
    """A kernel has the name of a control."""
    return EmbspaceError(f"kernels holds {name!r}, which is the name of a control. Give the kernel another name.")


def other_sweep(path: object) -> EmbspaceError:
    """A checkpoint belongs to a sweep with other arguments."""
    return EmbspaceError(
        f"{path} is the checkpoint of a sweep with other arguments. Give another path, or remove the file."
    )


def nothing_to_measure(model: str, names: Sequence[str]) -> EmbspaceError:
    """No selected block has a weight that can be measured."""
    return EmbspaceError(f"No selected block of {model} has {' or '.join(names)}. Select other layers.")


def no_expert_activations(model: str, layer: int, weight: str) -> EmbspaceError:
    """The activations of a mixture's experts have no hook point."""
    return EmbspaceError(
        f"{weight} of block {layer} of {model} cannot be measured: the activations of a mixture's experts have no hook "
        "point. Measure W_V and W_O."
    )


def hooks_not_fired(model: str, hooks: Sequence[str]) -> EmbspaceError:
    """A hook point exists but no activation passes it."""
    return EmbspaceError(f"No activation passed {', '.join(hooks)} of {model}. Select other weights.")


def bad_activation_width(model: str, hook: str, weight: str, n_weights: int) -> EmbspaceError:
    """A hook point has more activations than the weight has directions."""
    return EmbspaceError(
        f"{hook} of {model} holds more activations than {weight} has directions ({n_weights:,}). Select other weights."
    )


def no_tokens() -> EmbspaceError:
    """The texts have no tokens."""
    return EmbspaceError("texts holds no tokens. Give one text or more.")


def not_several_vectors(name: str, shape: tuple[int, ...]) -> EmbspaceError:
    """Vectors are not a list of two directions or more."""
    return EmbspaceError(f"vectors {name!r} have shape {shape}. Give [n, d_model] with n of 2 or more.")


def reserved_source(name: str) -> EmbspaceError:
    """Vectors have the name of a built-in source."""
    return EmbspaceError(f"vectors holds the name {name!r}, which is a source of this table already. Use another name.")


# -- factors and their site


# -- display, plots and reports


# -- command line
