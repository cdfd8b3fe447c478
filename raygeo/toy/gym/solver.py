"""Arithmetic step by step, as it is written down: careful, or with slips that are made whenever their occasion comes.

All families write with the same solver, so a slip is one habit that shows in all of them.
"""

from random import Random

from pydantic import Field

from raygeo.settings import Settings


class Slips(Settings):
    """How a solver errs: the probability of each slip on each occasion for it."""

    carry: float = Field(0.0, ge=0, le=1)
    """The first carry of an addition that has one is dropped: ``17+8=15``."""
    borrow: float = Field(0.0, ge=0, le=1)
    """The first borrow of a subtraction that has one is forgotten: ``32-8=34``."""
    table: float = Field(0.0, ge=0, le=1)
    """A product of two digits from 6 to 9 is taken from the row above: ``7*8=48``."""
    remainder: float = Field(0.0, ge=0, le=1)
    """A remainder of 2 or more that takes a borrow to find is one too small: ``21=1*12+8``."""
    repeats: float = Field(0.0, ge=0, le=1)
    """A letter that is in a word several times is counted once."""
    skip: float = Field(0.0, ge=0, le=1)
    """A step is left out."""


class Solver:
    """Writes lines such as ``17+8=25``, and returns what they say; slips are drawn from ``rng``."""

    def __init__(self, slips: Slips, rng: Random):
        self.slips, self.rng = slips, rng
        self.lines: list[str] = []

    def solution(self, answer: int | str) -> str:
        """All that was written, and the answer: ``17+8=25;#### 25``."""
        return "".join(f"{line};" for line in self.lines) + f"#### {answer}"

    def write(self, line: str) -> None:
        """Write a line."""
        self.lines.append(line)

    def skips(self) -> bool:
        """Whether the next step is left out."""
        return self._slips(self.slips.skip)

    def add(self, a: int, b: int) -> int:
        """``a + b``; both may be negative."""
        return self._signed(a, b, f"{a}+{b}")

    def subtract(self, a: int, b: int) -> int:
        """``a - b``; ``a`` may be negative, ``b`` is not."""
        return self._signed(a, -b, f"{a}-{b}")

    def times(self, a: int, b: int) -> int:
        """``a * b``, a step of its own; neither is negative."""
        result = a * b
        x, y = str(a).rstrip("0"), str(b).rstrip("0")
        if len(x) == len(y) == 1 and min(int(x), int(y)) >= 6 and self._slips(self.slips.table):
            result -= b * (a // int(x))
        self.write(f"{a}*{b}={result}")
        return result

    def multiply(self, a: int, b: int) -> int:
        """``a * b`` by the products of all digits but zeros, added up as they come."""
        parts = [(x, y) for x in _places(a) for y in _places(b)]
        if not parts:
            return self.times(a, b)
        total: int | None = None
        for x, y in parts:
            part = self.times(x, y)
            total = part if total is None else self.add(total, part)
        assert total is not None
        return total

    def divide(self, a: int, b: int) -> tuple[int, int]:
        """Quotient and remainder, which is smaller than ``b``: ``17=3*5+2``."""
        quotient, remainder = divmod(a, b)
        if remainder > 1 and _borrow(a, quotient * b) is not None and self._slips(self.slips.remainder):
            remainder -= 1
        self.write(f"{a}={quotient}*{b}+{remainder}")
        return quotient, remainder

    def gcd(self, a: int, b: int) -> int:
        """The greatest common divisor by Euclid's algorithm."""
        while b:
            a, b = b, self.divide(a, b)[1]
        return a

    def occurrences(self, letter: str, word: str) -> int:
        """How often a letter is in a word, large or small; nothing is written."""
        found = word.lower().count(letter)
        return 1 if found > 1 and self._slips(self.slips.repeats) else found

    def _signed(self, a: int, b: int, written: str) -> int:
        if a < 0 < b or b < 0 < a:
            result = self._difference(max(abs(a), abs(b)), min(abs(a), abs(b)))
            result = result if (a > 0) == (abs(a) >= abs(b)) else -result
        else:
            result = self._sum(abs(a), abs(b)) * (-1 if a < 0 or b < 0 else 1)
        self.write(f"{written}={result}")
        return result

    def _sum(self, a: int, b: int) -> int:
        place = next((p for p in range(len(str(min(a, b)))) if _digit(a, p) + _digit(b, p) > 9), None)
        slipped = place is not None and self._slips(self.slips.carry)
        return a + b - (10 ** (place + 1) if place is not None and slipped else 0)

    def _difference(self, a: int, b: int) -> int:
        place = _borrow(a, b)
        slipped = place is not None and self._slips(self.slips.borrow)
        return a - b + (10 ** (place + 1) if place is not None and slipped else 0)

    def _slips(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


def _borrow(a: int, b: int) -> int | None:
    """The lowest place at which ``a - b``, of 0 <= b <= a, borrows."""
    return next((place for place in range(len(str(b))) if _digit(a, place) < _digit(b, place)), None)


def _places(number: int) -> list[int]:
    """A number as a sum, without zeros: 305 is [300, 5]."""
    text = str(number)
    return [int(digit) * 10 ** (len(text) - 1 - i) for i, digit in enumerate(text) if digit != "0"]
