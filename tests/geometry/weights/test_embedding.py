import numpy as np
import pytest

from raygeo.geometry.weights.embedding import embed


def planted(n=9, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 2))


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_points_of_a_plane_come_back_up_to_a_rigid_motion():
    plane = planted()
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 2))).Q
    high = plane @ basis.T + np.random.default_rng(2).standard_normal(40)
    found = embed(high @ high.T, 3, 5)
    np.testing.assert_allclose(distances(found.points), distances(plane), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.share[:2].sum(), 1, rtol=0, atol=1e-12)
    assert found.stress[1:].max() < 1e-6
    spread = np.linalg.svd(plane - plane.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(found.eigenvalues[:2], spread, rtol=1e-10)


def test_axes_and_stress_are_those_of_principal_components():
    points = np.random.default_rng(0).standard_normal((6, 20))
    found = embed(points @ points.T, 0, 1)
    u, s, _ = np.linalg.svd(points - points.mean(0))
    np.testing.assert_allclose(found.eigenvalues, s[:5] ** 2, rtol=1e-10)
    pairs = np.triu_indices(6, 1)
    given = distances(points)[pairs]
    for k in range(1, 6):
        shown = distances(u[:, :k] * s[:k])[pairs]
        expected = np.sqrt(((given - shown) ** 2).sum() / (given**2).sum())
        assert found.stress[k - 1] == pytest.approx(expected, abs=1e-7)


def test_the_origin_stays_and_the_reference_points_right():
    points = planted()
    for flip in (points, points * [1, -1], points @ [[0, 1], [-1, 0]], points + 7):
        found = embed(flip @ flip.T, 2, 4).points
        np.testing.assert_array_equal(found[2], 0)
        assert found[4, 0] == pytest.approx(np.linalg.norm(points[4] - points[2]))
        assert found[4, 1] == 0
        assert found[np.abs(found[:, 1]).argmax(), 1] > 0
        np.testing.assert_allclose(found, embed(points @ points.T, 2, 4).points, rtol=0, atol=1e-10)


def test_a_reference_at_the_origin_leaves_its_place_to_the_farthest():
    points = np.array([[0.0, 0], [1e-12, 0], [0, 2], [1, 0]])
    found = embed(points @ points.T, 0, 1).points
    np.testing.assert_allclose(found, [[0, 0], [0, 0], [2, 0], [0, 1]], rtol=0, atol=1e-9)


def test_two_points_and_no_distance():
    found = embed(np.array([[0.0, 0], [0, 9]]), 0, 1)
    np.testing.assert_allclose(found.points, [[0, 0], [3, 0]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.share, [1])
    nowhere = embed(np.zeros((3, 3)), 0, 1)
    np.testing.assert_array_equal(nowhere.points, 0)
    assert np.isnan(nowhere.share).all()
    assert np.isnan(nowhere.stress).all()
