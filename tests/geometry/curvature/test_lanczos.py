import numpy as np
import pytest
import torch
from spectrum_cases import OUTLIERS, signs, symmetric

from raygeo.geometry.curvature.journal import journaled
from raygeo.geometry.curvature.lanczos import Lanczos, extreme_eigenvalues, fewest_vectors

REPEATED = np.concatenate([[8.0] * 3, [5.0] * 2, [-6.0] * 2, np.linspace(-1, 1, 113)])


def run(matrix, start, steps):
    lanczos = Lanczos(matrix.matmul, start, steps)
    for _ in range(steps):
        lanczos.step()
    return lanczos


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(
    "eigenvalues",
    [OUTLIERS, np.linspace(-1, 1, 60), np.geomspace(1e-6, 1e3, 80), -np.geomspace(1, 100, 50)],
    ids=["outliers", "uniform", "decaying", "negative"],
)
def test_both_ends_match_dense_eigenvalues(eigenvalues, block):
    matrix = symmetric(eigenvalues)
    expected, vectors = np.linalg.eigh(matrix.numpy())
    size = np.abs(expected).max()
    found = extreme_eigenvalues(matrix.matmul, signs(len(matrix), block), 5, bottom=2, max_steps=80, tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.top, expected[::-1][:5], rtol=1e-8, atol=1e-13 * size)
    np.testing.assert_allclose(found.bottom, expected[:2], atol=1e-8 * size)
    overlap = np.abs(found.vectors.numpy().T @ vectors[:, ::-1][:, :5])
    np.testing.assert_allclose(overlap, np.eye(5), atol=1e-5)


@pytest.mark.parametrize(("block", "top", "bottom"), [(1, [8, 5], [-6]), (2, [8, 8, 5, 5], [-6] * 2),
                                                      (3, [8, 8, 8, 5, 5], [-6] * 2)])  # fmt: skip
