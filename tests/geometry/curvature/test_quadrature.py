import numpy as np
import pytest
from spectrum_cases import OUTLIERS, SIX, all_signs, signs, symmetric

from raygeo.geometry.curvature.quadrature import Spectrum, gauss_quadrature


@pytest.mark.parametrize("block", [1, 3])
def test_quadrature_is_exact_for_moments_up_to_twice_its_steps(block):
    matrix, probes, steps = symmetric(OUTLIERS / 10), signs(200, block), 5
    nodes, weights = gauss_quadrature(matrix.matmul, probes, steps)
    assert weights.shape == (block, steps * block)
    power = probes
    for p in range(2 * steps):
        exact = (probes * power).sum(0).numpy() / 200
        np.testing.assert_allclose(weights @ nodes**p, exact, rtol=1e-10, atol=1e-12)
        power = matrix @ power


def test_full_quadrature_finds_the_whole_spectrum():
    eigenvalues = np.linspace(-2, 5, 30)
    nodes, weights = gauss_quadrature(symmetric(eigenvalues).matmul, signs(30, 2), 40)
    np.testing.assert_allclose(nodes, eigenvalues, atol=1e-10)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)


def test_an_exhausted_probe_keeps_its_spectrum():
    nodes, weights = gauss_quadrature(symmetric([3.0, 2.0, -1.0] + [0.0] * 47).matmul, signs(50, 1), 10)
    np.testing.assert_allclose(nodes, [-1, 0, 2, 3], atol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 4])
def test_the_mean_density_over_all_sign_vectors_is_the_smoothed_spectrum(block):
    eigenvalues = np.linalg.eigvalsh(SIX.numpy())
    grid, width = np.linspace(-4, 11, 50), 0.4
    expected = np.exp(-0.5 * ((grid[:, None] - eigenvalues) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    found = [gauss_quadrature(SIX.matmul, probes, 6) for probes in all_signs(6).split(block, 1)]
    spectrum = Spectrum([n for n, ws in found for _ in ws], [w for _, ws in found for w in ws])
    assert len(spectrum.nodes) == 64
    np.testing.assert_allclose(spectrum.density(grid, width)[0], expected, rtol=1e-8, atol=1e-12)
    assert spectrum.moment(1)[0] == pytest.approx(float(SIX.trace()) / 6, rel=1e-12)


def test_density_integrates_to_one_with_its_standard_error():
    matrix = symmetric(OUTLIERS)
    found = [gauss_quadrature(matrix.matmul, signs(200, 1, seed), 15) for seed in range(6)]
    each = [Spectrum([nodes], [weights[0]]) for nodes, weights in found]
    spectrum = Spectrum([s.nodes[0] for s in each], [s.weights[0] for s in each])
    grid = np.linspace(-8, 53, 2000)
    density, error = spectrum.density(grid, 0.5)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    assert np.isnan(each[0].density(grid, 0.5)[1]).all()
    alone = np.stack([s.density(grid, 0.5)[0] for s in each])
    np.testing.assert_allclose(error, alone.std(0, ddof=1) / np.sqrt(6), rtol=1e-12)
