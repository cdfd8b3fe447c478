"""Numbers as a reader should see them: sensible digits, real minus signs, and an en dash for what is missing."""

import math
import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ASCII = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789", "\u2009")
_NUMBER = re.compile(r"(?:< )?([+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?)(?: × 10(-?\d+))?(?: ?%|°)?")
_DURATION = re.compile(r"(?:(\d+) h )?(?:(\d+) min)?(?: ?(\d+(?:\.\d+)?) s)?")
P = ParamSpec("P")


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def _or_dash(write: Callable[Concatenate[float, P], str]) -> Callable[Concatenate[float | None, P], str]:
    """Write None, NaN and infinities as a dash, and hyphens as minus signs."""

    @wraps(write)
    def guarded(value: float | None, *args: P.args, **kwargs: P.kwargs) -> str:
        if value is None or not math.isfinite(value):
            return MISSING
        return write(value, *args, **kwargs).replace("-", "−")

    return guarded


@_or_dash
def fixed(value: float, digits: int = 2) -> str:
    """``digits`` decimals, never a negative zero: cosines, angles, CKA."""
    return f"{value:z.{digits}f}"


@_or_dash
def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits; powers of ten outside 1e-3 .. 1e5."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if value == 0:
        return "0"
    if -3 <= power < 5:
        return f"{float(f'{mantissa}e{power}'):.{max(digits - 1 - power, 0)}f}"
    return f"{mantissa} × 10{str(power).translate(_SUPERSCRIPT)}"


@_or_dash
def percent(share: float) -> str:
    """One decimal, as in 41.7 %."""
    return f"{100 * share:.1f} %"


@_or_dash
def points(difference: float) -> str:
    """A signed difference of shares in percentage points, as in +3.2."""
    text = f"{100 * difference:+z.1f}"
    return "0.0" if text == "+0.0" else text


@_or_dash
def p_value(value: float) -> str:
    """Three decimals, with a floor."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


@_or_dash
def count(value: float) -> str:
    """A whole number, thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\u2009")


def counted(number: int, what: str) -> str:
    """How many there are of ``what``, a word whose plural ends in s: "1 pair", "28 pairs"."""
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def rate(value: float | None) -> str:
    """A learning rate as run names write it: 5e-05."""
    return MISSING if _missing(value) else f"{value:g}"


def interval(low: float | None, high: float | None, write: Callable[[float | None], str] = fixed) -> str:
    """``[low, high]`` without a unit, or nothing when either end is missing."""
    return "" if _missing(low) or _missing(high) else f"[{write(low)}, {write(high)}]".replace(" %", "")


@_or_dash
def duration(seconds: float) -> str:
    """Seconds below a minute, then minutes, then hours."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(text: str) -> float | None:
    """The number that one of these functions wrote, as tables are sorted by it: a bound for p below it, seconds.

    None for a dash and for any other text.
    """
    text = text.translate(_ASCII)
    if found := _NUMBER.fullmatch(text):
        return float(found[1]) * 10.0 ** int(found[2] or 0)
    if text and (found := _DURATION.fullmatch(text)):
        return sum(unit * float(amount or 0) for unit, amount in zip((3600, 60, 1), found.groups(), strict=True))
    return None
