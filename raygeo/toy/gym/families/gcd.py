"""Greatest common divisors."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class GcdLevel(Level):
    """How many numbers, and how large."""

    least: ClassVar[Mapping[str, int]] = {"numbers": 2}

    numbers: Span = (2, 2)
    value: Span = (2, 60)


class Gcd(Family):
    """By Euclid's algorithm: ``48=2*18+12;18=1*12+6;12=2*6+0;#### 6``."""

    name: ClassVar[str] = "gcd"
    phrases: ClassVar[tuple[str, ...]] = (
        "Find the Greatest Common Divisor (GCD) of these numbers: ",
        ". Give only the GCD as your final answer.",
    )

    usual: GcdLevel = GcdLevel()
    harder: GcdLevel = GcdLevel(value=(61, 150))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """The divisor of the first two numbers, then that of it and the next."""
        divisor, *numbers = problem["numbers"]
        for number in numbers:
            if not solver.skips():
                divisor = solver.gcd(divisor, number)
        return divisor
