import itertools

import numpy as np
import pytest

from raygeo.geometry.weights.inner_products import balanced, beyond_span, centred, distances, matched_distances, unit


def points(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def test_centring_is_that_of_the_vectors():
    x = points(5, 40)
    weights = balanced(["sft", "dpo", "sft", "sft", "rft"])
    np.testing.assert_allclose(weights, [1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3])
    mean = (x[[0, 2, 3]].mean(0) + x[1] + x[4]) / 3
    np.testing.assert_allclose(centred(x @ x.T, weights), (x - mean) @ (x - mean).T, rtol=0, atol=1e-12)


def test_a_delta_equal_to_the_mean_has_no_centred_direction():
    x = points(2, 40)
    x = np.stack([x[0], x[1], (x[0] + x[1]) / 2])
    found = unit(centred(x @ x.T, np.full(3, 1 / 3)))
    assert np.isnan(found[2]).all()
    assert found[0, 1] == pytest.approx(-1, abs=1e-12)


def test_distances_split_into_length_and_direction():
    x = np.concatenate([points(3, 20), [4.0 * points(1, 20)[0], -points(1, 20)[0]]])
    raw, matched, norms = distances(x @ x.T), matched_distances(x @ x.T), np.linalg.norm(x, axis=1)
    for i, j in itertools.combinations(range(5), 2):
        assert raw[i, j] == pytest.approx(np.linalg.norm(x[i] - x[j]), abs=1e-12)
        size = (norms[i] * norms[j]) ** 0.5
        equal = np.linalg.norm(size * x[i] / norms[i] - size * x[j] / norms[j])
        assert matched[i, j] == pytest.approx(equal, abs=1e-6)
        assert raw[i, j] ** 2 == pytest.approx((norms[i] - norms[j]) ** 2 + matched[i, j] ** 2, rel=1e-12)
    assert matched[0, 3] == pytest.approx(0, abs=1e-6)
    assert matched[0, 4] == pytest.approx(2 * norms[0])


def test_what_is_beyond_a_span_is_the_residual_of_least_squares():
    x = points(6, 30)
    x[3] *= 100
    cosines = unit(x @ x.T)
    for span, run in (([0], 1), ([0, 1, 3], 4), ([1, 2, 3, 4, 5], 0)):
        solution, *_ = np.linalg.lstsq(x[span].T, x[run])
        expected = np.linalg.norm(x[run] - x[span].T @ solution) / np.linalg.norm(x[run])
        found, dimension = beyond_span(cosines, span, run)
        assert found == pytest.approx(expected, abs=1e-12)
        assert dimension == len(span)


def test_a_span_counts_directions_once_and_holds_what_lies_in_it():
    x = points(3, 30)
    x = np.stack([x[0], 3 * x[0], -x[0], x[1], x[0] + 2 * x[1], x[2]])
    cosines = unit(x @ x.T)
    assert beyond_span(cosines, [0, 1, 2], 3)[1] == 1
    inside, dimension = beyond_span(cosines, [0, 1, 2, 3], 4)
    assert (inside, dimension) == (pytest.approx(0, abs=1e-6), 2)
    assert beyond_span(cosines, [0, 1], 5)[0] == pytest.approx(np.sqrt(1 - cosine(x[0], x[5]) ** 2), abs=1e-12)
