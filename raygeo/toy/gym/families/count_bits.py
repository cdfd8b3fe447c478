"""How many bits of a number are 1."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class CountBitsLevel(Level):
    """How large the number is."""

    n: Span = (16, 511)


class CountBits(Family):
    """By halving, with the bits so far behind each 1: ``5=2*2+1;1;2=1*2+0;1=0*2+1;2;#### 2``."""

    name: ClassVar[str] = "count_bits"
    phrases: ClassVar[tuple[str, ...]] = ("How many 1 bits are there in the binary representation of the number ",)

    usual: CountBitsLevel = CountBitsLevel()
    harder: CountBitsLevel = CountBitsLevel(n=(512, 2047))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """One division a bit."""
        number, bits = problem["number"], 0
        while number:
            number, bit = solver.divide(number, 2)
            if bit and not solver.skips():
                bits += 1
                solver.write(str(bits))
        return bits
