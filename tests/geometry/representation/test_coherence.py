import numpy as np
import pytest
import torch

from raygeo.geometry.representation.coherence import coherence, cross_cosine, cut, gradient_gram


def gradients(m: int, size: int, shared: float, seed: int) -> np.ndarray:
    """Rows with a common part of length ``shared`` times that of their noise."""
    rng = np.random.default_rng(seed)
    return shared * rng.normal(size=size) + rng.normal(size=(m, size))


def test_equal_gradients_have_a_coherence_of_m():
    g = np.tile([1.0, -2.0, 3.0], (7, 1))
    whole, pairwise = coherence(g @ g.T)
    assert whole == pytest.approx((7, 7, 7), abs=1e-6)
    assert pairwise == pytest.approx((1, 1, 1), abs=1e-6)


def test_orthogonal_gradients_have_a_coherence_of_one_whatever_their_lengths():
    g = np.diag([1.0, 5.0, 0.2, 3.0])
    whole, pairwise = coherence(g @ g.T)
    assert whole == pytest.approx((1, 1, 1), abs=1e-12)
    assert pairwise == pytest.approx((0, 0, 0), abs=1e-12)


def test_cancelling_gradients_have_none():
    g = np.array([[1.0, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]])
    whole, pairwise = coherence(g @ g.T)
    assert whole.value == pytest.approx(0, abs=1e-12)
    assert pairwise.value == pytest.approx(-0.5, abs=1e-12)


def test_zero_gradients_have_no_coherence():
    assert coherence(np.zeros((4, 4)))[0] == (None, None, None)
    g = np.array([[1.0, 2], [0, 0], [0, 0]])
    whole, pairwise = coherence(g @ g.T)
    assert pairwise == (0, None, None), "without its one gradient there is nothing to compare"
    assert whole == (1, None, None)


def test_coherence_and_its_jackknife_equal_those_of_the_gradients_themselves():
    g = gradients(9, 40, 0.5, seed=1)

    def alpha(rows):
        return len(rows) * np.square(rows.mean(0)).sum() / np.square(rows).sum(1).mean()

    whole, pairwise = coherence(g @ g.T)
    assert whole.value == pytest.approx(alpha(g), rel=1e-12)
    assert pairwise.value == pytest.approx((alpha(g) - 1) / 8, rel=1e-12)
    without = np.array([(alpha(np.delete(g, i, 0)) - 1) / 7 for i in range(9)])
    half = 2.306004135 * np.sqrt(8 / 9 * np.square(without - without.mean()).sum())
    assert pairwise.low == pytest.approx(pairwise.value - half, rel=1e-8)
    assert pairwise.high == pytest.approx(pairwise.value + half, rel=1e-8)
    assert whole.high == pytest.approx(1 + 8 * pairwise.high, rel=1e-12)


def test_a_pair_does_not_grow_with_the_number_of_examples():
    # With g = s + e, |s|^2 = 0.09 d and |e|^2 = d, the expectation of a pair is 0.09 / 1.09 up to fluctuations.
    for m in (8, 64):
        g = gradients(m, 20_000, 0.3, seed=m)
        assert coherence(g @ g.T)[1].value == pytest.approx(0.09 / 1.09, abs=4e-3)
    assert coherence(g @ g.T)[0].value > 6


def test_cross_cosine_and_its_jackknife_equal_those_of_mean_gradients():
    a, b = gradients(8, 30, 0.5, seed=2), gradients(8, 30, 0.7, seed=3)
    plain, apart = cross_cosine(a @ a.T, b @ b.T, a @ b.T)

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    assert plain.value == pytest.approx(cosine(a.mean(0), b.mean(0)), rel=1e-12)
    without = np.array([cosine(*(np.delete(g, i, 0).mean(0) for g in (a, b))) for i in range(8)])
    half = 2.364624252 * np.sqrt(7 / 8 * np.square(without - without.mean()).sum())
    assert plain.high - plain.low == pytest.approx(2 * half, rel=1e-8)
    off = ~np.eye(8, dtype=bool)
    crossed, first, second = ((x @ y.T)[off].sum() for x, y in ((a, b), (a, a), (b, b)))
    assert apart.value == pytest.approx(crossed / np.sqrt(first * second), rel=1e-12)


def test_shared_noise_raises_the_cosine_of_means_and_not_the_expected_one():
    d, m = 3000, 40
    rng = np.random.default_rng(5)
    directions, noise = np.linalg.qr(rng.normal(size=(d, 2)))[0].T, rng.normal(size=(m, d)) / 10
    a, b = (direction + noise for direction in directions)
    plain, apart = cross_cosine(a @ a.T, b @ b.T, a @ b.T)
    assert plain.value > 0.3
    assert apart.value == pytest.approx(0, abs=0.1)
    assert apart.low < 0 < apart.high


def test_unrelated_noise_has_no_expected_cosine():
    undefined = 0
    for seed in range(10):
        a, b = (np.random.default_rng(2 * seed + k).normal(size=(6, 500)) for k in (0, 1))
        undefined += cross_cosine(a @ a.T, b @ b.T, a @ b.T)[1].value is None
    assert undefined >= 4, "a squared length of zero is estimated to be negative every other time"


def test_the_gram_matrix_does_not_depend_on_how_gradients_are_cut():
    g = torch.from_numpy(gradients(6, 1001, 0.2, seed=6))
    asked = []

    def part(start, end):
        asked.append((start, end))
        yield from g[:, start:end]

    for held, parts in ((10**6, 1), (6 * 400, 3)):
        asked.clear()
        np.testing.assert_allclose(gradient_gram(part, 6, cut(6, 1001, held)), (g @ g.T).numpy(), rtol=1e-12)
        assert len(asked) == parts
        assert asked[-1][1] == 1001
