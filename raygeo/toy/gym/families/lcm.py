"""Least common multiples."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class LcmLevel(Level):
    """How many numbers, and how large."""

    least: ClassVar[Mapping[str, int]] = {"numbers": 2}

    numbers: Span = (2, 2)
    value: Span = (2, 40)


class Lcm(Family):
    """One number over the greatest common divisor, times the other: ``...;18=3*6+0;3*30=90;#### 90``."""

    name: ClassVar[str] = "lcm"
    phrases: ClassVar[tuple[str, ...]] = ("Find the Least Common Multiple (LCM) of these numbers: ",)

    usual: LcmLevel = LcmLevel()
    harder: LcmLevel = LcmLevel(value=(41, 60))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """The multiple of the first two numbers, then that of it and the next."""
        multiple, *numbers = problem["numbers"]
        for number in numbers:
            if not solver.skips():
                quotient, _ = solver.divide(multiple, solver.gcd(multiple, number))
                multiple = solver.multiply(quotient, number)
        return multiple
