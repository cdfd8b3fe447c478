"""Products of numbers: ``34 * 27``."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class ProductsLevel(Level):
    """How many factors, and of how many digits."""

    terms: Span = (2, 2)
    digits: Span = (2, 2)


class Products(Family):
    """By the products of digits: ``30*20=600;30*7=210;600+210=810;4*20=80;810+80=890;4*7=28;890+28=918;#### 918``."""

    name: ClassVar[str] = "products"
    phrases: ClassVar[tuple[str, ...]] = (
        "Solve the following multiplication: ",
        ". Give only the result as your final answer.",
    )

    usual: ProductsLevel = ProductsLevel()
    harder: ProductsLevel = ProductsLevel(terms=(3, 3), digits=(1, 2))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """One factor after the other."""
        value, *factors = map(int, problem["expression"].split(" * "))
        for factor in factors:
            if not solver.skips():
                value = solver.multiply(value, factor)
        return value
