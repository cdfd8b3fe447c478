"""When two accuracies of a run in training part, and when they meet again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from raygeo.evaluation.statistics import Interval


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with the ends of its interval."""

    value: float
    low: float
    high: float


def gap(a: Accuracy, b: Accuracy) -> Interval:
    """Return an interval of ``a - b``, of the level of theirs, for answers to different problems.

    It is made of the two intervals (MOVER; Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::
    AID-SIM779>3.0.CO;2-I, method 10, where these are Wilson's): ``d - sqrt((a - low_a)^2 + (high_b - b)^2)`` to
    ``d + sqrt((high_a - a)^2 + (b - low_b)^2)``, d being the difference.
    """
    difference = a.value - b.value
    below = sqrt((a.value - a.low) ** 2 + (b.high - b.value) ** 2)
    above = sqrt((a.high - a.value) ** 2 + (b.value - b.low) ** 2)
    return Interval(difference - below, difference + above)


@dataclass(frozen=True)
class Parting:
    """Steps at which accuracies ``part`` and ``meet``, None where they do not, and the largest gap with its step."""

    part: int | None
    meet: int | None
    largest: float
    at: int


def parting(train: Mapping[int, Accuracy], other: Mapping[int, Accuracy]) -> Parting:
    """Compare the accuracy on training problems with that on others, both by step, over the steps of both.

    They part at the first step whose gap, training less other, has an interval (``gap``) wholly above 0. They meet at
    the first step after that from which on no later interval is wholly above 0. These are descriptions of what was
    measured: nothing is corrected for the number of steps, and few problems hide a gap.

    Raises:
        ValueError: no step has both.
    """
    steps = sorted(train.keys() & other.keys())
    if not steps:
        raise ValueError("no step has both accuracies")
    apart = [gap(train[step], other[step]).low > 0 for step in steps]
    gaps = [train[step].value - other[step].value for step in steps]
    largest = max(range(len(steps)), key=gaps.__getitem__)
    if not any(apart):
        return Parting(None, None, gaps[largest], steps[largest])
    last = _last(apart)
    meet = steps[last + 1] if last + 1 < len(steps) else None
    return Parting(steps[apart.index(True)], meet, gaps[largest], steps[largest])


def _last(flags: Sequence[bool]) -> int:
    return max(i for i, flag in enumerate(flags) if flag)
