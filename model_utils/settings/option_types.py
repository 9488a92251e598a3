"""Types of option values: converters stricter than the parser's own, and bounds."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from dataloader.portion import portion_of


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


def share(_: type, tokens: Sequence[Token]) -> str:
    """A share of a work as 3/64, counted from 0."""
    return str(portion_of(_text(tokens)))


def _text(tokens: Sequence[Token]) -> str:
    value: Any = tokens[0].value
    return str(value).strip()


Duration = Annotated[float, Parameter(converter=minutes)]
ShareText = Annotated[str, Parameter(converter=share)]
CountOrAuto = Annotated[int | Literal["auto"], Parameter(converter=whole_number_or_auto)]


def _whole(**bounds: float) -> Parameter:
    return Parameter(converter=whole_number, validator=Number(**bounds))


def _real(**bounds: float) -> Parameter:
    return Parameter(converter=finite_number, validator=Number(**bounds))


Count = Annotated[int, _whole(gte=1, lt=2**53)]
NonNegativeInt = Annotated[int, _whole(gte=0, lt=2**53)]
Threads = Annotated[int, _whole(gte=1, lte=4096)]
StepsOfProof = Annotated[int, _whole(gte=4, lt=2**53)]
Positive = Annotated[float, _real(gt=0)]
NonNegative = Annotated[float, _real(gte=0)]
Fraction = Annotated[float, _real(gte=0, lt=1)]
Factor = Annotated[float, _real(gt=0, lte=1)]
Decay = Annotated[float, _real(gt=0, lt=1)]
Rate = Annotated[float, _real(gt=0, lte=1e30)]  # a float32 holds 3e38
WeightDecay = Annotated[float, _real(gte=0, lte=1e30)]
# of structures in an epoch, whose order is made in memory
Ratio = Annotated[float, _real(gt=0, lte=1000)]
