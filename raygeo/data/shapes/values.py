"""Values that sources of texts alone, such as CSV, can only write as texts: truth values and numbers."""

import re
from typing import Any

_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def flag(value: Any) -> Any:
    """True or false that a value stands for (``1``, ``"true"``); anything else is returned as it is."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def number(value: Any) -> Any:
    """The number that a text stands for, whole ones as ``int``; anything else is returned as it is."""
    if not isinstance(value, str) or _NUMBER.fullmatch(text := value.strip()) is None:
        return value
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:  # more digits than Python reads
        return value
