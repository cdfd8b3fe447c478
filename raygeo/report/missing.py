"""What is missing of a page, in sentences, and how a part of it that fails is kept from taking the others."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from raygeo.errors import RaygeoError
from raygeo.report.view import View

LAST = "report"
"""The stage that makes the page: what fails in it is found anew whenever the page is written."""
T = TypeVar("T")


class Failures:
    """Parts of a page that failed, by what they are called, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, Exception] = {}

    def attempt(self, what: str, make: Callable[[], T]) -> T | None:
        """What ``make`` returns; if it fails, None, and that is noted under the name ``what``."""
        try:
            return make()
        except Exception as error:
            self.reasons[what] = error
            return None

    def sentences(self) -> list[str]:
        """A sentence for each."""
        return [
            f"{what} failed and was left out: {brief(said(error)).rstrip('.')}." for what, error in self.reasons.items()
        ]


def named(make: Callable[..., Any]) -> str:
    """Where a function is written."""
    return f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', make)}".removeprefix("raygeo.")


def said(error: Exception) -> str:
    """An error in words, with its kind if it is none of raygeo's own."""
    return str(error).strip() if isinstance(error, RaygeoError) else f"{type(error).__name__}: {error}"


def brief(reason: str) -> str:
    """A reason on one line: its first and last, of a traceback the last."""
    lines = reason.strip().splitlines() or ["no reason was recorded"]
    if len(lines) == 1 or lines[0].startswith("Traceback"):
        return lines[-1].strip()
    return f"{lines[0]} {lines[-1].strip()}"


def gap(part: str, reason: str) -> str:
    """A sentence on a part that failed, and why."""
    return f"{part} failed, so that its part of this page is missing or incomplete: {brief(reason)}"


def gaps(view: View) -> list[str]:
    """A sentence for everything that failed before the page was made; runs are named where their results would be."""
    runs = {f"run {name}" for name in view.failed}
    return [
        gap(row["part"], row["reason"])
        for row in view.rows("missing")
        if row["stage"] != LAST and row["part"] not in runs
    ]


def unreached(stages: Iterable[str], ended: Collection[str]) -> list[str]:
    """A sentence on the stages that have not ended."""
    lacking = [stage for stage in stages if stage not in ended]
    if not lacking:
        return []
    one = len(lacking) == 1
    return [
        f"{'The stage' if one else 'The stages'} {', '.join(lacking)} {'has' if one else 'have'} not come to an end: "
        f"what stands here of {'it' if one else 'them'}, if anything, is unfinished or was made by an earlier study. "
        "Run the study again to go on."
    ]
