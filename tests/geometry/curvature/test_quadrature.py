import numpy as np
import pytest
from numpy.polynomial import Chebyshev
from spectrum_cases import OUTLIERS, SIX, all_signs, signs, symmetric

from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.quadrature import Spectrum, estimate_spectrum, gauss_quadrature, single


@pytest.mark.parametrize("block", [1, 3])
def test_quadrature_is_exact_for_moments_up_to_twice_its_steps(block):
    matrix, probes, steps = symmetric(OUTLIERS / 10), signs(200, block), 5
    for fewer, (nodes, weights) in zip((0, 2), gauss_quadrature(matrix.matmul, probes, steps), strict=True):
        assert weights.shape == (block, (steps - fewer) * block)
        power = probes
        for p in range(2 * (steps - fewer)):
            exact = (probes * power).sum(0).numpy() / 200
            np.testing.assert_allclose(weights @ nodes**p, exact, rtol=1e-10, atol=1e-12)
            power = matrix @ power


def test_full_quadrature_finds_the_whole_spectrum():
    eigenvalues = np.linspace(-2, 5, 30)
    (nodes, weights), coarser = gauss_quadrature(symmetric(eigenvalues).matmul, signs(30, 2), 40)
    np.testing.assert_array_equal(coarser.nodes, nodes)  # there is nothing between them to be unsure of
    np.testing.assert_allclose(nodes, eigenvalues, atol=1e-10)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)


