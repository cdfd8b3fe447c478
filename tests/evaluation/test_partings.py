"""When accuracies part and meet, by published intervals and curves made by hand."""

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from raygeo.evaluation.partings import Accuracy, Parting, gap, parting
from raygeo.evaluation.statistics import wilson


def accuracy(correct, n):
    return Accuracy(correct / n, *wilson(correct, n))


def test_the_interval_of_a_difference_is_newcombes():
    """His example (a) of method 10, 56 of 70 less 48 of 80, and an independent implementation of it."""
    assert gap(accuracy(56, 70), accuracy(48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    for right_a, n_a, right_b, n_b in ((9, 10, 3, 10), (10, 10, 0, 10), (6, 7, 2, 7), (0, 30, 1, 25)):
        expected = confint_proportions_2indep(right_a, n_a, right_b, n_b, method="newcomb", compare="diff")
        assert gap(accuracy(right_a, n_a), accuracy(right_b, n_b)) == pytest.approx(expected, abs=1e-9)


def curve(*correct, n=100):
    return {step: accuracy(right, n) for step, right in enumerate(correct)}


def test_grokking_is_a_parting_and_a_meeting():
    train, ood = curve(10, 60, 99, 100, 100, 100), curve(10, 10, 12, 40, 97, 99)
    assert parting(train, ood) == Parting(1, 4, pytest.approx(0.87), 2)


def test_they_meet_only_where_no_gap_comes_back():
    assert parting(curve(10, 80, 80, 80, 80), curve(10, 10, 78, 10, 79)) == Parting(1, 4, pytest.approx(0.7), 1)
    assert parting(curve(10, 80, 80, 80), curve(10, 10, 78, 10)) == Parting(1, None, pytest.approx(0.7), 1)


def test_a_curve_below_does_not_part():
    assert parting(curve(10, 10), curve(90, 95)).part is None


def test_only_steps_of_both_are_compared():
    train = curve(10, 90)
    assert parting(train, {1: accuracy(10, 100), 7: accuracy(10, 100)}) == Parting(1, None, pytest.approx(0.8), 1)
    with pytest.raises(ValueError, match="no step has both"):
        parting(train, {7: accuracy(1, 2)})


def test_equal_accuracies_part_as_often_as_the_interval_allows():
    """The null: problems of one kind, one step; wholly above 0 in at most 2.5 % of the draws, and some."""
    rng = np.random.default_rng(0)
    draws = rng.binomial(64, 0.4, (2000, 2))
    parted = np.mean([parting(curve(a, n=64), curve(b, n=64)).part is not None for a, b in draws.tolist()])
    assert 0.01 < parted < 0.035
