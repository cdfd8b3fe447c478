"""How alike are runs that differ in nothing but seeds? Cosines by configuration, and cosines without what seeds add."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, product
from statistics import fmean

import numpy as np

from raygeo.records import Condition, Seeds, configurations


@dataclass(frozen=True)
class Floor:
    """The ``n`` cosines between runs of two configurations that differ in the same kind of seeds.

    ``configuration_a`` and ``configuration_b`` are indices of a first run. Where they are equal, this is a noise floor
    and its mean the reliability of that configuration under that kind of other seeds. ``disattenuated`` is the mean
    over the root of the product of both reliabilities of that kind (Spearman 1904): what the cosine would be without
    what seeds bring in. It is None where a reliability is unknown or not positive, and within a configuration and for
    runs of the same seeds, whose noise is not independent. It may exceed 1, as both parts are estimates.
    """

    configuration_a: int
    configuration_b: int
    seeds: Seeds
    n: int
    low: float
    mean: float
    high: float
    disattenuated: float | None


def noise_floors(cosines: np.ndarray, conditions: Sequence[Condition]) -> list[Floor]:
    """Cosines of the runs of any two configurations, one entry a kind of difference in seeds.

    ``cosines`` is [N, N] and ``conditions`` say how the N runs were trained. Cosines that are not finite are left out,
    and so is a run of the same condition as one before it.
    """
    foremost = {condition: i for i, condition in reversed(list(enumerate(conditions)))}
    groups = [[i for i in group if foremost[conditions[i]] == i] for group in configurations(conditions)]
    found: dict[tuple[int, int], dict[Seeds, list[float]]] = {}
    for a, b in combinations_with_replacement(groups, 2):
        kinds = found.setdefault((a[0], b[0]), defaultdict(list))
        for i, j in combinations(a, 2) if a is b else product(a, b):
            kind = conditions[i].seeds(conditions[j])
            if np.isfinite(cosines[i, j]) and not (a is b and kind == "same"):
                kinds[kind].append(float(cosines[i, j]))
    means = {(first, second, kind): fmean(v) for (first, second), k in found.items() for kind, v in k.items()}
    floors = []
    for (first, second, seeds), mean in means.items():
        values = found[first, second][seeds]
        reliabilities = (means.get((one, one, seeds)) for one in (first, second))
        corrected = None if first == second else disattenuate(mean, *reliabilities)
        floors.append(Floor(first, second, seeds, len(values), min(values), mean, max(values), corrected))
    return floors


def disattenuate(cosine: float, reliability_a: float | None, reliability_b: float | None) -> float | None:
    """Cosine over the geometric mean of two reliabilities, not clipped; None where one is unknown or not positive.

    This is the correction for attenuation of Spearman (1904).
    """
    if reliability_a is None or reliability_b is None or min(reliability_a, reliability_b) <= 0:
        return None
    return cosine / math.sqrt(reliability_a * reliability_b)
