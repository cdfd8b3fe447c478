"""Is a completion's final answer right? Exact numbers here; symbolic answers in ``raygeo.rollouts.math_grading``.

The GSM8K convention (Cobbe et al. 2021, arXiv:2110.14168): a solution ends in a line ``#### 18``; the model solutions
published with it end in ``A: 18``. Numbers are compared as exact rationals, never as floats.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, Self

from raygeo.errors import DataError

Grading = Literal["exact", "math"]
"""``exact``: a number after ``####`` or ``A:``. ``math``: any expression, compared symbolically by math-verify."""

_MARKER = re.compile(r"####|^[ \t]*A:", re.MULTILINE)
_CURRENCY = re.compile(r"\\?[$€£]")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:\s*/\s*(?P<denominator>[0-9]+))?"
    r"(?:\s*\\?%|\s+(?!hundred|thousand|million|billion|trillion|dozen)[a-z]{2,})?"  # a unit, but never a factor
    r"\s*\.?",
    re.IGNORECASE,
)
_LONGEST_NUMBER = 1_000


@dataclass(frozen=True)
class Verdict:
    """``extracted`` is the answer found, None when there is none; ``note`` says why an answer could not be judged."""

    extracted: str | None
    correct: bool
    note: str = ""


class Grader(Protocol):
    """Grades completions; a context manager, because some graders hold a process."""

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade ``(completion, gold)`` items, in order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def marked_answer(text: str) -> str | None:
    """Return the rest of the line after the last ``####`` (or ``A:`` at the start of a line); None without a marker."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    return text[ends[-1] :].partition("\n")[0].strip() if ends else None


def parse_number(text: str) -> str | None:
    """Normalise a number so that ``Fraction`` reads it; None when ``text`` is not exactly one number.

    Accepted: a sign, thousands commas, a currency sign, ``%``, one word of unit, a final period, a fraction ``a/b``.
    Anything that could be read as another number (``1,5``, ``16 - 3 = 13``, ``2 million``, ``1e3``) is refused.
    """
    text = _CURRENCY.sub(" ", text.replace("\N{MINUS SIGN}", "-")).strip("* \t\r\n")
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if match is None:
        return None
    number = match["sign"].replace("+", "") + match["digits"].replace(",", "").removesuffix(".")
    if match["denominator"] is None:
        return number
    if "." in number or not int(match["denominator"]):
        return None
    return f"{number}/{match['denominator']}"


def gold_answer(text: str) -> str | None:
    """Extract the number of a gold answer: after ``####`` or ``A:``, or ``text`` itself; None when there is none."""
    marked = marked_answer(text)
    return parse_number(text if marked is None else marked)


def grade_exact(completion: str, gold: str) -> Verdict:
    """Compare the number after the completion's last answer marker with ``gold``, as exact rationals.

    Raises ``DataError`` when ``gold`` holds no number: no completion could be judged against it.
    """
    target = gold_answer(gold)
    if target is None:
        raise DataError(f"gold answer {gold[-80:]!r} is not a number; correct it, or set grading to 'math'")
    marked = marked_answer(completion)
    if marked is None:
        return Verdict(None, False, "no answer marker")
    number = parse_number(marked)
    if number is None:
        return Verdict(None, False, "answer is not a number")
    return Verdict(number, Fraction(number) == Fraction(target))


class ExactGrader:
    """Grades with ``grade_exact``."""

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade ``(completion, gold)`` items, in order."""
        return [grade_exact(completion, gold) for completion, gold in items]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def grader(kind: Grading) -> Grader:
    """Return the grader of this kind, to be entered as a context."""
    if kind == "exact":
        return ExactGrader()
    from raygeo.rollouts.math_grading import MathGrader

    return MathGrader()
