"""Problems drawn from reasoning-gym, each with its question, its right answer and the steps that we solve it by."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from random import Random
from types import ModuleType
from typing import Any

from raygeo.errors import ConfigError
from raygeo.toy.gym.family import Family, LevelName
from raygeo.toy.gym.solver import Slips, Solver

PACKAGE = "reasoning-gym"
_ENDLESS = 1 << 31
_REPEATS = 1000
"""Problems in a row that were drawn before, after which there are taken to be no others."""


@dataclass(frozen=True)
class GymProblem:
    """One problem: ``metadata`` is what reasoning-gym says of it."""

    family: Family
    level: LevelName
    prompt: str
    gold: str
    metadata: Mapping[str, Any]

    @cached_property
    def solution(self) -> str:
        """A solution without slips."""
        return self.solve(Slips(), Random(0))

    def solve(self, slips: Slips, rng: Random) -> str:
        """A solution with slips that ``rng`` draws."""
        solver = Solver(slips, rng)
        return solver.solution(self.family.solve(self.metadata, solver))


def import_gym() -> ModuleType:
    """Import reasoning-gym.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            "builtin:reasoning-gym needs reasoning-gym, which is not installed here: pip install 'raygeo[gym]'."
        ) from error
    return reasoning_gym


def gym_version() -> str:
    """The version of reasoning-gym, which decides what is drawn.

    Raises:
        ConfigError: it is not installed.
    """
    import_gym()
    try:
        return version(PACKAGE)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"the version of {PACKAGE} is not known here; install it: pip install 'raygeo[gym]'."
        ) from error


def draw(family: Family, level: LevelName, seed: str) -> Iterator[GymProblem]:
    """Problems of a family without end, the same for the same ``seed`` and version of reasoning-gym.

    The question is followed by a line break, so that it is plain where a completion begins.

    Raises:
        ConfigError: reasoning-gym is missing or refuses the level.
    """
    digest = hashlib.sha256(f"{family.name} {level} {seed}".encode()).digest()
    config = getattr(family, level).config()
    try:
        # Draws of seed s and index i are those of s + i: seeds that are near each other would give the same problems.
        dataset = import_gym().create_dataset(
            family.name, seed=int.from_bytes(digest[:6], "big"), size=_ENDLESS, **config
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"reasoning-gym refuses {family.name} of {config}: {error}") from error
    for index in range(_ENDLESS):
        entry = dataset[index]
        yield GymProblem(family, level, f"{entry['question'].strip()}\n", entry["answer"], entry["metadata"])


def check_levels(families: Sequence[Family]) -> None:
    """Draw a problem of each family and level.

    Raises:
        ConfigError: reasoning-gym is missing or refuses one.
    """
    levels: tuple[LevelName, ...] = ("usual", "harder")
    for family in families:
        for level in levels:
            next(draw(family, level, "check"))


def distinct_problems(families: Sequence[Family], level: LevelName, count: int, seed: int) -> list[GymProblem]:
    """``count`` problems with different prompts, the families taking turns; the first of more are the same.

    Raises:
        ConfigError: there are not so many.
    """
    streams = [draw(family, level, f"problems {seed}") for family in families]
    found: dict[str, GymProblem] = {}
    while len(found) < count:
        stream = streams[len(found) % len(streams)]
        for _ in range(_REPEATS):
            problem = next(stream)
            if problem.prompt not in found:
                found[problem.prompt] = problem
                break
        else:
            family = families[len(found) % len(streams)]
            raise ConfigError(
                f"{count:,} different problems are asked for, but {family.name} ({level}) seems to have no more than "
                f"{sum(each.family is family for each in found.values()):,}: ask for fewer, or widen its ranges in "
                f"student.gym.levels.{family.name}.{level}."
            )
    return list(found.values())
