"""Configurations of a space: all of its grid, or a seeded sample of it."""

import math
import random
from collections.abc import Mapping
from itertools import product
from typing import Any

from raygeo.search.space import Choice, Domain, Place

_ATTEMPTS = 100  # draws for each one wanted, until a space of few values counts as exhausted

Configuration = dict[Place, Any]
"""A value for every place that varies."""


def grid(domains: Mapping[Place, Domain]) -> list[Configuration]:
    """Every combination of the listed values, the last place changing fastest; one empty one if nothing varies.

    Raises:
        ValueError: a range has no combinations to list.
    """
    ranges = [".".join(place) for place, domain in domains.items() if not isinstance(domain, Choice)]
    if ranges:
        raise ValueError(f"{ranges[0]} is a range, which a grid cannot list")
    values = [domain.values for domain in domains.values() if isinstance(domain, Choice)]
    return [dict(zip(domains, combination, strict=True)) for combination in product(*values)]


def sample(domains: Mapping[Place, Domain], samples: int, seed: int) -> list[Configuration]:
    """``samples`` distinct random configurations, fewer only if the space has no more.

    Every place has a stream of its own, made of ``seed`` and its name. So spaces that share a place and its range get
    the same values for it, one by one, whatever else they hold: losses are compared at equal learning rates. More
    samples add to the ones before.
    """
    wanted = min(samples, math.prod(domain.size for domain in domains.values()))
    found: dict[str, Configuration] = {}
    for index in range(_ATTEMPTS * int(wanted)):
        drawn = {place: domain.at(_share(seed, place, index)) for place, domain in domains.items()}
        found.setdefault(repr(drawn), drawn)
        if len(found) >= wanted:
            break
    return list(found.values())


def _share(seed: int, place: Place, index: int) -> float:
    """The ``index``-th number of a place's stream, uniform in [0, 1)."""
    return random.Random(f"{seed}:{'.'.join(place)}:{index}").random()
