import itertools
import pickle

import numpy as np
import pytest
import torch
from delta_cases import Q, V, gaussian, lora_run, low_rank, save_lora
from scipy.linalg import subspace_angles

from raygeo.analyses.subspaces.workload import Subspaces, SubspaceSettings
from raygeo.errors import DeltaError
from raygeo.geometry.weights.subspaces import (
    Subspace,
    angles_between,
    leading_subspaces,
    null_angles,
    principal_angles,
    random_angles,
)
from raygeo.models.delta import Dense, LowRank, save_full_delta
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

Q0 = Q.format(0) + ".weight"


def frame(d, k, seed):
    return torch.linalg.qr(gaussian(d, k, seed=seed, dtype=torch.float64)).Q.numpy()


@pytest.mark.parametrize("k", [1, 3])
def test_leading_subspaces_are_those_of_the_dense_matrix(k):
    for entry in (low_rank(30, 20, 5, seed=0), Dense(gaussian(30, 20, seed=1))):
        exact = torch.linalg.svd(entry.dense(torch.float64), full_matrices=False)
        sides = leading_subspaces(entry, k)
        for side, vectors in (("left", exact.U[:, :k]), ("right", exact.Vh[:k].T)):
            assert sides[side].basis.shape == vectors.shape
            assert angles_between(sides[side].basis, vectors.numpy()).max() < 1e-8


def test_subspaces_do_not_depend_on_the_gauge_of_the_factors():
    entry, mix = low_rank(30, 20, 4, seed=0), gaussian(4, 4, seed=9, dtype=torch.float64)
    other = LowRank(entry.b.double() @ mix, torch.linalg.solve(mix, entry.a.double()), entry.scale)
    for side, space in leading_subspaces(entry, 2).items():
        again = leading_subspaces(other, 2)[side]
        assert angles_between(space.basis, again.basis).max() < 1e-8
        np.testing.assert_allclose(null_angles(space, space, 2), null_angles(again, again, 2), rtol=0.1)


@pytest.mark.parametrize(("small", "dimensions"), [(1.0, 3), (1e-5, 3), (1e-7, 2), (0.0, 2)])
def test_directions_below_the_numerical_rank_are_left_out(small, dimensions):
    matrix = torch.diag(torch.tensor([2.0, 1.5, 2.0 * small, 0.0]))
    for side in leading_subspaces(Dense(matrix), 4).values():
        assert side.basis.shape == (4, dimensions)


def test_a_zero_delta_has_no_directions():
    entry = low_rank(6, 5, 2, seed=0)
    for zero in (Dense(torch.zeros(6, 5)), LowRank(torch.zeros(6, 2), entry.a, 1.0)):
        for side in leading_subspaces(zero, 2).values():
            assert side.basis.shape[1] == 0


def test_row_space_of_a_lora_delta_is_that_of_a_whatever_b_is():
    a, b = gaussian(6, 20, seed=0), gaussian(4, 6, seed=1)
    for factor in (b, torch.zeros(4, 6)):
        within = leading_subspaces(LowRank(factor, a, 1.0), 3)["right"].within
        assert within.shape == (20, 6)
        assert angles_between(within, a.T.double().numpy()).max() < 1e-6


def test_principal_angles_of_rotated_planes():
    angles = np.deg2rad([1e-7, 0.01, 30.0, 90.0])
    a = np.eye(8)[:, :4]
    b = np.vstack([np.diag(np.cos(angles)), np.diag(np.sin(angles))])
    np.testing.assert_allclose(angles_between(a, b), [1e-7, 0.01, 30.0, 90.0], rtol=1e-12)
    assert angles_between(a, -a[:, ::-1]).max() < 1e-12


@pytest.mark.parametrize("k", [1, 4, 9])
def test_principal_angles_match_scipy(k):
    a, b = frame(12, k, seed=k), frame(12, k, seed=k + 10)
    np.testing.assert_allclose(angles_between(a, b), np.rad2deg(subspace_angles(a, b))[::-1], atol=2e-6)


def test_angles_of_two_entries_are_those_of_their_leading_subspaces_beside_chance():
    a, b = low_rank(30, 20, 4, seed=0), Dense(gaussian(30, 20, seed=1))
    exact = [torch.linalg.svd(entry.dense(torch.float64)) for entry in (a, b)]
    found = principal_angles(a, b, 3)
    for side, (x, y) in {"left": [m.U for m in exact], "right": [m.Vh.T for m in exact]}.items():
        angles = np.rad2deg(subspace_angles(x[:, :3].numpy(), y[:, :3].numpy()))[::-1]
        np.testing.assert_allclose(found[side].degrees, angles, atol=1e-6)
        np.testing.assert_array_equal(found[side].null_degrees, random_angles(len(x), 3))
    bound = principal_angles(a, a, 9)
    assert bound["right"].degrees.max() < 1e-6
    np.testing.assert_allclose(bound["right"].null_degrees, random_angles(4, 4), atol=5)
    nothing = principal_angles(a, Dense(torch.zeros(30, 20)), 3)
    assert len(nothing["left"].degrees) == len(nothing["right"].null_degrees) == 0


