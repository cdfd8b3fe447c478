from itertools import product

import numpy as np
import pytest
import torch

from raygeo.geometry.curvature.lanczos import Lanczos, Spectrum, extreme_eigenvalues, lanczos_quadrature, rademacher


def symmetric(eigenvalues, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return ((q * values) @ q.T).to(dtype)


def signs(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return rademacher(n, k, torch.Generator().manual_seed(seed), dtype=dtype)


def all_signs(n: int) -> torch.Tensor:
    return torch.tensor(list(product([-1.0, 1.0], repeat=n)), dtype=torch.float64).T


OUTLIERS = np.concatenate([[50.0, 20.0, 12.0, 9.0, 7.0, -5.0], np.random.default_rng(0).normal(0, 0.5, 194)])
SIX = symmetric([9.0, 4.0, 1.0, 0.5, -0.25, -2.0], seed=4)


def test_rademacher_draws_signs_from_its_seed():
    x = signs(500, 3)
    assert x.shape == (500, 3)
    assert x.abs().eq(1).all()
    assert abs(float(x.mean())) < 0.1
    assert torch.equal(x, signs(500, 3))
    assert not torch.equal(x, signs(500, 3, seed=1))


@pytest.mark.parametrize(
    "eigenvalues",
    [OUTLIERS, np.linspace(-1, 1, 60), np.geomspace(1e-6, 1e3, 80), -np.geomspace(1, 100, 50)],
    ids=["outliers", "uniform", "decaying", "negative"],
)
def test_extremes_match_dense_eigenvalues(eigenvalues):
    matrix = symmetric(eigenvalues)
    expected, vectors = np.linalg.eigh(matrix.numpy())
    found = extreme_eigenvalues(matrix.matmul, signs(len(matrix), 1), 5, max_steps=80, tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.values, expected[::-1][:5], rtol=1e-9, atol=1e-9)
    assert found.minimum == pytest.approx(expected[0], rel=1e-9, abs=1e-8 * np.abs(expected).max())
    overlap = np.abs(found.vectors.numpy().T @ vectors[:, ::-1][:, :5])
    np.testing.assert_allclose(overlap, np.eye(5), atol=1e-5)


def test_residuals_are_those_of_the_ritz_pairs_and_bound_the_error():
    matrix = symmetric(OUTLIERS)
    found = extreme_eigenvalues(matrix.matmul, signs(200, 1), 5, max_steps=9, tolerance=1e-8)
    assert not found.converged
    assert found.products == 9
    true = (matrix @ found.vectors - found.vectors * torch.from_numpy(found.values.copy())).norm(dim=0).numpy()
    np.testing.assert_allclose(found.residuals, true, rtol=1e-6, atol=1e-12)
    distance = np.abs(found.values[:, None] - OUTLIERS).min(1)
    assert (distance <= found.residuals).all()
    assert found.residuals[-1] > 1e-3


def test_extremes_stop_when_converged():
    matrix = symmetric(OUTLIERS)
    found = extreme_eigenvalues(matrix.matmul, signs(200, 1), 2, max_steps=200, tolerance=1e-2)
    assert found.converged
    assert found.products < 20
    assert (found.residuals <= 1e-2 * found.values).all()
    assert found.minimum_residual <= 0.5


def test_an_invariant_subspace_ends_the_search():
    matrix = symmetric([3.0, 2.0, -1.0] + [0.0] * 47)
    found = extreme_eigenvalues(matrix.matmul, signs(50, 1), 6, max_steps=50, tolerance=1e-8)
    assert found.products == 4
    np.testing.assert_allclose(found.values, [3, 2, 0, -1], atol=1e-12)
    assert found.vectors.shape == (50, 4)


def test_fp32_residuals_never_claim_more_than_fp32():
    matrix = symmetric(OUTLIERS, dtype=torch.float32)
    found = extreme_eigenvalues(matrix.matmul, signs(200, 1, dtype=torch.float32), 3, max_steps=60, tolerance=1e-6)
    assert (found.residuals >= 50 * 1e-7).all()
    np.testing.assert_allclose(found.values, [50, 20, 12], rtol=1e-5)


def test_bases_stay_orthonormal_long_after_convergence():
    matrix = symmetric(np.geomspace(1e-4, 1e4, 300), dtype=torch.float32)
    lanczos = Lanczos(matrix.matmul, signs(300, 2, dtype=torch.float32), 60)
    for _ in range(60):
        lanczos.step()
    for basis in lanczos.basis:
        assert (basis @ basis.T - torch.eye(60)).abs().max() < 1e-5


def test_recurrences_in_lockstep_equal_those_alone():
    matrix, starts = symmetric(OUTLIERS), signs(200, 3)
    together = Lanczos(matrix.matmul, starts, 12)
    for _ in range(12):
        together.step()
    for column in range(3):
        alone = Lanczos(matrix.matmul, starts[:, column : column + 1], 12)
        for _ in range(12):
            alone.step()
        np.testing.assert_allclose(together.alphas[column], alone.alphas[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.betas[column], alone.betas[0], rtol=1e-9)


def test_quadrature_is_exact_for_moments_up_to_twice_its_steps():
    matrix, probes, steps = symmetric(OUTLIERS / 10), signs(200, 3), 5
    spectrum = lanczos_quadrature(matrix.matmul, probes, steps)
    power, exact = probes, []
    for _ in range(2 * steps):
        exact.append((probes * power).sum(0).numpy() / 200)
        power = matrix @ power
    for p, expected in enumerate(exact):
        np.testing.assert_allclose((spectrum.weights * spectrum.nodes**p).sum(1), expected, rtol=1e-10, atol=1e-12)
        assert spectrum.moment(p)[0] == pytest.approx(expected.mean(), rel=1e-10, abs=1e-12)
    assert spectrum.trace()[0] == pytest.approx(200 * exact[1].mean(), rel=1e-10)


def test_full_quadrature_finds_the_whole_spectrum():
    eigenvalues = np.linspace(-2, 5, 30)
    spectrum = lanczos_quadrature(symmetric(eigenvalues).matmul, signs(30, 2), 40)
    np.testing.assert_allclose(spectrum.nodes, np.stack([eigenvalues] * 2), atol=1e-10)
    np.testing.assert_allclose(spectrum.weights.sum(1), 1, rtol=1e-12)


def test_an_exhausted_probe_keeps_its_spectrum():
    spectrum = lanczos_quadrature(symmetric([3.0, 2.0, -1.0] + [0.0] * 47).matmul, signs(50, 2), 10)
    np.testing.assert_allclose(spectrum.weights.sum(1), 1, rtol=1e-12)
    assert np.isfinite(spectrum.nodes).all()
    for nodes, weights in zip(spectrum.nodes, spectrum.weights, strict=True):
        np.testing.assert_allclose(np.unique(nodes[weights > 1e-12].round(9)), [-1, 0, 2, 3])


@pytest.mark.parametrize("steps", [None, 2, 6])
def test_the_trace_is_unbiased_over_all_sign_vectors(steps):
    # Exact also when the deflated directions have not converged to eigenvectors.
    known = steps and extreme_eigenvalues(SIX.matmul, signs(6, 1, seed=2), 2, max_steps=steps, tolerance=1e-12)
    spectrum = lanczos_quadrature(SIX.matmul, all_signs(6), 1, known)
    assert spectrum.traces.std() > 0.1
    assert spectrum.trace()[0] == pytest.approx(float(SIX.trace()), rel=1e-12)


def test_the_mean_density_over_all_sign_vectors_is_the_smoothed_spectrum():
    eigenvalues = np.linalg.eigvalsh(SIX.numpy())
    grid, width = np.linspace(-4, 11, 50), 0.4
    expected = np.exp(-0.5 * ((grid[:, None] - eigenvalues) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    density, _ = lanczos_quadrature(SIX.matmul, all_signs(6), 6).density(grid, width)
    np.testing.assert_allclose(density, expected, rtol=1e-8, atol=1e-12)


def test_standard_errors_of_the_trace_cover_it():
    matrix = symmetric(np.random.default_rng(1).normal(0, 1, 40))
    traces = lanczos_quadrature(matrix.matmul, signs(40, 10 * 1000), 1).traces.reshape(1000, 10)
    estimates = [Spectrum(np.zeros((10, 1)), np.ones((10, 1)), row).trace() for row in traces]
    hits = [abs(mean - float(matrix.trace())) <= 2.262 * error for mean, error in estimates]
    assert 0.93 < np.mean(hits) < 0.97


@pytest.mark.parametrize("deflated", [False, True])
def test_density_integrates_to_one_with_its_standard_error(deflated):
    matrix = symmetric(OUTLIERS)
    known = extreme_eigenvalues(matrix.matmul, signs(200, 1, seed=7), 5, max_steps=60, tolerance=1e-8)
    spectrum = lanczos_quadrature(matrix.matmul, signs(200, 6), 15, known if deflated else None)
    grid = np.linspace(-8, 53, 2000)
    density, error = spectrum.density(grid, 0.5)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    one = Spectrum(spectrum.nodes[:1], spectrum.weights[:1], spectrum.traces[:1])
    assert np.isnan(one.density(grid, 0.5)[1]).all()
    each = np.stack(
        [Spectrum(*(a[i : i + 1] for a in (spectrum.nodes, spectrum.weights, spectrum.traces))).density(grid, 0.5)[0]
         for i in range(6)]
    )  # fmt: skip
    np.testing.assert_allclose(error, each.std(0, ddof=1) / np.sqrt(6), rtol=1e-12)


def test_known_eigenvalues_become_exact_atoms_and_cut_the_error():
    matrix = symmetric(OUTLIERS)
    known = extreme_eigenvalues(matrix.matmul, signs(200, 1, seed=7), 5, max_steps=60, tolerance=1e-8)
    plain = lanczos_quadrature(matrix.matmul, signs(200, 8), 12)
    deflated = lanczos_quadrature(matrix.matmul, signs(200, 8), 12, known)
    assert deflated.trace()[1] < 0.3 * plain.trace()[1]
    assert abs(deflated.trace()[0] - OUTLIERS.sum()) < 3 * deflated.trace()[1]
    np.testing.assert_allclose(deflated.nodes[:, -5:], np.broadcast_to([50, 20, 12, 9, 7], (8, 5)), rtol=1e-9)
    np.testing.assert_allclose(deflated.weights[:, -5:], 1 / 200)
    assert deflated.nodes[:, :-5].max() < 3