def test_an_exhausted_probe_keeps_its_spectrum():
    (nodes, weights), _ = gauss_quadrature(symmetric([3.0, 2.0, -1.0] + [0.0] * 47).matmul, signs(50, 1), 10)
    np.testing.assert_allclose(nodes, [-1, 0, 2, 3], atol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def smoothed(eigenvalues, grid, width):
    return np.exp(-0.5 * ((grid[:, None] - eigenvalues) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))


def assembled(matrix, probes, steps, block=1, known=None):
    """The spectrum from quadratures, and from eigenpairs (values [K], vectors [n, K]), the last ``known[2]`` bottom."""
    n = len(matrix)
    values, vectors, bottom = known or (np.zeros(0), np.zeros((n, 0)), 0)
    rules = [gauss_quadrature(matrix.matmul, part, steps) for part in probes.split(block, 1)]
    fine, coarse = ([(rule.nodes, w) for rule in side for w in rule.weights] for side in zip(*rules, strict=True))
    top = len(values) - bottom
    return Spectrum(n, fine, coarse, values[:top], values[top:], (probes.numpy().T @ vectors) ** 2 / n)


@pytest.mark.parametrize("known", [(), (0,), (0, 1, 5)])
@pytest.mark.parametrize("block", [1, 4])
def test_the_mean_density_over_all_sign_vectors_is_the_smoothed_spectrum(block, known):
    eigenvalues, vectors = (part[..., ::-1] for part in np.linalg.eigh(SIX.numpy()))
    grid, width = np.linspace(-4, 11, 50), 0.4
    pairs = (eigenvalues[list(known)], vectors[:, list(known)], int(5 in known))
    spectrum = assembled(SIX, all_signs(6), 6, block, pairs)
    assert len(spectrum.probes) == 64
    found = spectrum.density(grid, width)
    np.testing.assert_allclose(found.value, smoothed(eigenvalues, grid, width), rtol=1e-8, atol=1e-12)
    if known:  # what is known has no error
        assert found.error[np.abs(grid - 9).argmin()] < 1e-9


def test_density_integrates_to_one_with_its_standard_error():
    matrix = symmetric(OUTLIERS)
    spectrum = assembled(matrix, signs(200, 6), 15)
    grid = np.linspace(-8, 53, 2000)
    found = spectrum.density(grid, 0.5)
    assert np.trapezoid(found.value, grid) == pytest.approx(1, abs=1e-6)
    alone = [Spectrum(200, [p], [c], np.zeros(0), np.zeros(0), np.zeros((1, 0)))
             for p, c in zip(spectrum.probes, spectrum.coarser, strict=True)]  # fmt: skip
    assert np.isnan(alone[0].density(grid, 0.5).error).all()
    values = np.stack([each.density(grid, 0.5).value for each in alone])
    np.testing.assert_allclose(found.error, values.std(0, ddof=1) / np.sqrt(6), rtol=1e-9, atol=1e-15)
    least = single(200, 0.5)
    assert least == pytest.approx(smoothed(np.array([0.0]), np.zeros(1), 0.5)[0] / 200)
    assert (found.high >= found.value + least).all()


def test_ends_that_meet_in_a_small_space_count_once():
    found = extreme_eigenvalues(SIX.matmul, signs(6, 1), 4, bottom=4, max_steps=6, tolerance=1e-9)
    spectrum = estimate_spectrum(SIX.matmul, signs(6, 2, seed=1), 6, found)
    np.testing.assert_allclose(np.concatenate([spectrum.top, spectrum.bottom]), [9, 4, 1, 0.5, -2, -0.25], atol=1e-9)
    np.testing.assert_allclose(spectrum.components.sum(1), 1)
    everything = spectrum.density(np.linspace(-4, 11, 50), 0.4)
    np.testing.assert_allclose(everything.error, 0, atol=1e-9)
    nothing = estimate_spectrum(SIX.matmul, signs(6, 2, seed=1), 6)
    assert nothing.components.shape == (2, 0)
    np.testing.assert_allclose(nothing.ends, spectrum.ends, atol=1e-9)


def test_a_kernel_is_no_single_eigenvalue():
    matrix = symmetric([3.0, 2.0, -1.0] + [0.0] * 47)
    values, vectors = np.linalg.eigh(matrix.numpy())
    known = (values[[49, 48, 20]], vectors[:, [49, 48, 20]], 0)
    spectrum = assembled(matrix, signs(50, 4), 8, known=known)
    grid = np.linspace(-2, 4, 400)
    assert np.trapezoid(spectrum.density(grid, 0.1).value * (np.abs(grid) < 0.5), grid) == pytest.approx(0.94, abs=0.03)


def test_the_resolution_is_the_spacing_of_nodes_between_what_is_known():
    spectrum = assembled(symmetric(OUTLIERS), signs(200, 2), 12)
    low, high = spectrum.ends
    assert (low, high) == pytest.approx((-5, 50), abs=1e-6)
    assert spectrum.resolution(12) == pytest.approx(55 / 12, rel=1e-6)
    values = np.array([50.0, 20, 12, 9, 7, -5])
    within = Spectrum(200, spectrum.probes, spectrum.coarser, values[:5], values[5:], np.zeros((2, 6)))
    assert within.resolution(12) == pytest.approx(1)
    everything = Spectrum(2, spectrum.probes, spectrum.coarser, values[5:], values[:1], np.zeros((2, 2)))
    assert everything.resolution(12) == 0


def test_a_gaussian_as_wide_as_the_resolution_is_a_polynomial_of_the_quadratures_degree():
    for steps in (8, 12, 40):
        x = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
        for centre in (-1, -0.5, 0, 0.2):
            bell = np.exp(-0.5 * ((x - centre) / (2 / steps)) ** 2)
            fit = Chebyshev.fit(x, bell, 2 * steps - 1, domain=[-1, 1])
            assert np.abs(fit(x) - bell).max() < 1e-3


SPECTRA = {
    "outliers": lambda n, rng: np.concatenate([[50, 20, 12, 9, 7, -5], rng.normal(0, 0.5, n - 6)]),
    "decaying": lambda n, rng: np.concatenate([np.geomspace(60, 3, 30), rng.normal(0, 0.5, n - 30)]),
    "half a kernel": lambda n, rng: np.concatenate(
        [np.geomspace(100, 0.01, n // 4), -np.geomspace(5, 0.01, n // 8), np.zeros(n - n // 4 - n // 8)]
    ),
    "two bulks": lambda n, rng: np.concatenate(
        [rng.normal(0, 0.2, n // 2), rng.normal(4, 0.2, n - n // 2 - 3), [20, 15, 10]]
    ),
    "power law": lambda n, rng: 100 / np.arange(1, n + 1) - 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_band_covers_the_smoothed_spectrum_at_the_default_settings(kind):
    # 20 estimates of each. One standard error to either side, 8 steps and a fixed width cover 0.3 to 0.5 of the axis.
    settings, n = CurvatureSettings(), 400
    eigenvalues = SPECTRA[kind](n, np.random.default_rng(0))
    matrix, hits, seen = symmetric(eigenvalues), [], []
    for seed in range(20):
        found = extreme_eigenvalues(
            matrix.matmul, signs(n, 1, 1000 + seed), settings.top_k, bottom=settings.bottom_k,
            max_steps=settings.max_steps, tolerance=settings.tolerance,
        )  # fmt: skip
        probes = signs(n, settings.slq_probes, seed)
        spectrum = estimate_spectrum(matrix.matmul, probes, settings.slq_steps, found)
        low, high = spectrum.ends
        width = max(settings.density_width * (high - low), spectrum.resolution(settings.slq_steps))
        assert width < 0.1 * (high - low)
        grid = np.linspace(low - 4 * width, high + 4 * width, settings.density_points)
        band, truth = spectrum.density(grid, width), smoothed(eigenvalues, grid, width)
        inside = (band.low <= truth) & (truth <= band.high)
        hits.append(inside.mean())
        seen.append(inside[truth > single(n, width)].mean())  # where there is more than one eigenvalue
    assert np.mean(hits) > 0.95
    assert np.mean(seen) > 0.92