@pytest.mark.parametrize(
    ("d", "k", "smallest", "largest"),
    [
        (1024, 10, 79.7, 89.6),
        (2560, 10, 83.5, 89.8),
        (4096, 10, 85.0, 89.8),
        (1024, 8, 81.1, None),
        (2560, 8, 84.5, None),
        (4096, 8, 85.6, None),
        (1024, 32, 70.6, None),
        (2560, 32, 77.8, None),
        (4096, 32, 80.3, None),
    ],
)
def test_random_angles_match_published_means(d, k, smallest, largest):
    found = random_angles(d, k)
    assert found.shape == (k,)
    assert (np.diff(found) >= 0).all()
    assert found[0] == pytest.approx(smallest, abs=0.2)
    if largest is not None:
        assert found[-1] == pytest.approx(largest, abs=0.1)


@pytest.mark.parametrize(("d", "k"), [(12, 1), (12, 3), (12, 6), (12, 8), (40, 4), (7, 7)])
def test_random_angles_match_sampled_subspaces(d, k):
    rng = np.random.default_rng(0)
    draws = [subspace_angles(rng.standard_normal((d, k)), rng.standard_normal((d, k)))[::-1] for _ in range(400)]
    sampled = np.rad2deg(draws)
    error = sampled.std(axis=0) * np.sqrt(1 / 400 + 1 / 256)
    assert (np.abs(random_angles(d, k) - sampled.mean(axis=0)) <= 4 * error + 1e-5).all()


@pytest.mark.parametrize(("d", "mean"), [(2, 45.0), (3, np.rad2deg(1.0))])
def test_random_lines_have_known_mean_angles(d, mean):
    assert random_angles(d, 1)[0] == pytest.approx(mean, abs=5)


def test_random_angles_refuse_impossible_subspaces():
    for k in (0, 5):
        with pytest.raises(ValueError, match="R\\^4"):
            random_angles(4, k)


def test_shared_row_space_gives_the_null_within_it():
    rows = frame(256, 32, seed=0)
    rotated = rows @ frame(32, 32, seed=1)
    basis = rows[:, :10]
    found = null_angles(Subspace(basis, rows), Subspace(basis, rotated), 10)
    assert found[0] == pytest.approx(27, abs=1)
    assert found[-1] == pytest.approx(87.5, abs=0.5)
    np.testing.assert_allclose(found, random_angles(32, 10), atol=1.0)


def test_unrelated_row_spaces_give_nearly_the_null_of_the_whole_space():
    a, b = frame(1024, 32, seed=0), frame(1024, 32, seed=1)
    found = null_angles(Subspace(a[:, :4], a), Subspace(b[:, :4], b), 4)
    np.testing.assert_allclose(found, random_angles(1024, 4), atol=0.7)


def test_null_within_row_spaces_matches_sampled_lora_deltas():
    """Random B on two overlapping A's with orthonormal rows."""
    a1, other = frame(24, 6, seed=0), frame(24, 6, seed=1)
    a2 = np.linalg.qr(a1 + 0.5 * other).Q
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(300):
        v1, v2 = (np.linalg.qr(a @ rng.standard_normal((6, 2))).Q for a in (a1, a2))
        draws.append(np.rad2deg(subspace_angles(v1, v2))[::-1])
    error = np.std(draws, axis=0) * np.sqrt(1 / 300 + 1 / 256)
    found = null_angles(Subspace(a1[:, :2], a1), Subspace(a2[:, :2], a2), 2)
    assert (np.abs(found - np.mean(draws, axis=0)) <= 4 * error).all()


def test_one_side_free_means_the_null_of_the_whole_space():
    rows = frame(64, 8, seed=0)
    free, bound = Subspace(frame(64, 3, seed=1)), Subspace(rows[:, :3], rows)
    np.testing.assert_array_equal(null_angles(free, bound, 3), random_angles(64, 3))


def runs_of(tmp_path):
    """Two LoRA runs from one A, one from another, and a full run of more parameters."""
    first = {Q.format(0): low_rank(32, 32, 4, 0), V.format(1): low_rank(16, 32, 4, 1)}
    second = {name: LowRank(gaussian(*entry.b.shape, seed=50), entry.a, 2.0) for name, entry in first.items()}
    third = {Q.format(0): low_rank(32, 32, 2, 7), V.format(1): low_rank(16, 32, 2, 8)}
    runs = [
        lora_run(tmp_path, name, entries) for name, entries in (("first", first), ("second", second), ("third", third))
    ]
    tensors = {Q0: gaussian(32, 32, seed=9), V.format(0) + ".weight": gaussian(16, 32, seed=10)}
    save_full_delta(tmp_path / "full", tensors | {"model.norm.weight": torch.ones(32)})
    return [Run(BASE, "b", None), *runs, Run("full", "full", str(tmp_path / "full"))]


