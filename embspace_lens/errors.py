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


def without(model: str, layers: Sequence[int], what: str, having: Sequence[int]) -> EmbspaceError:
    """Say that some blocks have no attention, or no MLP, and which have."""
    blocks = f"block {layers[0]} has" if len(layers) == 1 else f"blocks {', '.join(map(str, layers))} have"
    rest = f"Blocks with one: {', '.join(map(str, having))}." if having else "No block of it has one that can be read."
    return EmbspaceError(f"{model}'s {blocks} no {what}. {rest}")


def bad_k(k: object, count: int, what: str) -> EmbspaceError:
    """Say that `k` is not a number of things that can be had."""
    return EmbspaceError(f"k={k!r} is not between 1 and {count:,}, the number of {what}.")


def bad_width(width: int, model: str, d_model: int, what: str = "vectors") -> EmbspaceError:
    """Say that vectors do not belong to this residual stream."""
    return EmbspaceError(
        f"{what} have width {width}, but {model}'s residual stream has d_model={d_model}. Are they from another model?"
    )


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
