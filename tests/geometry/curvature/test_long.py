import numpy as np
import pytest
import torch

from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.lanczos import Lanczos

N = 3_000_001


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, N, generator=generator)  # positive, so that sums drift where they can


def test_sums_over_many_entries_are_those_of_fp64(rows):
    wide = rows.double().numpy()
    gram = wide @ wide.T
    np.testing.assert_allclose(long.inner(rows, rows[:2]), gram[:, :2], rtol=1e-12)
    np.testing.assert_allclose(long.inner(rows.T.contiguous().T, rows), gram, rtol=1e-12)  # whatever the strides
    np.testing.assert_allclose(long.dots(rows, rows), np.diag(gram), rtol=1e-12)
    assert long.norm(rows[0]) == pytest.approx(np.sqrt(gram[0, 0]), rel=1e-12)
    assert long.norm(torch.full((4,), 1e30)) == pytest.approx(2e30)


def test_combinations_round_each_entry_once(rows):
    coefficients = torch.tensor([[0.1, -0.7, 0.6], [1e3, -1e3, 1.0]], dtype=torch.float64)
    expected = (coefficients @ rows.double()).float()
    assert torch.equal(long.combine(coefficients, rows), expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, N), (1, N), (4, 2), (3, 0), (0, 5)])
def test_the_triangle_is_that_of_one_factorisation(rows, shape):
    matrix = torch.cat([rows, rows[:1] + 1e-4 * rows[1:2]])[: shape[0], : shape[1]]
    r = long.triangle(matrix)
    assert r.shape == (shape[0], shape[0])
    expected = np.linalg.svd(np.linalg.qr(matrix.double().numpy().T, mode="r"), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(r.numpy(), compute_uv=False)[: len(expected)], expected, rtol=1e-9)


def test_what_lies_in_a_basis_is_removed(rows):
    basis = torch.linalg.qr(rows[:2].double().T).Q.T.float().contiguous()
    left = long.remove(long.remove(rows[2:].clone(), basis), basis)
    assert long.inner(left, basis).abs().max() < 1e-8 * long.norm(rows[2])
    expected = rows[2].double() - rows[2].double() @ basis.double().T @ basis.double()
    np.testing.assert_allclose(left[0], expected, atol=1e-6)
    assert torch.equal(long.remove(rows.clone(), rows[:0]), rows)


@pytest.mark.slow
def test_blocks_of_very_long_vectors_are_orthonormal():
    n = 6_000_000  # LAPACK's QR in fp32 would make columns of norm 1 + 1e-4
    start = torch.ones(2, n)
    start[0, ::2] = -1
    start[1, n // 3 :] = 0.3
    lanczos = Lanczos(torch.clone, start.T, 1)
    lanczos.step()
    assert lanczos.basis.dtype == torch.float32
    wide = lanczos.basis.numpy().astype(np.float64)
    np.testing.assert_allclose(wide.T @ wide, np.eye(2), atol=1e-6)
