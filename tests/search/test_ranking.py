import numpy as np
import pytest

from raygeo.search.ranking import fronts


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
