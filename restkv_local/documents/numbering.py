"""Writes the number of a list item as the list wants it: 4, iv, d."""

from __future__ import annotations

from typing import Final

_ROMAN: Final = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc")),
    *((50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)
# Beyond these a decimal number is easier to read, and cheap to make.
_ROMAN_MAX: Final = 3999
_LETTER_MAX: Final = 26


def format_number(number: int, style: str) -> str:
    """Write a number in the style ``decimal``, ``lower-roman``, ``upper-letter`` and the like."""
    case, _, script = style.partition("-")
    text = str(number)
    if script == "roman" and 0 < number <= _ROMAN_MAX:
        text = _roman(number)
    elif script == "letter" and 0 < number <= _LETTER_MAX:
        text = chr(ord("a") + number - 1)
    return text.upper() if case == "upper" else text


def _roman(number: int) -> str:
    text = ""
    for value, letters in _ROMAN:
        text += letters * (number // value)
        number %= value
    return text
