"""How a token is displayed: tokens stay exact in every table, and are made visible here alone."""

import re
import unicodedata
from html import escape

SPACE, NEWLINE, TAB = "␣", "⏎", "⇥"
ELLIPSIS = "…"

_SIGNS = {" ": SPACE, "\n": NEWLINE, "\t": TAB}
_JOINERS = "\u200c\u200d"  # part of emoji and of some scripts
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"


def _shown(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    # Controls, formats (bidirectional overrides among them), surrogates, separators: they would act, or vanish.
    if character not in _JOINERS and unicodedata.category(character) in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
        "Zs",
    ):
        return character.encode("unicode_escape").decode()
    return character


def display(token: str) -> str:
    r"""A token as one line of visible characters: spaces as ␣, newlines as ⏎, tabs as ⇥, control characters escaped.

    Args:
        token: Its exact text; pieces that do not decode are shown as they are.

    Returns:
        The text to show; never empty.

    Example:
        >>> display(" film"), display("\n"), display("\x00")
        ('␣film', '⏎', '\\x00')
    """
    if not token:
        return "∅"
    text = "".join(map(_shown, token))
    if unicodedata.combining(text[0]):
        text = "◌" + text  # a mark of its own would sit on whatever stands before it
    return text if text.strip(_JOINERS) else token.encode("unicode_escape").decode()


def visible(text: str) -> str:
    r"""A stretch of text as one line: spaces stay spaces, line ends and characters that would act or vanish are shown.

    Example:
        >>> visible("a film\n\x00")
        'a film⏎\\x00'
    """
    if text.isprintable():  # nearly always, and there are millions of them
        return text
    return "".join(character if character.isprintable() else _shown(character) for character in text)


def pair(left: str, right: str) -> str:
    """A pair of tokens: `␣not→␣bad`, from the attended-from or attending token to the promoted or attended-from one."""
    return f"{display(left)}→{display(right)}"


def is_muted(token: str) -> bool:
    """Whether a token shows no text of its own: a byte that does not decode, or nothing but escapes."""
    return bool(_BYTE.fullmatch(token)) or (not token.isprintable() and not any(map(str.isalnum, token)))


def has_rtl(text: str) -> bool:
    """Whether some character is written from right to left."""
    return any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)


def for_terminal(token: str) -> str:
    """A token as a terminal shows it: as `display`, isolated where it runs from right to left, so that columns stay."""
    text = display(token)
    return f"{_ISOLATE}{text}{_END_ISOLATE}" if has_rtl(text) else text


def width(text: str) -> int:
    """How many columns of a terminal a text takes: two for wide characters, none for marks."""
    from rich.cells import cell_len

    return cell_len(text.replace(_ISOLATE, "").replace(_END_ISOLATE, ""))


def pad(text: str, columns: int) -> str:
    """A text filled with spaces to a terminal's columns."""
    return text + " " * max(0, columns - width(text))


def figures(value: float, n: int = 3) -> str:
    """A number to three figures, in as few characters as are read at a glance: 0.393, 12.3, 1,230, −0.05."""
    if value != value:
        return "n/a"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        text = f"{size:.{n - 1}e}"
    else:
        digits = max(0, n - len(str(int(size)))) if size >= 1 else n
        text = f"{size:,.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.,") else text


def markup(token: str) -> str:
    """A token as escaped HTML: its stand-ins for spaces are faint, and its direction of writing is its own."""
    text = escape(display(token))
    for sign in (SPACE, NEWLINE, TAB):
        text = text.replace(sign, f'<span class="esl-sign">{sign}</span>')
    return f"<bdi>{text}</bdi>"


def chip(token: str, token_id: int, score: float | None = None, strength: float = 0.0) -> str:
    """A token as a chip of HTML: its strength is the tint, its id and score are the title, its sign an underline.

    Args:
        token: Its exact text.
        token_id: Its id in the vocabulary.
        score: What it scores, if anything.
        strength: Between 0 and 1: how strong the tint is.
    """
    said = f"{display(token)}, id {token_id}" + ("" if score is None else f", score {figures(score)}")
    return _chip(markup(token), said, is_muted(token), score, strength)


def pair_chip(
    left: str, right: str, left_id: int, right_id: int, score: float | None = None, strength: float = 0.0
) -> str:
    """Two tokens as one chip of HTML, an arrow between them."""
    said = f"{display(left)} (id {left_id}) → {display(right)} (id {right_id})"
    said += "" if score is None else f", score {figures(score)}"
    inner = f'{markup(left)}<span class="esl-arrow" aria-label="to">→</span>{markup(right)}'
    return _chip(inner, said, is_muted(left) and is_muted(right), score, strength)


def _chip(inner: str, said: str, muted: bool, score: float | None, strength: float) -> str:
    negative = score is not None and score < 0
    kind = "esl-chip" + (" esl-muted" if muted else "") + (" esl-negative" if negative else "")
    tint = f"{min(1.0, max(0.0, strength)):.2f}"
    return f'<span class="{kind}" style="--s:{tint}" title="{escape(said)}">{inner}</span>'
