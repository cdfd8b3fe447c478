"""The legs of several animals."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver

LEGS = {
    0: ("flatworm", "jellyfish", "leech", "sea slug", "snake"),
    2: ("bird", "chicken", "duck", "human"),
    4: ("cat", "cow", "deer", "dog", "elephant", "giraffe", "horse", "lion", "sheep", "tiger"),
    5: ("starfish",),
    6: (
        "ant", "bee", "beetle", "butterfly", "cockroach", "cricket", "firefly", "grasshopper", "insect",
        "praying mantis", "wasp",
    ),
    8: ("scorpion", "spider"),
    10: ("crab", "lobster", "shrimp"),
    14: ("woodlouse",),
}  # fmt: skip
"""The animals of reasoning-gym by the number of their legs."""
_LEGS_OF = {animal: legs for legs, animals in LEGS.items() for animal in animals}


class LegCountingLevel(Level):
    """How many kinds of animals, and how many of each."""

    animals: Span = (2, 3)
    instances: Span = (1, 9)


class LegCounting(Family):
    """Kind by kind, added up as they come: ``3*4=12;2*6=12;12+12=24;#### 24``."""

    name: ClassVar[str] = "leg_counting"
    phrases: ClassVar[tuple[str, ...]] = (
        "Your task is to count how many legs there are in total when given a list of animals.\n\nNow, how many legs "
        "are there in total if you have ",
    )
    nouns: ClassVar[tuple[str, ...]] = tuple(_LEGS_OF)

    usual: LegCountingLevel = LegCountingLevel()
    harder: LegCountingLevel = LegCountingLevel(animals=(4, 5))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """One product a kind, and one sum for each but the first."""
        total: int | None = None
        for animal, count in problem["animals"].items():
            if not solver.skips():
                legs = solver.times(count, _LEGS_OF[animal])
                total = legs if total is None else solver.add(total, legs)
        return total or 0