def test_an_eigenvalue_is_found_as_often_as_it_is_repeated_up_to_the_block(block, top, bottom):
    found = extreme_eigenvalues(
        symmetric(REPEATED).matmul, signs(120, block), len(top), bottom=len(bottom), max_steps=40, tolerance=1e-8
    )
    assert found.converged
    np.testing.assert_allclose(found.top, top, rtol=1e-8)
    np.testing.assert_allclose(found.bottom, bottom, rtol=1e-8)
    gram = found.vectors.T @ found.vectors
    assert (gram - torch.eye(len(top), dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("block", [1, 4])
def test_residuals_are_those_of_the_ritz_pairs_and_bound_the_error(block):
    matrix = symmetric(OUTLIERS)
    found = extreme_eigenvalues(matrix.matmul, signs(200, block), 5, max_steps=36 // (4 * block), tolerance=1e-8)
    assert not found.converged
    assert found.products == 36 // (4 * block) * block
    true = (matrix @ found.vectors - found.vectors * torch.from_numpy(found.top.copy())).norm(dim=0).numpy()
    np.testing.assert_allclose(found.top_residuals, true, rtol=1e-6, atol=1e-12)
    for values, residuals in ((found.top, found.top_residuals), (found.bottom, found.bottom_residuals)):
        assert (np.abs(values[:, None] - OUTLIERS).min(1) <= residuals).all()
    assert found.top_residuals[-1] > 1e-3


def test_extremes_stop_when_converged():
    found = extreme_eigenvalues(symmetric(OUTLIERS).matmul, signs(200, 1), 2, max_steps=200, tolerance=1e-2)
    assert found.converged
    assert found.products < 20
    assert (found.top_residuals <= 1e-2 * found.top).all()
    assert found.bottom_residuals[0] <= 0.5


def test_an_invariant_subspace_ends_the_search():
    matrix = symmetric([3.0, 2.0, -1.0] + [0.0] * 47)
    found = extreme_eigenvalues(matrix.matmul, signs(50, 1), 6, max_steps=50, tolerance=1e-8)
    assert found.products == 4
    np.testing.assert_allclose(found.top, [3, 2, 0, -1], atol=1e-12)
    assert found.vectors.shape == (50, 4)


def test_blocks_shrink_where_their_rank_drops_and_end_empty():
    # A block of 4 spans 3 + 3 + 1 directions of range and kernel: 4 in the first step, what A adds in the second.
    matrix = symmetric([3.0, 2.0, -1.0] + [0.0] * 47)
    lanczos = Lanczos(matrix.matmul, signs(50, 4), 50)
    while not lanczos.exhausted:
        lanczos.step()
    assert lanczos.products == lanczos.basis.shape[1] == 7
    basis = lanczos.basis
    assert (basis.T @ basis - torch.eye(7, dtype=torch.float64)).abs().max() < 1e-12
    np.testing.assert_allclose(lanczos.matrix, (basis.T @ matrix @ basis).numpy(), atol=1e-12)
    np.testing.assert_allclose(lanczos.ritz()[0], [-1, 0, 0, 0, 0, 2, 3], atol=1e-12)


def test_a_start_with_dependent_columns_loses_them():
    start = signs(60, 2)
    lanczos = Lanczos(symmetric(np.linspace(-1, 1, 60)).matmul, torch.cat([start, start.sum(1, keepdim=True)], 1), 4)
    lanczos.step()
    assert lanczos.products == 2


def test_fp32_residuals_never_claim_more_than_fp32():
    matrix = symmetric(OUTLIERS, dtype=torch.float32)
    found = extreme_eigenvalues(matrix.matmul, signs(200, 1, dtype=torch.float32), 3, max_steps=60, tolerance=1e-6)
    assert (found.top_residuals >= 50 * 1e-7).all()
    np.testing.assert_allclose(found.top, [50, 20, 12], rtol=1e-5)


@pytest.mark.parametrize("block", [1, 3])
def test_bases_stay_orthonormal_long_after_convergence(block):
    matrix = symmetric(np.geomspace(1e-4, 1e4, 300), dtype=torch.float32)
    basis = run(matrix, signs(300, block, dtype=torch.float32), 60 // block).basis
    assert basis.shape == (300, 60)
    assert (basis.T @ basis - torch.eye(60)).abs().max() < 1e-5


def test_the_matrix_is_the_operator_in_the_basis_and_block_tridiagonal():
    matrix = symmetric(OUTLIERS)
    lanczos = run(matrix, signs(200, 3), 8)
    np.testing.assert_allclose(lanczos.matrix, (lanczos.basis.T @ matrix @ lanczos.basis).numpy(), atol=1e-11)
    rows, columns = np.indices((24, 24)) // 3
    assert not lanczos.matrix[np.abs(rows - columns) > 1].any()


@pytest.mark.parametrize(
    ("eigenvalues", "block", "extra", "tolerance"),
    [
        *((OUTLIERS, block, extra, tolerance) for block in (1, 3) for extra, tolerance in ((0, 1e-2), (6, 1e-8))),
        (np.geomspace(1e-6, 1e3, 80), 1, 4, 1e-4),
        (-np.geomspace(1, 100, 50), 3, 6, 1e-2),
    ],
)
def test_a_bounded_basis_finds_the_same_eigenvalues(eigenvalues, block, extra, tolerance):
    matrix = symmetric(eigenvalues)
    expected, size = np.linalg.eigvalsh(matrix.numpy()), np.abs(eigenvalues).max()
    room = fewest_vectors(5, 2, block) + extra
    effort = {"bottom": 2, "max_steps": 400, "tolerance": tolerance}
    found = extreme_eigenvalues(matrix.matmul, signs(len(matrix), block), 5, max_basis=room, **effort)
    assert found.converged
    assert found.basis.shape[1] <= room < found.products
    np.testing.assert_allclose(found.top, expected[::-1][:5], rtol=tolerance, atol=1e-12 * size)
    np.testing.assert_allclose(found.bottom, expected[:2], atol=tolerance * size)
    assert (found.basis.T @ found.basis - torch.eye(found.basis.shape[1])).abs().max() < 1e-12
    assert found.basis_trace == pytest.approx(float((found.basis * (matrix @ found.basis)).sum()), rel=1e-10)


@pytest.mark.parametrize("block", [1, 2])
def test_residuals_after_restarts_are_those_of_the_ritz_pairs_and_bound_the_error(block):
    matrix = symmetric(OUTLIERS)
    room = fewest_vectors(5, 1, block)
    found = extreme_eigenvalues(
        matrix.matmul, signs(200, block), 5, max_steps=14 // block, tolerance=1e-12, max_basis=room
    )
    assert not found.converged
    assert found.basis.shape[1] <= room < found.products
    true = (matrix @ found.vectors - found.vectors * torch.from_numpy(found.top.copy())).norm(dim=0).numpy()
    np.testing.assert_allclose(found.top_residuals, true, rtol=1e-5, atol=1e-10)
    assert (np.abs(found.top[:, None] - OUTLIERS).min(1) <= found.top_residuals * (1 + 1e-9) + 1e-12).all()
    assert found.top_residuals.max() > 1e-4


def test_room_that_is_never_filled_changes_no_bit():
    matrix, effort = symmetric(OUTLIERS), {"max_steps": 30, "tolerance": 1e-6}
    bounded = extreme_eigenvalues(matrix.matmul, signs(200, 1), 3, max_basis=64, **effort)
    free = extreme_eigenvalues(matrix.matmul, signs(200, 1), 3, **effort)
    assert np.array_equal(bounded.top, free.top)
    assert torch.equal(bounded.vectors, free.vectors)


def test_a_bounded_search_resumes_with_the_same_bits():
    class Kept(dict):
        read, clear = dict.get, dict.clear

        def write(self, index, tensor):
            self[index] = tensor

    matrix, journal, calls = symmetric(OUTLIERS), Kept(), []

    def product(vectors):
        calls.append(1)
        return matrix @ vectors

    def search():
        wrapped = journaled(journal)(product)
        return extreme_eigenvalues(wrapped, signs(200, 1), 3, max_steps=40, tolerance=1e-9, max_basis=8)

    whole = search()
    made = len(calls)
    for index in list(journal)[made // 2 :]:
        del journal[index]
    again = search()
    assert len(calls) == made + made - made // 2
    assert np.array_equal(again.top, whole.top)
    assert torch.equal(again.vectors, whole.vectors)
