import math

import numpy as np
import pytest
import torch
from delta_cases import gaussian, low_rank
from scipy.linalg import subspace_angles

from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Dense, LowRank


def low(seed, rank=4, scale=2.0):
    return low_rank(40, 24, rank, seed, scale)


def full(seed, out=40, into=24):
    return Dense(gaussian(out, into, seed=seed))


def product(a, b):
    return (a.dense(torch.float64) * b.dense(torch.float64)).sum().item()


def size(entry):
    return entry.dense(torch.float64).norm().item()


CASES = {
    "low-low": (low(0), low(1, rank=7, scale=-0.3)),
    "low-full": (low(0), full(1)),
    "full-low": (full(0), low(1)),
    "full-full": (full(0), full(1)),
    "vectors": (Dense(gaussian(50, seed=0)), Dense(gaussian(50, seed=1))),
}


@pytest.fixture(params=[1 << 22, 100, 1])
def block(request, monkeypatch):
    """Sizes of the blocks in which dense entries are widened."""
    monkeypatch.setattr(linalg, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("a", "b"), CASES.values(), ids=CASES.keys())
def test_inner_products_and_norms_equal_dense_fp64(a, b):
    scale = size(a) * size(b)
    assert linalg.inner(a, b) == pytest.approx(product(a, b), abs=1e-13 * scale)
    assert linalg.inner(b, a) == pytest.approx(product(a, b), abs=1e-13 * scale)
    assert linalg.norm(a) == pytest.approx(size(a), rel=1e-13)


@pytest.mark.usefixtures("block")
def test_entries_side_by_side_are_the_dense_ones():
    for entries in ([low(0), full(1), low(2, rank=7, scale=-0.3)], [*CASES["vectors"]]):
        found = torch.cat(list(linalg.side_by_side(entries)), 1)
        expected = torch.stack([entry.dense(torch.float64).flatten() for entry in entries])
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    with pytest.raises(DeltaError, match="shapes"):
        next(linalg.side_by_side([low(0), CASES["vectors"][0]]))


def test_inner_products_are_accumulated_in_fp64():
    n = 1 << 20
    a = Dense(torch.full((n,), 0.1))
    assert linalg.inner(a, a) == pytest.approx(n * float(np.float32(0.1)) ** 2, rel=1e-11)
    huge = Dense(torch.tensor([1e30, 1.0]))
    assert linalg.inner(huge, Dense(torch.tensor([1e30, 0.0]))) == pytest.approx(1e60)


def test_inner_of_negated_scaled_and_disjoint_deltas():
    a = low(0)
    negated, scaled = LowRank(-a.b, a.a, a.scale), LowRank(a.b, a.a, 3 * a.scale)
    upper, lower = a.b.clone(), a.b.clone()
    upper[20:], lower[:20] = 0, 0
    energy = linalg.inner(a, a)
    assert linalg.inner(a, negated) == pytest.approx(-energy, rel=1e-14)
    assert linalg.inner(a, scaled) == pytest.approx(3 * energy, rel=1e-14)
    assert linalg.inner(LowRank(upper, a.a, 1.0), LowRank(lower, a.a, 1.0)) == 0


@pytest.mark.usefixtures("block")
def test_gram_holds_all_inner_products_of_mixed_entries():
    entries = [low(0), full(1), low(2, rank=1), low(3, rank=9, scale=0.1), full(4)]
    found = linalg.gram(entries)
    expected = torch.tensor([[product(a, b) for b in entries] for a in entries], dtype=torch.float64)
    sizes = torch.tensor([size(entry) for entry in entries], dtype=torch.float64)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert ((found - expected).abs() <= 1e-13 * torch.outer(sizes, sizes)).all()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_depends_on_the_gauge_of_the_factors(seed):
    """(B M, M^-1 A) is the same delta for every invertible M."""
    a, b = low_rank(40, 24, 4, seed), low(9)
    mix = gaussian(4, 4, seed=seed + 50, dtype=torch.float64)
    other = LowRank(a.b.double() @ mix, torch.linalg.solve(mix, a.a.double()), a.scale)
    assert linalg.inner(other, b) == pytest.approx(linalg.inner(a, b), abs=1e-11 * size(a) * size(b))
    assert linalg.norm(other) == pytest.approx(linalg.norm(a), rel=1e-11)
    torch.testing.assert_close(linalg.singular_values(other), linalg.singular_values(a), rtol=1e-11, atol=0)
    for x, y in zip(linalg.svd(a)[::2], linalg.svd(other)[::2], strict=True):
        x, y = (x, y) if len(x) == 40 else (x.T, y.T)
        assert subspace_angles(x[:, :2].numpy(), y[:, :2].numpy()).max() < 1e-10


def check_svd(entry, u, s, vh, tolerance):
    """Compare a whole or truncated decomposition with LAPACK's of the dense matrix."""
    matrix, n = entry.dense(torch.float64), len(s)
    exact = torch.linalg.svd(matrix, full_matrices=False)
    assert u.dtype == s.dtype == vh.dtype == torch.float64
    assert u.shape == (matrix.shape[0], n)
    assert vh.shape == (n, matrix.shape[1])
    torch.testing.assert_close(s, exact.S[:n], rtol=0, atol=tolerance * s[0].item())
    eye = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(vh @ vh.T, eye, rtol=0, atol=1e-10)
    rest = matrix - u * s @ vh
    expected = exact.S[n:].norm().item()
    assert rest.norm().item() == pytest.approx(expected, rel=1e-9, abs=10 * tolerance * matrix.norm().item())


