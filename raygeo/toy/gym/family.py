"""What a family of problems is: two levels of difficulty, and how we solve its problems."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from raygeo.settings import Settings
from raygeo.toy.gym.solver import Solver

LevelName = Literal["usual", "harder"]
Span = tuple[int, int]
"""The lowest and the highest of something, both included."""


class Level(Settings):
    """How hard problems are: ranges that are called as reasoning-gym calls them, ``terms`` for its ``min_terms`` and
    ``max_terms``. What has no range here is as by reasoning-gym's default.
    """

    least: ClassVar[Mapping[str, int]] = {}
    """The smallest number that makes sense of each range; 1 where nothing is said."""

    @model_validator(mode="after")
    def _ordered(self) -> "Level":
        for name, (low, high) in self.model_dump().items():
            least = self.least.get(name, 1)
            if not least <= low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; give [lowest, highest], of {least} or more")
        return self

    def config(self) -> dict[str, int]:
        """The arguments of reasoning-gym's configuration."""
        spans = self.model_dump().items()
        return {f"{end}_{name}": value for name, span in spans for end, value in zip(("min", "max"), span, strict=True)}


class Family(Settings, ABC):
    """A dataset of reasoning-gym whose answers are whole numbers.

    A family is one file in ``families``, found by itself.
    """

    name: ClassVar[str]
    """What reasoning-gym calls it."""
    phrases: ClassVar[tuple[str, ...]]
    """What its questions have in common: one token each."""
    nouns: ClassVar[tuple[str, ...]] = ()
    """Words that are one token behind a number and a space."""

    usual: Level
    """The problems of rollouts, and of benchmarks within their distribution."""
    harder: Level
    """Problems of the same kind that are longer or larger."""

    @abstractmethod
    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int | str:
        """Write the steps with ``solver`` and return the answer; ``problem`` is reasoning-gym's metadata of one."""
