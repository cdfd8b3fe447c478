"""Is a completion's final answer right? Exact numbers here; symbolic answers in ``raygeo.data.math_grading``.

The GSM8K convention (Cobbe et al. 2021, arXiv:2110.14168): a solution ends in a line ``#### 18``; the model solutions
published with it end in ``A: 18``. Numbers are compared as exact rationals, never as floats.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol, Self

from raygeo.data.units import is_unit
from raygeo.errors import DataError

Grading = Literal["exact", "math"]
"""``exact``: a number after ``####`` or ``A:``. ``math``: any expression, compared symbolically by math-verify."""

GradingChoice = Literal["auto", "exact", "math"]
"""``auto``: whichever can read the rollouts, see ``choose_grading``."""

RULES = 2
"""Version of all graders, a part of the keys of what they grade: raise it when verdicts change."""

NO_MARKER = "no answer marker"
_MARKER = re.compile(r"####+|^[ \t]*A:", re.MULTILINE)
_LABEL = re.compile(r"[*_\s]*(?:the\s+)?(?:final\s+)?answer\b(?:\s+is\b)?[*_\s]*[:=]?[*_\s]*", re.IGNORECASE)
_BOX = r"(?<!\\)\\+(?:boxed|fbox)(?![A-Za-z])\s*"
_BARE = (
    r"(?!\\+(?:boxed|fbox))(?:[-+.\d\\(\[]|[A-Za-z](?![A-Za-z]))(?:[^\s$]|[^\S\n]++)*?"
    r"(?=\s*(?:\\\)|\\\]|\\+boxed|\\+fbox|[$\n]|\Z))"
)
_GROUPS = re.compile(rf"(?P<box>{_BOX}\{{)|{_BOX}(?P<bare>{_BARE})|\\.|[{{}}]", re.DOTALL)
_JOINT = re.compile(r"(?:[\s$]|\\[()\[\]])*(?:[,;]|,?\s*\b(?:and|or)\b)(?:[\s$]|\\[()\[\]])*")
_ONLY_BOX = re.compile(rf"\$*\s*{_BOX}(?:\{{(?P<inside>[^{{}}]*)\}}|(?P<bare>[^\s${{}}\\]+))\s*\$*\s*\.?")
_CURRENCY = re.compile(r"\\?[$€£]")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:\s*/\s*(?P<denominator>[0-9]+))?"
    r"(?:\s*\\?%|\s+(?P<unit>[a-z]{2,}))?"
    r"\s*\.?",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(r"[\d\\]")
_LONGEST_NUMBER = 1_000


@dataclass(frozen=True)
class Verdict:
    """``extracted`` is the answer found, None when there is none; ``note`` says why an answer could not be judged.

    ``correct`` is None where that could not be decided (the time was up, the comparison failed): this is not "wrong".
    """

    extracted: str | None
    correct: bool | None
    note: str = ""


class Grader(Protocol):
    """Grades completions; a context manager, because some graders hold a process."""

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade ``(completion, gold)`` items, in order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def marked_answer(text: str) -> str | None:
    """Return what the last ``####`` (or ``A:`` at the start of a line) announces; None without such a marker.

    That is the rest of its line or, where this is blank, the next line that is not; a label ("Answer:") is left out.
    """
    ends = [match.end() for match in _MARKER.finditer(text)]
    if not ends:
        return None
    line, _, below = text[ends[-1] :].partition("\n")
    return unlabelled(line) or unlabelled(below.lstrip().partition("\n")[0])


