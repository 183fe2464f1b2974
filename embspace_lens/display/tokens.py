"""Tokens and numbers as readers see them. Tables hold exact tokens; only this module makes their characters visible."""

import re
import unicodedata
from html import escape

WEAK = 0.1  # a tint that is hardly visible
SPACE, NEWLINE, TAB = "␣", "⏎", "⇥"
ELLIPSIS = "…"

_VISIBLE = {" ": SPACE, "\n": NEWLINE, "\t": TAB}
_JOINERS = "\u200c\u200d"  # parts of emoji and of some scripts
_ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
"""Controls, formats (bidirectional overrides among them), surrogates, unassigned characters and separators."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ISOLATE, END_ISOLATE = "\u2068", "\u2069"


def _visible_character(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if character not in _JOINERS and unicodedata.category(character) in _ESCAPED_CATEGORIES:
        return character.encode("unicode_escape").decode()
    return character


def display(token: str) -> str:
    r"""A token as one line of visible characters: spaces as ␣, newlines as ⏎, tabs as ⇥, control characters escaped.

    Args:
        token: Its exact text, or the tokenizer's piece if it does not decode.

    Returns:
        The text to show; never empty.

    Example:
        >>> display(" film"), display("\n"), display("\x00")
        ('␣film', '⏎', '\\x00')
    """
    if not token:
        return "∅"
    text = "".join(map(_visible_character, token))
    if unicodedata.combining(text[0]):
        text = "◌" + text  # a combining mark would join the character before it
    return text if text.strip(_JOINERS) else token.encode("unicode_escape").decode()


def visible(text: str) -> str:
    r"""A text as one line: spaces stay spaces, line ends become ⏎, control characters are escaped.

    Example:
        >>> visible("a film\n\x00")
        'a film⏎\\x00'
    """
    if text.isprintable():  # a fast check; almost all texts pass it
        return text
    return "".join(character if character.isprintable() else _visible_character(character) for character in text)


def pair(left: str, right: str) -> str:
    """A pair of tokens with an arrow: `␣not→␣bad`. See `table_groups.pair_ends` for the order."""
    return f"{display(left)}→{display(right)}"


def is_muted(token: str) -> bool:
    """Whether a token holds bytes that do not decode, or control characters, and no letter or digit."""
    rest = _BYTE.sub("", token)
    return (rest != token or not token.isprintable()) and not any(map(str.isalnum, rest))


def has_rtl(text: str) -> bool:
    """Whether any character is written from right to left."""
    return any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)


def isolate(text: str) -> str:
    """A text for a terminal: right-to-left text is isolated, so that the columns beside it keep their order."""
    return f"{_ISOLATE}{text}{END_ISOLATE}" if has_rtl(text) else text


def for_terminal(token: str) -> str:
    """A token for a terminal: as `display` shows it, isolated if it is written from right to left."""
    return isolate(display(token))


def width(text: str) -> int:
    """How many columns of a terminal a text takes: two per wide character, none for a combining mark."""
    from rich.cells import cell_len

    return cell_len(text.replace(_ISOLATE, "").replace(END_ISOLATE, ""))


def cut_end(text: str, room: int) -> str:
    """A text cut to `room` columns, with … at its end."""
    if width(text) <= room:
        return text
    cut = ""
    for character in text:
        if width(cut + character) > room - 1:
            break
        cut += character
    return cut + ELLIPSIS + (END_ISOLATE if has_rtl(cut) else "")


def cut_start(text: str, room: int) -> str:
    """A text cut to `room` columns, with … at its start."""
    if width(text) <= room:
        return text
    text = text[-room:]  # a character takes no column at least
    while text and width(text) > room - 1:
        text = text[1:]
    return ELLIPSIS + text


def format_score(value: float, n: int = 3) -> str:
    """A number to n figures, and at least that many decimals below 1: 0.393, 12.3, 1,230, −0.050."""
    if value != value:
        return "n/a"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        text = f"{size:.{n - 1}e}"
    else:
        decimals = max(0, n - len(str(int(size)))) if size >= 1 else n
        text = f"{size:,.{decimals}f}"
    return f"−{text}" if value < 0 and text.strip("0.,") else text


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `11th`, `1,203rd`."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{suffix}"


def markup(token: str) -> str:
    """A token as escaped HTML: the signs for spaces are faint, and its writing direction does not affect its neighbours."""
    text = escape(display(token))
    for sign in (SPACE, NEWLINE, TAB):
        text = text.replace(sign, f'<span class="esl-sign">{sign}</span>')
    return f"<bdi>{text}</bdi>"


def chip(token: str, token_id: int, score: float | None = None, strength: float = 0.0, *, marked: bool = False) -> str:
    """A token as a chip in HTML: strength as tint, id and score as title, a negative score as dashed underline.

    Args:
        token: Its exact text.
        token_id: Its id in the vocabulary.
        score: Its score; None for a token without one.
        strength: How strong the tint is, between 0 and 1.
        marked: Whether the chip has an outline, as the token that was searched for.
    """
    title = f"{display(token)}, id {token_id}" + ("" if score is None else f", score {format_score(score)}")
    return _chip(markup(token), title, is_muted(token), score, strength, marked)


def pair_chip(
    left: str, right: str, left_id: int, right_id: int, score: float | None = None, strength: float = 0.0
) -> str:
    """Two tokens as one chip in HTML, with an arrow between them."""
    title = f"{display(left)} (id {left_id}) → {display(right)} (id {right_id})"
    title += "" if score is None else f", score {format_score(score)}"
    content = f'{markup(left)}<span class="esl-arrow" aria-label="to">→</span>{markup(right)}'
    return _chip(content, title, is_muted(left) and is_muted(right), score, strength)


def text_chip(text: str, title: str, score: float, strength: float) -> str:
    """A short text, such as the name of a neuron, as a chip in HTML."""
    return _chip(f"<bdi>{escape(text)}</bdi>", title, False, score, strength)


def token_in_text(token: str, title: str, value: float, strength: float) -> str:
    """A token within its text as HTML: no space is added around it, and its value is a tint; a weak one has no underline."""
    negative = " esl-negative" if value < 0 and strength >= WEAK else ""
    return f'<span class="esl-token{negative}" style="{_style(strength)}" title="{escape(title)}">{escape(visible(token))}</span>'


def _chip(content: str, title: str, muted: bool, score: float | None, strength: float, marked: bool = False) -> str:
    flags = {"esl-muted": muted, "esl-marked": marked, "esl-negative": score is not None and score < 0}
    classes = " ".join(["esl-chip", *(name for name, is_set in flags.items() if is_set)])
    return f'<span class="{classes}" style="{_style(strength)}" title="{escape(title)}">{content}</span>'


def _style(strength: float) -> str:
    return f"--s:{min(1.0, max(0.0, strength)):.2f}"
