from statistics import fmean

import pytest

from raygeo.search.configurations import grid, sample
from raygeo.search.space import Choice, Range

LR, BETA, R = ("lr",), ("loss", "beta"), ("lora", "r")
RATES = Range(1e-6, 1e-2, log=True)


def test_a_grid_is_every_combination_the_last_place_fastest():
    assert grid({BETA: Choice((1, 2)), LR: Choice((3, 4))}) == [
        {BETA: 1, LR: 3}, {BETA: 1, LR: 4}, {BETA: 2, LR: 3}, {BETA: 2, LR: 4},
    ]  # fmt: skip
    assert grid({}) == [{}]


def test_a_grid_has_no_ranges():
    with pytest.raises(ValueError, match="lr is a range"):
        grid({BETA: Choice((1,)), LR: RATES})


def test_samples_depend_on_the_seed_and_more_of_them_add_to_the_first():
    space = {LR: RATES, R: Range(1, 64)}
    assert sample(space, 5, seed=0) == sample(space, 9, seed=0)[:5]
    assert sample(space, 5, seed=0) != sample(space, 5, seed=1)


def test_spaces_that_share_a_range_share_its_draws():
    first, second = (
        sample({LR: RATES, BETA: Range(0.1, 1.0)}, 6, seed=0),
        sample({R: Range(1, 4), LR: RATES}, 6, seed=0),
    )
    assert [c[LR] for c in first] == [c[LR] for c in second]


def test_draws_of_different_places_are_unrelated_and_uniform():
    drawn = sample({("a",): Range(0.0, 1.0), ("b",): Range(0.0, 1.0)}, 2000, seed=0)
    a, b = ([c[(name,)] for c in drawn] for name in "ab")
    assert fmean(a) == pytest.approx(0.5, abs=4 / (12 * 2000) ** 0.5)
    covariance = fmean(x * y for x, y in zip(a, b, strict=True)) - fmean(a) * fmean(b)
    assert covariance == pytest.approx(0, abs=4 / 12 / 2000**0.5)


def test_samples_are_distinct_and_a_small_space_is_exhausted():
    space = {BETA: Choice((0.1, 0.2, None)), R: Range(1, 4)}
    drawn = sample(space, 100, seed=0)
    assert len(drawn) == len({repr(c) for c in drawn}) == 12
    assert sample({}, 5, seed=0) == [{}]
    assert len(sample({LR: Range(0.1, 0.10001)}, 3, seed=0)) < 3  # nothing lies between at four digits