def unlabelled(answer: str) -> str:
    """Return an answer without emphasis and without a label such as "Answer:" or "The final answer is"."""
    label = _LABEL.match(answer)
    return (answer[label.end() :] if label else answer).strip("* \t\r\n")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` or ``\fbox{...}`` that is closed and not empty; None without one.

    Of nested boxes the innermost counts. ``\boxed 5`` is understood. Boxes joined by nothing but a comma, "and" or "or"
    are one answer of several values: their contents, joined by commas.
    """
    if "box" not in text:
        return None
    boxes: list[tuple[int, int, str]] = []  # start, end, content
    opened: list[tuple[int, int] | None] = []  # where each open brace's box and its content begin, if it is a box's
    for group in _GROUPS.finditer(text):
        if group["box"]:
            opened.append(group.span())
        elif group["bare"]:
            boxes.append((*group.span(), group["bare"].rstrip(" .,")))
        elif group[0] == "{":
            opened.append(None)
        elif group[0] == "}" and opened and (box := opened.pop()) is not None:
            boxes.append((box[0], group.end(), text[box[1] : group.start()].strip()))
    boxes = sorted(box for box in boxes if box[2])
    contents: list[str] = []
    start = len(text)
    while boxes and (not contents or _JOINT.fullmatch(text, boxes[-1][1], start)):
        start, _, content = boxes.pop()
        contents.append(content)
    return ", ".join(dict.fromkeys(reversed(contents))) or None


def parse_number(text: str) -> str | None:
    r"""Normalise a number so that ``Fraction`` reads it; None when ``text`` is not exactly one number.

    Accepted: a sign, thousands commas, a currency sign, ``%``, one word of unit (see ``raygeo.data.units``), a
    final period, a fraction ``a/b``, and a ``\boxed{}`` or emphasis around it all. Anything that could be read as
    another number (``1,5``, ``16 - 3 = 13``, ``2 million``, ``5 pi``, ``1e3``) is refused.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    boxed = _ONLY_BOX.fullmatch(text.strip("* \t\r\n"))
    if boxed:
        text = boxed["inside"] or boxed["bare"] or ""
    text = _CURRENCY.sub(" ", text.replace("\N{MINUS SIGN}", "-")).strip("* \t\r\n")
    match = _NUMBER.fullmatch(text)
    if match is None or (match["unit"] and not is_unit(match["unit"])):
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
        return Verdict(None, False, NO_MARKER)
    number = parse_number(marked)
    if number is None:
        return Verdict(None, False, "answer is not a number")
    return Verdict(number, Fraction(number) == Fraction(target))


class Choice(NamedTuple):
    """How a study is graded, and why."""

    grading: Grading
    reason: str


GoldKind = Literal["number", "expression", "words"]
GOLD_KINDS: tuple[GoldKind, ...] = ("number", "expression", "words")


def gold_kind(gold: str) -> GoldKind:
    """What a gold answer is; one without digits or LaTeX ("unknown") is no expression."""
    if gold_answer(gold) is not None:
        return "number"
    return "expression" if _EXPRESSION.search(gold) else "words"


@dataclass(frozen=True)
class Answers:
    r"""How gold answers and completions give answers: gold answers by kind, completions that have a ``\boxed{}``, and
    those that name theirs after ``####`` or ``A:``.
    """

    golds: Mapping[GoldKind, int]
    completions: int
    boxed: int
    marked: int

    @property
    def need_math(self) -> bool:
        """Whether some gold answers are expressions, or all of them something other than numbers."""
        words = self.golds.get("words", 0)
        return self.golds.get("expression", 0) > 0 or 0 < words == sum(self.golds.values())


def choose_grading(answers: Answers) -> Choice:
    r"""Choose the grader that can read what is there.

    ``exact`` if gold answers are numbers, no completion has a ``\boxed{}``, and at least half of them name their answer
    after ``####`` or ``A:``; else ``math``, which reads all of these and phrases such as "the answer is 18" too.
    """
    if answers.need_math:
        return Choice("math", "gold answers are not all plain numbers")
    if answers.boxed:
        return Choice("math", rf"{answers.boxed} of {answers.completions} completions answer in \boxed{{}}")
    said = f"{answers.marked} of {answers.completions} completions name their answer after #### or A:"
    return Choice("exact" if 2 * answers.marked >= answers.completions else "math", said)


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
    from raygeo.data.math_grading import MathGrader

    return MathGrader()
