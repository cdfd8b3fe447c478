"""Sums and differences of several numbers: ``12 + 40 - 85``."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class ChainSumLevel(Level):
    """How long the sums are; a sum has numbers of equally many digits."""

    terms: Span = (2, 4)
    digits: Span = (2, 2)


class ChainSum(Family):
    """From left to right: ``12+40=52;52-85=-33;#### -33``."""

    name: ClassVar[str] = "chain_sum"
    phrases: ClassVar[tuple[str, ...]] = ("State the final answer to the following arithmetic problem: ",)

    usual: ChainSumLevel = ChainSumLevel()
    harder: ChainSumLevel = ChainSumLevel(terms=(5, 6))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """One step a sign."""
        first, *rest = problem["expression"].split()
        value = int(first)
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            if not solver.skips():
                value = (solver.add if sign == "+" else solver.subtract)(value, int(term))
        return value