def rows_of(workload):
    state = workload.setup()
    rows = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["subspaces"]]
    to_arrow("subspaces", rows, workload.tables["subspaces"])
    return rows


def test_rows_are_the_angles_between_dense_decompositions(tmp_path, base):
    runs = runs_of(tmp_path)
    rows = rows_of(Subspaces(SubspaceSettings(k=3), runs, base))
    expected_places = set()
    for (a, b), name in itertools.product(itertools.combinations(runs[1:], 2), [Q.format(0), V.format(1)]):
        da, db = a.open(), b.open()
        if name + ".weight" not in da or name + ".weight" not in db:
            continue
        k = 2 if "third" in (a.name, b.name) else 3
        ua, ub = (torch.linalg.svd(delta[name + ".weight"].dense(torch.float64)) for delta in (da, db))
        for side in ("left", "right"):
            x, y = ((m.U if side == "left" else m.Vh.T)[:, :k].numpy() for m in (ua, ub))
            mine = [r for r in rows if (r["run_a"], r["run_b"], r["module"], r["side"]) == (a.name, b.name, name, side)]
            angles = np.rad2deg(subspace_angles(x, y))[::-1]
            np.testing.assert_allclose([row["angle_degrees"] for row in mine], angles, atol=1e-6)
            assert [row["index"] for row in mine] == list(range(k))
            assert {row["k"] for row in mine} == {k}
            assert {row["dimension"] for row in mine} == {len(x)}
            assert {row["layer"] for row in mine} == {int(name.split(".")[2])}
            expected_places |= {(a.name, b.name, name, side, i) for i in range(k)}
    assert {(r["run_a"], r["run_b"], r["module"], r["side"], r["index"]) for r in rows} == expected_places
    assert len(rows) == len(expected_places)


def test_null_is_lower_on_the_right_of_runs_from_one_initialisation(tmp_path, base):
    rows = rows_of(Subspaces(SubspaceSettings(k=1), runs_of(tmp_path), base))
    null = {(r["run_a"], r["run_b"], r["side"]): r["null_degrees"] for r in rows if r["module"] == Q.format(0)}
    assert null["first", "second", "left"] == random_angles(32, 1)[0]
    assert null["first", "second", "right"] == pytest.approx(random_angles(4, 1)[0], abs=5)
    assert null["first", "second", "right"] < null["first", "third", "right"] - 10
    assert null["first", "full", "right"] == random_angles(32, 1)[0]


def test_identical_and_scaled_runs_have_no_angle(tmp_path, base):
    entry = low_rank(32, 32, 4, seed=0)
    folders = [
        save_lora(tmp_path / str(i), {Q.format(0): LowRank(s * entry.b, entry.a, 2.0)}) for i, s in enumerate((1, -5))
    ]
    rows = rows_of(Subspaces(SubspaceSettings(), [Run(f.name, f.name, str(f)) for f in folders], base))
    assert len(rows) == 8
    assert max(row["angle_degrees"] for row in rows) < 1e-5


def test_a_run_that_did_not_move_a_matrix_gives_no_rows(tmp_path, base):
    entry = low_rank(32, 32, 4, seed=0)
    still = LowRank(torch.zeros(32, 4), entry.a, 2.0)
    folders = [save_lora(tmp_path / name, {Q.format(0): e}) for name, e in (("a", entry), ("still", still))]
    assert rows_of(Subspaces(SubspaceSettings(), [Run(f.name, f.name, str(f)) for f in folders], base)) == []


def test_tasks_are_the_matrices_of_at_least_two_runs(tmp_path, base):
    runs = runs_of(tmp_path)
    workload = pickle.loads(pickle.dumps(Subspaces(SubspaceSettings(), runs, base)))
    tasks = workload.tasks()
    assert [task.payload for task in tasks] == [Q0, V.format(1) + ".weight"]
    assert [task.cost for task in tasks] == [(4 + 4 + 2) * 64 + 32 * 32, (4 + 4 + 2) * 48]
    assert len({task.key for task in tasks}) == 2
    other = Subspaces(SubspaceSettings(k=4), runs, base).tasks()
    assert not {task.key for task in tasks} & {task.key for task in other}
    fewer = Subspaces(SubspaceSettings(), runs[:-1], base).tasks()
    assert [task.key == old.key for task, old in zip(fewer, tasks, strict=True)] == [False, True]


def test_deltas_of_another_base_are_refused(tmp_path, base):
    for name in ("a", "b"):
        save_full_delta(tmp_path / name, {Q0: torch.ones(8, 4)})
    with pytest.raises(DeltaError, match=r"shape \(8, 4\)"):
        rows_of(Subspaces(SubspaceSettings(), [Run(n, n, str(tmp_path / n)) for n in ("a", "b")], base))
