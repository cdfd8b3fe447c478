import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from spectrum_cases import SIX, all_signs, signs, symmetric

from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.trace import estimate, hutch_plus_plus

DECAYING = np.concatenate([100 * 0.7 ** np.arange(40), -5 * 0.8 ** np.arange(20), np.zeros(140)])


def sketched(matrix, sketch):
    """The basis of Hutch++ from random vectors, and the trace inside."""
    basis = torch.linalg.qr(matrix @ sketch)[0]
    return basis, float((basis * (matrix @ basis)).sum())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_trace_is_unbiased_over_all_sign_vectors(size):
    trace, error, *_ = hutch_plus_plus(SIX.matmul, *sketched(SIX, signs(6, size, seed=2)), all_signs(6))
    assert error > 1e-2
    assert trace == pytest.approx(float(SIX.trace()), rel=1e-12)


def test_probes_may_come_in_blocks():
    basis, inside = sketched(SIX, signs(6, 2, seed=2))
    probes = signs(6, 5)
    whole = hutch_plus_plus(SIX.matmul, basis, inside, probes)
    apart = hutch_plus_plus(SIX.matmul, basis, inside, iter(probes.split([1, 1, 3], dim=1)))
    assert apart == pytest.approx(whole, rel=1e-12)
    with pytest.raises(ValueError, match="at least one probe"):
        hutch_plus_plus(SIX.matmul, basis, inside, [])


@pytest.mark.parametrize("steps", [2, 4])
def test_a_krylov_basis_need_not_have_converged(steps):
    found = extreme_eigenvalues(SIX.matmul, signs(6, 1, seed=2), 2, max_steps=steps, tolerance=1e-12)
    trace, error, *_ = hutch_plus_plus(SIX.matmul, found.basis, found.basis_trace, all_signs(6))
    assert error > 1e-3
    assert trace == pytest.approx(float(SIX.trace()), rel=1e-12)


def test_a_basis_of_full_rank_is_exact():
    trace, error, *_ = hutch_plus_plus(SIX.matmul, *sketched(SIX, signs(6, 6, seed=2)), signs(6, 3))
    assert trace == pytest.approx(float(SIX.trace()), rel=1e-12)
    assert error < 1e-12


def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum_at_equal_cost():
    matrix, truth = symmetric(DECAYING), DECAYING.sum()
    found = {0: [], 10: []}
    for seed in range(60):
        for size, estimates in found.items():  # 30 products each
            basis, inside = sketched(matrix, signs(200, size, 1000 + seed))
            estimates.append(hutch_plus_plus(matrix.matmul, basis, inside, signs(200, 30 - 2 * size, seed))[:2])
    rmse = {
        size: np.sqrt(np.mean([(trace - truth) ** 2 for trace, _ in estimates])) for size, estimates in found.items()
    }
    assert rmse[10] < 0.2 * rmse[0]
    for size, estimates in found.items():
        claimed = np.sqrt(np.mean([error**2 for _, error in estimates]))
        assert 0.75 < claimed / rmse[size] < 1.33
    krylov = extreme_eigenvalues(matrix.matmul, signs(200, 1, 5), 5, max_steps=20, tolerance=1e-12)
    assert hutch_plus_plus(matrix.matmul, krylov.basis, krylov.basis_trace, signs(200, 10))[1] < 0.25 * rmse[10]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_intervals_cover_the_trace_however_few_the_probes(count):
    # 1000 intervals, so 0.95 +- 0.007; one standard error to either side of two probes covers half.
    matrix = symmetric(np.random.default_rng(1).normal(0, 1, 40))
    basis, inside = sketched(matrix, signs(40, 2, seed=5))
    probes = signs(40, count * 1000).split(count, 1)
    found = [hutch_plus_plus(matrix.matmul, basis, inside, part) for part in probes]
    hits = [each.low <= float(matrix.trace()) <= each.high for each in found]
    assert 0.93 < np.mean(hits) < 0.97


def test_an_interval_is_students():
    samples = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    found = estimate(samples)
    expected = ttest_1samp(samples[:, 0], 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low[0], found.high[0]], [expected.low, expected.high])
    assert (found.value[1], found.error[1], found.low[1], found.high[1]) == (5, 0, 5, 5)


def test_one_probe_has_no_error_and_none_is_refused():
    basis, inside = sketched(SIX, signs(6, 2))
    assert np.isnan(hutch_plus_plus(SIX.matmul, basis, inside, signs(6, 1))[1:]).all()
    with pytest.raises(ValueError, match="at least one probe"):
        hutch_plus_plus(SIX.matmul, basis, inside, torch.zeros(6, 0, dtype=torch.float64))
