from itertools import permutations

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from raygeo.evaluation.rank_correlation import correlate, detectable, needed, partial_spearman, spearman
from raygeo.evaluation.statistics import holm

FAST = {"resamples": 100, "permutations": 199}


def draw(n, columns, seed=0, ties=None):
    values = np.random.default_rng(seed).standard_normal((n, columns))
    return values if ties is None else np.round(values * ties)


def clusters(configurations, seeds, spread, rng):
    """One column that runs of a configuration share but for ``spread`` between seeds."""
    shared = np.repeat(rng.standard_normal(configurations), seeds)
    return shared + spread * rng.standard_normal(configurations * seeds)


@pytest.mark.parametrize("ties", [None, 1.0])
def test_correlations_are_scipys(ties):
    x, y = draw(30, 4, 0, ties), draw(30, 2, 1, ties)
    expected = [[spearmanr(a, b).statistic for b in y.T] for a in x.T]
    assert spearman(x, y) == pytest.approx(np.array(expected), abs=1e-12)


def test_a_constant_has_no_correlation():
    x = np.column_stack([np.ones(8), np.arange(8.0)])
    assert np.isnan(spearman(x, x)).tolist() == [[True, True], [True, False]]


def test_partial_correlations_follow_the_recursion():
    """r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of ranks, and once more for a second control."""
    x, y, z, w = draw(25, 4, 3, ties=2.0).T
    ranks = {name: rankdata(column) for name, column in {"x": x, "y": y, "z": z, "w": w}.items()}

    def r(a, b, *given):
        if not given:
            return np.corrcoef(ranks[a], ranks[b])[0, 1]
        *rest, c = given
        ab, ac, bc = r(a, b, *rest), r(a, c, *rest), r(b, c, *rest)
        return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))

    columns = x[:, None], y[:, None]
    assert partial_spearman(*columns, z[:, None])[0, 0] == pytest.approx(r("x", "y", "z"), abs=1e-12)
    assert partial_spearman(*columns, np.column_stack([z, w]))[0, 0] == pytest.approx(r("x", "y", "z", "w"), abs=1e-12)
    assert np.isnan(partial_spearman(z[:, None] ** 3, y[:, None], z[:, None])[0, 0])


def test_p_of_single_runs_is_that_of_all_permutations():
    """Of 6 runs all 720 permutations can be listed; 20 000 drawn ones come close."""
    x, y = draw(6, 1, 5), draw(6, 1, 6)
    rho = abs(spearman(x, y)[0, 0])
    exact = np.mean([abs(spearmanr(x[:, 0], y[list(p), 0]).statistic) >= rho - 1e-9 for p in permutations(range(6))])
    found = correlate(x, y, range(6), np.empty((6, 0)), resamples=100, permutations=20_000, seed=0)
    assert found.p[0, 0] == pytest.approx(exact, abs=0.02)


def test_runs_of_a_configuration_move_together():
    """With 3 configurations there are 6 ways to exchange them, whatever the number of their seeds."""
    x = np.repeat([1.0, 2.0, 3.0], 20)[:, None] + 0.01 * draw(60, 1, 1)
    found = correlate(x, x, np.repeat(range(3), 20), np.empty((60, 0)), resamples=100, permutations=6000, seed=0)
    assert found.p[0, 0] == pytest.approx(1 / 6, abs=0.03)


def test_configurations_of_unequal_size_are_not_exchanged():
    x = np.arange(6.0)[:, None]
    found = correlate(x, x, [0, 1, 1, 2, 2, 2], np.empty((6, 0)), **FAST, seed=0)
    assert found.p[0, 0] == 1.0


