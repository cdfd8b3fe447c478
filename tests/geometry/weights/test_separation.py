import itertools

import numpy as np
import pytest

from raygeo.geometry.weights.separation import permutation_test, separation
from raygeo.records import Condition


def crossed(losses, seeds, settings="lr"):
    return [Condition(loss, settings, seed, None) for loss in losses for seed in range(seeds)]


def cosines_of(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def noisy(conditions, effect, rng, d=30):
    """Runs that are the effect of their loss, plus what their order does, plus noise of their own."""
    losses = {c.loss: effect * rng.standard_normal(d) for c in conditions}
    orders = {c.seed: rng.standard_normal(d) for c in conditions}
    return cosines_of(np.array([losses[c.loss] + orders[c.seed] + 0.3 * rng.standard_normal(d) for c in conditions]))


def brute_force(cosines, conditions):
    """Differences of means of all groupings that permuting losses among runs of a seed gives, and the observed one."""

    def difference(labels):
        within, between = [], []
        for (i, a), (j, b) in itertools.combinations(enumerate(conditions), 2):
            if a.settings == b.settings and a.seed != b.seed:
                (within if labels[i] == labels[j] else between).append(cosines[i, j])
        return np.mean(within) - np.mean(between)

    strata = {}
    for i, c in enumerate(conditions):
        strata.setdefault((c.settings, c.seed), []).append(i)
    groupings = {}
    for orders in itertools.product(*(itertools.permutations(s) for s in strata.values())):
        labels = [c.loss for c in conditions]
        for stratum, order in zip(strata.values(), orders, strict=True):
            for i, j in zip(stratum, order, strict=True):
                labels[i] = conditions[j].loss
        renamed = tuple(labels.index(label) for label in labels)
        groupings[renamed] = difference(labels)
    return np.array(list(groupings.values())), difference([c.loss for c in conditions])


DESIGNS = [
    crossed("abc", 3),
    crossed("abcd", 2),
    [*crossed("abc", 2), Condition("e", "lr", 0, None), Condition("f", "lr", 0, None)],
    [*crossed("abc", 2, "low"), *crossed("abc", 2, "high")],
    [
        *crossed("abc", 2, "low"),
        Condition("a", "high", 0, None),
        Condition("b", "high", 0, None),
        *crossed("abc", 2, "z"),
    ],
]


@pytest.mark.parametrize("conditions", DESIGNS)
@pytest.mark.parametrize("effect", [0.0, 0.8])
def test_p_is_exact(conditions, effect):
    cosines = noisy(conditions, effect, np.random.default_rng(3))
    kept = [i for i, c in enumerate(conditions) if c.settings != "high" or len(conditions) != 14]
    found = separation(cosines, conditions, 10**6, 0)
    values, observed = brute_force(cosines[np.ix_(kept, kept)], [conditions[i] for i in kept])
    assert found.labelings == len(values)
    assert found.p == pytest.approx((values >= observed - 1e-12).mean(), abs=1e-15)
    assert found.within_mean - found.between_mean == pytest.approx(observed, abs=1e-14)
    assert (found.draws, found.reason) == (None, "")


def test_drawn_labelings_give_nearly_the_exact_p():
    conditions = crossed("abcd", 3)
    cosines = noisy(conditions, 0.1, np.random.default_rng(2))
    exact, drawn = (separation(cosines, conditions, draws, 5) for draws in (10**5, 2000))
    assert exact.draws is None
    assert drawn.draws == 2000
    assert 0.02 < exact.p < 0.98
    assert drawn.p == pytest.approx(exact.p, abs=4 * (exact.p * (1 - exact.p) / 2000) ** 0.5)
    assert separation(cosines, conditions, 2000, 5) == drawn
    assert separation(cosines, conditions, 2000, 6).p != drawn.p


def test_the_least_drawn_p_is_not_zero():
    conditions = crossed("abcdef", 4)
    cosines = np.array([[1.0 if a.loss == b.loss else 0.0 for b in conditions] for a in conditions])
    assert separation(cosines, conditions, 199, 0).p == 1 / 200


def test_p_is_uniform_where_losses_do_nothing_though_seeds_do():
    """Runs of one data order are alike; free permutation over seeds would not be calibrated here."""
    conditions, rng = crossed("abc", 3), np.random.default_rng(0)
    p = np.array([separation(noisy(conditions, 0.0, rng), conditions, 1000, 0).p for _ in range(300)])
    for level in (1 / 36, 0.25, 0.5, 0.75):
        assert (p <= level + 1e-9).mean() == pytest.approx(level, abs=3.5 * (level * (1 - level) / 300) ** 0.5)


def test_within_and_between_are_of_other_seeds_alone():
    conditions = crossed("ab", 2)
    same, within, between = 0.9, 0.6, 0.2
    cosines = np.eye(4)
    for (i, a), (j, b) in itertools.permutations(enumerate(conditions), 2):
        cosines[i, j] = within if a.loss == b.loss else same if a.seed == b.seed else between
    found = separation(cosines, conditions, 99, 0)
    assert (found.runs, found.losses, found.within_n, found.between_n) == (4, 2, 2, 2)
    assert (found.within_mean, found.between_mean) == pytest.approx((within, between))
    assert (found.d_prime, found.p, found.labelings) == (None, None, 2)
    assert "2 different labelings cannot give a p-value below 0.05" in found.reason


def test_d_prime_is_the_difference_over_the_pooled_deviation():
    conditions = crossed("ab", 3)
    cosines = noisy(conditions, 0.5, np.random.default_rng(0))
    pairs = [(i, j) for i, j in itertools.combinations(range(6), 2) if conditions[i].seed != conditions[j].seed]
    within = [cosines[i, j] for i, j in pairs if conditions[i].loss == conditions[j].loss]
    between = [cosines[i, j] for i, j in pairs if conditions[i].loss != conditions[j].loss]
    pooled = np.sqrt((5 * np.var(within, ddof=1) + 5 * np.var(between, ddof=1)) / 10)
    expected = (np.mean(within) - np.mean(between)) / pooled
    assert separation(cosines, conditions, 99, 0).d_prime == pytest.approx(expected, rel=1e-12)


def test_one_pair_of_a_kind_has_no_spread_to_measure_a_difference_by():
    conditions = [*crossed("a", 2), *crossed("bcdef", 1)]
    cosines = noisy(conditions, 0.5, np.random.default_rng(0))
    found = separation(cosines, conditions, 99, 0)
    assert (found.within_n, found.between_n) == (1, 5)
    assert found.d_prime is None
    assert found.within_mean == pytest.approx(cosines[0, 1])


@pytest.mark.parametrize(
    "conditions",
    [
        crossed("abc", 1),
        crossed("a", 3),
        [*crossed("a", 2, "low"), *crossed("b", 2, "high")],
        [Condition("a", "lr", 0, None), Condition("a", "lr", 0, None), Condition("b", "lr", 0, None)],
    ],
)
def test_without_seeds_beside_another_loss_there_is_no_test(conditions):
    found = separation(np.eye(len(conditions)), conditions, 99, 0)
    assert found.runs == found.within_n == found.between_n == 0
    assert found.p is found.d_prime is found.within_mean is None
    assert "no loss has runs of two seeds" in found.reason


def test_twins_and_runs_without_direction_are_left_out():
    conditions = crossed("abc", 3)
    cosines = noisy(conditions, 0.5, np.random.default_rng(0))
    known = separation(cosines, conditions, 1000, 0)
    twin = np.pad(cosines, (0, 2), constant_values=np.nan)
    twin[9, :9] = twin[:9, 9] = cosines[0]
    more = [*conditions, conditions[0], Condition("b", "lr", 7, None)]
    assert separation(twin, more, 1000, 0) == known


def test_plain_lists_give_the_same_test():
    conditions = [*crossed("abc", 2, "low"), *crossed("abc", 2, "high")]
    cosines = noisy(conditions, 0.5, np.random.default_rng(0))
    losses, seeds, settings = zip(*((c.loss, c.seed, c.settings) for c in conditions), strict=True)
    assert permutation_test(cosines, losses, seeds, settings, draws=500, seed=3) == separation(
        cosines, conditions, 500, 3
    )
    assert permutation_test(cosines[:6, :6], losses[:6], seeds[:6]).labelings == 6
    for wrong in ((cosines, losses[:6], seeds[:6]), (cosines, losses, seeds[:3])):
        with pytest.raises(ValueError):
            permutation_test(*wrong)
