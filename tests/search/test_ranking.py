import numpy as np
import pytest

from raygeo.search.ranking import fronts, ranked
from raygeo.search.settings import Constraint


def slow_fronts(results, signs):
    """By definition: a result's rank is one more than the largest rank among those that dominate it."""
    values = [tuple(s * v for s, v in zip(signs, r, strict=True)) for r in results]

    def rank(i):
        better = [
            j for j, v in enumerate(values)
            if all(a <= b for a, b in zip(v, values[i], strict=True)) and v != values[i]
        ]  # fmt: skip
        return 1 + max((rank(j) for j in better), default=0)

    return [rank(i) for i in range(len(values))]


@pytest.mark.parametrize("modes", [["min"], ["max"], ["min", "max"], ["max", "max", "min"]])
def test_ranks_follow_the_definition(modes):
    results = np.random.default_rng(0).integers(0, 5, (18, len(modes))).tolist()
    assert fronts(results, modes) == slow_fronts(results, [-1 if mode == "max" else 1 for mode in modes])


def test_nothing_has_no_ranks():
    assert fronts([], ["min"]) == []


def test_one_objective_gives_places():
    assert fronts([[0.3], [0.9], [0.3], [0.1]], ["max"]) == [2, 1, 2, 3]


def test_what_keeps_the_bounds_comes_before_all_that_does_not():
    bounds = [Constraint(metric="forgetting", at_most=0.1), Constraint(metric="kl", at_least=1.0)]
    results = [
        [0.9, 0.2, 1.0],  # the best, but it forgets
        [0.5, 0.1, 1.0],
        [0.7, 0.0, 2.0],
        [0.8, 0.15, 0.5],  # beats none of the others beyond bounds in both
        [0.9, 0.3, 0.4],  # further beyond both
    ]
    assert ranked(results, ["max"], bounds) == [(3, False), (2, True), (1, True), (3, False), (4, False)]


def test_without_bounds_all_have_the_ranks_of_their_fronts():
    results = np.random.default_rng(1).integers(0, 5, (12, 2)).tolist()
    assert ranked(results, ["min", "max"], []) == [(rank, True) for rank in fronts(results, ["min", "max"])]


def test_where_nothing_keeps_the_bounds_the_nearest_is_first():
    assert ranked([[1.0, 3.0], [9.0, 2.0]], ["max"], [Constraint(metric="x", at_most=1)]) == [(2, False), (1, False)]
