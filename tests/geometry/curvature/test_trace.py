import numpy as np
import pytest
import torch
from spectrum_cases import SIX, all_signs, signs, symmetric

from raygeo.geometry.curvature.trace import hutch_plus_plus

DECAYING = np.concatenate([100 * 0.7 ** np.arange(40), -5 * 0.8 ** np.arange(20), np.zeros(140)])


@pytest.mark.parametrize("sketched", [0, 1, 3])
def test_the_trace_is_unbiased_over_all_sign_vectors(sketched):
    found = hutch_plus_plus(SIX.matmul, signs(6, sketched, seed=2), all_signs(6))
    assert found.error > 1e-2
    assert found.value == pytest.approx(float(SIX.trace()), rel=1e-12)
    assert found.products == 2 * sketched + 64


def test_a_sketch_of_full_rank_is_exact():
    found = hutch_plus_plus(SIX.matmul, signs(6, 6, seed=2), signs(6, 3))
    assert found.value == pytest.approx(float(SIX.trace()), rel=1e-12)
    assert found.error < 1e-12


def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum_at_equal_cost():
    matrix, truth = symmetric(DECAYING), DECAYING.sum()
    errors = {0: [], 10: []}
    for seed in range(60):
        for sketched, found in errors.items():
            sketch, probes = signs(200, sketched, 1000 + seed), signs(200, 30 - 2 * sketched, seed)
            found.append(hutch_plus_plus(matrix.matmul, sketch, probes))
            assert found[-1].products == 30
    rmse = {s: np.sqrt(np.mean([(f.value - truth) ** 2 for f in found])) for s, found in errors.items()}
    assert rmse[10] < 0.2 * rmse[0]
    for sketched, found in errors.items():
        claimed = np.sqrt(np.mean([f.error**2 for f in found]))
        assert 0.75 < claimed / rmse[sketched] < 1.33


def test_standard_errors_cover_the_trace():
    # 95 % intervals of Student's t with 9 degrees of freedom; 1000 of them, so 0.95 +- 0.007.
    matrix = symmetric(np.random.default_rng(1).normal(0, 1, 40))
    sketch, probes = signs(40, 2, seed=5), signs(40, 10 * 1000)
    found = [hutch_plus_plus(matrix.matmul, sketch, part) for part in probes.split(10, 1)]
    hits = [abs(f.value - float(matrix.trace())) <= 2.262 * f.error for f in found]
    assert 0.93 < np.mean(hits) < 0.97


def test_one_probe_has_no_error_and_none_is_refused():
    assert np.isnan(hutch_plus_plus(SIX.matmul, signs(6, 2), signs(6, 1)).error)
    with pytest.raises(ValueError, match="at least one probe"):
        hutch_plus_plus(SIX.matmul, signs(6, 2), torch.zeros(6, 0, dtype=torch.float64))