@pytest.mark.parametrize("k", [None, 1, 3, 100])
@pytest.mark.parametrize(
    "entry",
    [low(0), low(1, scale=-1.5), low_rank(5, 30, 8, 2), low_rank(30, 5, 8, 3), full(4), full(5, 24, 40)],
    ids=["low", "negative scale", "rank over out", "rank over in", "tall", "wide"],
)
def test_svd_equals_dense_fp64(entry, k):
    u, s, vh = linalg.svd(entry, k)
    largest = min(*entry.shape, entry.a.shape[0] if isinstance(entry, LowRank) else 100)
    assert len(s) == (largest if k is None else min(k, largest))
    check_svd(entry, u, s, vh, 1e-13)
    torch.testing.assert_close(linalg.singular_values(entry)[: len(s)], s, rtol=1e-12, atol=1e-12)


def slow_decay(out, into, seed):
    """Singular values 1 / sqrt(i) over a Gaussian bulk, as full fine-tuning gives and randomised SVD gets wrong."""
    u = torch.linalg.qr(gaussian(out, 64, seed=seed, dtype=torch.float64)).Q
    v = torch.linalg.qr(gaussian(into, 64, seed=seed + 1, dtype=torch.float64)).Q
    signal = 150 * u * torch.arange(1, 65, dtype=torch.float64) ** -0.5 @ v.T
    return Dense((signal + gaussian(out, into, seed=seed + 2, dtype=torch.float64)).float())


@pytest.mark.parametrize(("out", "into"), [(520, 600), (600, 520)])
def test_svd_of_a_large_dense_entry_is_exact(out, into):
    entry = slow_decay(out, into, seed=0)
    u, s, vh = linalg.svd(entry, 8)
    assert len(s) == 8
    check_svd(entry, u, s, vh, 1e-11)
    exact = torch.linalg.svd(entry.dense(torch.float64), full_matrices=False)
    assert np.rad2deg(subspace_angles(u.numpy(), exact.U[:, :8].numpy())).max() < 1e-8
    assert np.rad2deg(subspace_angles(vh.T.numpy(), exact.Vh[:8].T.numpy())).max() < 1e-8
    torch.testing.assert_close(linalg.singular_values(entry), exact.S, rtol=1e-9, atol=0)


def test_svd_of_a_large_low_rank_matrix_keeps_its_bases_orthonormal(monkeypatch):
    monkeypatch.setattr(linalg, "_LAPACK_LIMIT", 10)
    monkeypatch.setattr(linalg, "_BLOCK", 100)
    entry = Dense(low(7, rank=3).dense())
    for k in (None, 5):
        check_svd(entry, *linalg.svd(entry, k), tolerance=1e-7)
    assert (linalg.singular_values(entry)[3:] < 1e-6 * linalg.norm(entry)).all()


def test_ranks_of_equal_singular_values_count_them():
    for n in (1, 5, 32):
        s = torch.cat([torch.full((n,), 0.3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)])
        for rank in (linalg.stable_rank, linalg.effective_rank, linalg.participation_rank):
            assert rank(s) == pytest.approx(n, rel=1e-12)


def test_ranks_of_two_unequal_singular_values():
    s = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert linalg.stable_rank(s) == pytest.approx(10 / 9)
    assert linalg.effective_rank(s) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    assert linalg.participation_rank(s) == pytest.approx(100 / 82)


@pytest.mark.parametrize("factor", [1e-120, 1e100])
def test_ranks_do_not_depend_on_scale(factor):
    s = torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)
    for rank in (linalg.stable_rank, linalg.effective_rank, linalg.participation_rank):
        assert rank(s * factor) == pytest.approx(rank(s), rel=1e-12)
        assert math.isnan(rank(s * 0))


def test_block_sums_of_unequal_blocks():
    matrix = gaussian(6, 6, seed=0, dtype=torch.float64)
    expected = [[part.sum() for part in row.split([1, 2, 3], dim=1)] for row in matrix.split([1, 2, 3])]
    torch.testing.assert_close(linalg.block_sums(matrix, [1, 2, 3]), torch.tensor(expected, dtype=torch.float64))


def test_entries_of_different_shapes_are_refused():
    for a, b in [(full(0), full(0, 24, 40)), (low(0), full(0, 40, 25)), (full(0), Dense(gaussian(960, seed=0)))]:
        with pytest.raises(DeltaError, match="shapes"):
            linalg.inner(a, b)
        with pytest.raises(DeltaError, match="shapes"):
            linalg.gram([a, a, b])


@pytest.mark.parametrize("limit", [512, 10])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused(monkeypatch, bad, limit):
    monkeypatch.setattr(linalg, "_LAPACK_LIMIT", limit)
    a, b = low(0), full(1)
    a.b[3, 1] = bad
    b.value[3, 1] = bad
    for entry in (a, b):
        for compute in (linalg.norm, linalg.svd, linalg.singular_values):
            with pytest.raises(DeltaError, match="NaN or infinity"):
                compute(entry)
        with pytest.raises(DeltaError, match="NaN or infinity"):
            linalg.gram([entry, low(2), full(3)])


def test_vectors_have_no_singular_values():
    for compute in (linalg.svd, linalg.singular_values):
        with pytest.raises(DeltaError, match="not a matrix"):
            compute(Dense(torch.ones(5)))