def test_seeds_that_are_alike_make_nothing_significant():
    """12 configurations of 5 like seeds, unrelated: p of runs rejects far too often, p of configurations does not."""
    naive, own = [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x, y = clusters(12, 5, 0.1, rng), clusters(12, 5, 0.1, rng)
        naive.append(spearmanr(x, y).pvalue <= 0.05)
        groups, none = np.repeat(range(12), 5), np.empty((60, 0))
        own.append(correlate(x[:, None], y[:, None], groups, none, resamples=2, permutations=199, seed=seed).p[0, 0])
    assert np.mean(naive) > 0.3
    assert np.mean(np.array(own) <= 0.05) <= 0.11  # 5 %, and three standard errors


def test_over_many_null_metrics_and_controls_one_is_seldom_found():
    """The family-wise error after Holm, plain and with controls that drive both metrics and outcome partialled out."""
    wrong = {"p": 0, "partial_p": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cause = rng.standard_normal((14, 1))
        x, y = rng.standard_normal((14, 8)), rng.standard_normal((14, 1))
        plain = correlate(x, y, range(14), cause, resamples=2, permutations=999, seed=seed)
        driven = correlate(x + cause, y + cause, range(14), cause, resamples=2, permutations=999, seed=seed)
        wrong["p"] += 8 * plain.p.min() <= 0.05  # Holm's smallest
        wrong["partial_p"] += 8 * driven.partial_p.min() <= 0.05
    assert wrong["p"] <= 11
    assert wrong["partial_p"] <= 13  # ranks of a sum are not quite a sum of ranks


def test_a_planted_correlation_is_found_among_many_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    y = clusters(30, 2, 0.2, rng)
    x = np.column_stack([rng.standard_normal((60, 20)), y + 0.3 * rng.standard_normal(60)])
    found = correlate(
        x, y[:, None], np.repeat(range(30), 2), np.empty((60, 0)), resamples=300, permutations=1999, seed=0
    )
    adjusted = holm(found.p[:, 0].tolist())
    assert [i for i, p in enumerate(adjusted) if p <= 0.05] == [20]
    assert found.low[20, 0] < found.rho[20, 0] < found.high[20, 0]
    assert found.low[20, 0] > 0.5


def test_the_interval_of_like_seeds_is_as_wide_as_that_of_their_configurations():
    rng = np.random.default_rng(1)
    x, y = clusters(20, 1, 0, rng), clusters(20, 1, 0, rng)

    def width(times):
        columns = (np.repeat(column, times)[:, None] for column in (x, y))
        found = correlate(
            *columns, np.repeat(range(20), times), np.empty((20 * times, 0)), resamples=500, permutations=2, seed=0
        )
        return found.high[0, 0] - found.low[0, 0]

    assert width(8) == pytest.approx(width(1), rel=0.05)


def test_equal_seeds_give_equal_numbers():
    x, y, z = draw(12, 3, 0), draw(12, 2, 1), draw(12, 1, 2)
    a, b, c = (correlate(x, y, range(12), z, **FAST, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))
    assert not np.array_equal(a.p, c.p)


def test_what_is_needed_and_what_is_detected_are_inverse():
    for rho, tests in ((0.5, 1), (0.5, 60), (0.3, 10)):
        n = needed(rho, tests)
        assert detectable(n, tests) <= rho < detectable(n - 1, tests)
    assert detectable(3, 1) == 1.0
    assert needed(0.5, 1) == 31  # 3 + 1.06 (1.95996 + 0.84162)^2 / atanh(0.5)^2 = 30.57


def test_the_power_promised_is_the_power_there_is():
    """Normal pairs whose Spearman correlation is 0.5 (Pearson's 2 sin(pi 0.5 / 6)), tested at 5 % of one and of 20."""
    rng, pearson = np.random.default_rng(0), 2 * np.sin(np.pi * 0.5 / 6)
    for tests in (1, 20):
        n = needed(0.5, tests)
        pairs = rng.standard_normal((4000, n, 2))
        pairs[..., 1] = pearson * pairs[..., 0] + np.sqrt(1 - pearson**2) * pairs[..., 1]
        ranks = rankdata(pairs, axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        rho = (ranks[..., 0] * ranks[..., 1]).sum(1) / np.square(ranks[..., 0]).sum(1)
        z = np.arctanh(rho) * np.sqrt((n - 3) / 1.06)
        assert np.mean(z > norm.ppf(1 - 0.05 / (2 * tests))) == pytest.approx(0.8, abs=0.03)
