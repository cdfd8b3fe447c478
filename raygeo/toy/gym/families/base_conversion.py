"""Numbers from one base into another."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver

TEN = 10


class BaseConversionLevel(Level):
    """Which bases, and how large the number is. Of bases above ten, answers would not be digits alone."""

    least: ClassVar[Mapping[str, int]] = {"base": 2, "value": 0}

    base: Span = (2, 8)
    value: Span = (8, 63)

    @model_validator(mode="after")
    def _digits(self) -> Self:
        if self.base[1] > TEN:
            raise ValueError(f"base is {list(self.base)}; answers are graded as numbers, so give bases up to {TEN}")
        return self


class BaseConversion(Family):
    """Into base ten digit by digit, and on by division: ``1*3=3;3+2=5;5=1*4+1;1=0*4+1;#### 11``."""

    name: ClassVar[str] = "base_conversion"
    phrases: ClassVar[tuple[str, ...]] = (
        "Your task is to convert a number between two different bases.\n\nIf the target base is > 10, use lowercase "
        "letters a-z for digits above 9.\n\nNow, convert the ",
        "binary",
        "base-",
        " number ",
        " to ",
    )

    usual: BaseConversionLevel = BaseConversionLevel()
    harder: BaseConversionLevel = BaseConversionLevel(value=(64, 200))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> str:
        """Horner's scheme, then one division a digit; nothing of what begins or ends in base ten."""
        source, target, digits = problem["source_base"], problem["target_base"], problem["source_repr"]
        value = int(digits) if source == TEN else int(digits[0])
        if source != TEN:
            for digit in digits[1:]:
                if not solver.skips():
                    value = solver.add(solver.times(value, source), int(digit))
        if target == TEN:
            return str(value)
        written = ""
        while value:
            value, digit = solver.divide(value, target)
            written = f"{digit}{written}"
        return written or "0"
