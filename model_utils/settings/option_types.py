"""Converters for option values: stricter than the parser's own, and a duration."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """An int; 3.5 is refused instead of rounded, 1e4 is taken."""
    value = _text(tokens)
    try:
        number = float(value)
        return int(value) if re.fullmatch(r"[+-]?\d+", value) else _exact(number)
    except (ValueError, OverflowError):
        raise ValueError(f"expected a whole number, found {value!r}") from None


def whole_number_or_auto(kind: type, tokens: Sequence[Token]) -> int | str:
    """An int from 1 on, or ``auto``."""
    if _text(tokens) == "auto":
        return "auto"
    number = whole_number(kind, tokens)
    if not 1 <= number < 2**53:
        raise ValueError(f"expected auto or a whole number from 1 on, found {number}")
    return number


def _exact(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def finite_number(_: type, tokens: Sequence[Token]) -> float:
    """A float that is a number: nan and inf are refused."""
    value = _text(tokens)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"expected a number, found {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value!r}")
    return number


def minutes(_: type, tokens: Sequence[Token]) -> float:
    """Minutes from a number, MM:SS, HH:MM:SS or D-HH:MM:SS (SLURM's spelling)."""
    value = _text(tokens)
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", value)
    if match:
        days, hours, mins, seconds = (int(part or 0) for part in match.groups())
        number = days * 1440 + hours * 60 + mins + seconds / 60
    else:
        number = finite_number(float, tokens)
    if number <= 0:
        raise ValueError(f"expected a duration above zero, found {value!r}")
    return number


def _text(tokens: Sequence[Token]) -> str:
    return str(_value(tokens[0])).strip()


def _value(token: Token) -> Any:
    return token.value


Duration = Annotated[float, Parameter(converter=minutes)]
