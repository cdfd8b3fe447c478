import numpy as np
import pytest

from raygeo.geometry.bootstrap import (
    Interval,
    percentile_interval,
    percentile_intervals,
    resampled_means,
    token_means,
)


def test_means_are_over_tokens_not_over_texts():
    sums, tokens = np.array([[2.0, 0.0], [1.0, 6.0]]), np.array([4.0, 2.0])
    np.testing.assert_allclose(token_means(sums, tokens), [0.5, 1.0], rtol=1e-15)
    drawn = resampled_means(sums, tokens, resamples=500, seed=0)
    found = {tuple(np.round(row, 12)) for row in drawn}
    assert found == {(0.5, 0.0), (0.5, 1.0), (0.5, 3.0)}, "both texts, one of them twice, or the other"


def test_intervals_of_a_ratio_of_sums_are_those_of_the_delta_method():
    # Ratio of means: s.e. sqrt(sum (x - r n)^2) / sum n.
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 20, 200).astype(float)
    sums = counts * 2 + rng.normal(0, 3, 200)
    mean = token_means(sums, counts)
    error = np.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
    resampled = resampled_means(sums, counts, resamples=4000, seed=0)
    assert resampled.shape == (4000,)
    expected = pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert percentile_interval(resampled) == expected
    [column] = percentile_intervals(resampled[:, None], 200)
    assert column == pytest.approx(percentile_interval(resampled), rel=1e-12)
    low, high = percentile_interval(resampled, 0.5)
    assert high - low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(1, 20, 60).astype(float)
        sums = (tokens * rng.normal(3, 1, 60))[:, None]
        [interval] = percentile_intervals(resampled_means(sums, tokens, resamples=400, seed=seed), 60)
        covered += interval.low <= 3 <= interval.high
    assert 178 <= covered <= 199


def test_one_text_has_no_interval_and_seeds_are_kept():
    sums, tokens = np.array([[1.0]]), np.array([2.0])
    assert percentile_intervals(resampled_means(sums, tokens, resamples=100, seed=0), 1) == [Interval(None, None)]
    many = np.arange(10.0)[:, None], np.ones(10)
    draws = [resampled_means(*many, resamples=5, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert resampled_means(np.ones((4, 2, 3)), np.full(4, 2.0), resamples=7, seed=0) == pytest.approx(
        np.full((7, 2, 3), 0.5)
    )
