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


# -- command line


def parquet_needs_file() -> EmbspaceError:
    """Parquet was to be printed."""
    return EmbspaceError("--format parquet writes binary data. Name a file for it: --out table.parquet.")


def circuits_and_subheads() -> EmbspaceError:
    """One table was to hold token pairs of circuits and tokens of sub-heads."""
    return EmbspaceError(
        "W_OV and W_QK are listed as token pairs; W_Q, W_K, W_V and W_O as tokens. Name weights of one kind at a time."
    )


def no_demo_models() -> EmbspaceError:
    """The installation contains no demo models."""
    return EmbspaceError("No demo model is installed. Name a folder or a model of the hub: --model gpt2.")


def graft_needed(counts: Sequence[int]) -> EmbspaceError:
    """The donors have different numbers of tuned layers."""
    return EmbspaceError(
        f"The classifiers have different numbers of tuned layers: {_listed(counts)}. Choose one: --graft N."
    )


def base_needed(after: str) -> EmbspaceError:
    """The model before tuning is not known."""
    return EmbspaceError(
        f"The model from which {after} was tuned is not known. Name it: embspace-lens difference {after} BEFORE."
    )


def word_lists_needed() -> EmbspaceError:
    """Displacement was requested without its two lists of words."""
    return EmbspaceError("--table displacement needs two lists of words: --positive FILE --negative FILE.")


def one_weight_needed() -> EmbspaceError:
    """Singular directions were requested for several weights."""
    return EmbspaceError("--table singular reads one weight. Give --weight once.")


def unreadable_words(option: str, path: object, reason: OSError) -> EmbspaceError:
    """A list of words cannot be read."""
    return EmbspaceError(f"{option} {path} cannot be read: {reason.strerror or reason}.")


def mixed_word_options() -> EmbspaceError:
    """Some `--word` options have tags and others have none."""
    return EmbspaceError("--word is given both with tags and without. Give WORD each time, or WORD=TAG,TAG each time.")


def texts_or_demo() -> EmbspaceError:
    """A site needs texts from exactly one source."""
    return EmbspaceError("Give --texts PATH, or --demo for texts sampled from the demo model, but not both.")


def demo_has_factors() -> EmbspaceError:
    """A dictionary was given beside the demo's own."""
    return EmbspaceError(
        "--demo uses the demo model's dictionary. Leave --factors out, or give --texts instead of --demo."
    )
