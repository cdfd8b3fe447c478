import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from delta_cases import Q, V, gaussian, save_lora
from tiny import tiny_qwen

from raygeo.analyses.trajectories.workload import Trajectories, TrajectorySettings
from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.difference import difference
from raygeo.geometry.weights.growth import fit_log, fit_power
from raygeo.geometry.weights.trajectory import trajectory
from raygeo.models.delta import Dense, LowRank, open_delta, save_full_delta
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

STEPS = (1, 2, 5, 12, 30)
LAST = STEPS[-1]
SHAPES = {Q.format(0): (32, 32), V.format(1): (16, 32)}


def lora_deltas(seed):
    """Factors on a way: B grows from zero, A drifts."""
    deltas = {}
    for step in STEPS:
        entries = {}
        for place, (name, (out, into)) in enumerate(SHAPES.items()):
            here = seed + 10 * place
            b = 0.01 * step**0.6 * (gaussian(out, 4, seed=here) + 0.3 * gaussian(out, 4, seed=here + step + 100))
            a = gaussian(4, into, seed=here + 1) + 0.002 * step * gaussian(4, into, seed=here + 2)
            entries[name] = LowRank(b, a, 2.0)
        deltas[step] = entries
    return deltas


def full_deltas(seed, steps=STEPS):
    return {
        step: {
            f"{name}.weight": 0.01 * (gaussian(*shape, seed=seed) * step**0.5 + gaussian(*shape, seed=seed + step))
            for name, shape in SHAPES.items()
        }
        for step in steps
    }


def kept_run(folder, name, deltas, save, snapshots=True):
    *early, last = deltas
    save(folder / name / "final", deltas[last])
    for step in early if snapshots else ():
        save(folder / name / "kept" / f"step-{step:06d}", deltas[step])
    return Run(name, f"key of {name}", folder / name / "final", folder / name / "kept" if snapshots else None)


def lora_run(folder, name, seed):
    return kept_run(folder, name, lora_deltas(seed), save_lora)


def full_run(folder, name, seed, **options):
    return kept_run(folder, name, full_deltas(seed), save_full_delta, **options)


def rows_of(runs, base, of, reference="", steps=None):
    workload = Trajectories(TrajectorySettings(), runs, base, steps or {run.name: LAST for run in runs}, reference)
    [task] = [task for task in workload.tasks() if task.payload.name == of]
    tables = workload.compute(workload.setup(), task.payload)
    for table, rows in tables.items():
        to_arrow(table, rows, workload.tables[table])
    return tables["trajectories"], tables["trajectory_fits"]


def flat(run):
    """The dense deltas of a run by step, one fp64 vector each."""
    folders = {int(folder.name[5:]): folder for folder in run.snapshots.iterdir()} | {LAST: run.delta}
    return {
        step: torch.cat([entry.dense(torch.float64).flatten() for entry in open_delta(folders[step]).values()])
        for step in sorted(folders)
    }


def cosine(x, y):
    return (x @ y / (x.norm() * y.norm())).item()


@pytest.mark.parametrize("make", [lora_run, full_run])
def test_every_column_is_that_of_dense_fp64_vectors(tmp_path, base, make):
    run, reference = make(tmp_path, "run", seed=0), make(tmp_path, "sft", seed=5)
    rows, _ = rows_of([reference, run], base, "run", "sft")
    dense, other = flat(run), flat(reference)
    weights = dict(tiny_qwen().named_parameters())
    size = torch.cat([weights[f"{name}.weight"].double().flatten() for name in SHAPES]).norm().item()
    assert [row["step"] for row in rows] == list(STEPS)
    at, path, before = torch.zeros_like(dense[LAST]), 0.0, None
    for row in rows:
        here = dense[row["step"]]
        move = here - at
        path += move.norm().item()
        assert row["norm"] == pytest.approx(here.norm().item(), rel=1e-12)
        assert row["relative_norm"] == pytest.approx(here.norm().item() / size, rel=1e-12)
        assert row["cosine_final"] == pytest.approx(cosine(here, dense[LAST]), abs=1e-12)
        assert row["cosine_reference"] == pytest.approx(cosine(here, other[row["step"]]), abs=1e-12)
        assert row["distance"] == pytest.approx(move.norm().item(), rel=1e-12)
        assert row["path_length"] == pytest.approx(path, rel=1e-12)
        assert row["straightness"] == pytest.approx(here.norm().item() / path, rel=1e-12)
        if before is None:
            assert row["cosine_previous"] is None
        else:
            assert row["cosine_previous"] == pytest.approx(cosine(move, before), abs=1e-12)
        at, before = here, move
    assert rows[0]["straightness"] == rows[-1]["cosine_final"] == 1
    assert rows[-1]["straightness"] < 0.9


def test_norms_get_both_laws(tmp_path, base):
    rows, fits = rows_of([full_run(tmp_path, "run", seed=0)], base, "run")
    t, y = np.array(STEPS, float), np.array([row["norm"] for row in rows])
    for row, law, fit in zip(fits, ("log", "power"), (fit_log, fit_power), strict=True):
        assert row == {"run": "run", "law": law, "n": len(STEPS), **vars(fit(t, y))}


def test_three_points_have_no_law(tmp_path, base):
    run = kept_run(tmp_path, "run", full_deltas(0, (1, 2, LAST)), save_full_delta)
    rows, fits = rows_of([run], base, "run")
    assert len(rows) == 3
    assert fits == [{"run": "run", "law": law, "n": 3} for law in ("log", "power")]


def test_a_straight_way_is_as_long_as_its_end_is_far(tmp_path, base):
    direction = {f"{Q.format(0)}.weight": gaussian(32, 32, seed=0)}
    deltas = {step: {name: value * step for name, value in direction.items()} for step in (1, 2, 4, 8)}
    rows, _ = rows_of([kept_run(tmp_path, "run", deltas, save_full_delta)], base, "run", steps={"run": 8})
    for row in rows:
        assert row["straightness"] == pytest.approx(1, abs=1e-12)
        assert row["cosine_final"] == pytest.approx(1, abs=1e-12)
    assert [row["cosine_previous"] for row in rows[1:]] == pytest.approx([1] * 3, abs=1e-12)


def test_any_mappings_of_entries_can_be_followed():
    matrix = gaussian(6, 5, seed=0)
    found = trajectory([{"a": Dense(t * matrix), "b": Dense(-t * matrix)} for t in (1.0, 3.0)])
    size = 2**0.5 * matrix.double().norm().item()
    np.testing.assert_allclose(found.distance, [size, 2 * size], rtol=1e-6)
    np.testing.assert_allclose(found.path_length, found.norm, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.cosine_previous), [True, False])


def test_there_and_back_is_a_turn_with_nothing_left(tmp_path, base):
    there, zero = {f"{Q.format(0)}.weight": torch.ones(32, 32)}, {f"{Q.format(0)}.weight": torch.zeros(32, 32)}
    end = {f"{Q.format(0)}.weight": torch.eye(32)}
    run = kept_run(tmp_path, "run", {1: zero, 2: there, 3: zero, 4: end}, save_full_delta)
    rows, _ = rows_of([run], base, "run", steps={"run": 4})
    assert [row["norm"] for row in rows] == pytest.approx([0, 32, 0, 32**0.5])
    assert [row["path_length"] for row in rows] == pytest.approx([0, 32, 64, 64 + 32**0.5])
    assert [row["cosine_previous"] for row in rows] == [None, None, pytest.approx(-1), pytest.approx(-(32**-0.5))]
    assert [row["cosine_final"] for row in rows] == [None, pytest.approx(32**-0.5), None, 1]
    assert [row["straightness"] for row in rows][:3] == [None, 1, 0]


def test_a_move_much_smaller_than_the_way_keeps_its_digits():
    """Squared norms differ from their inner product in the last digits only; the factors' difference does not."""
    b, a = gaussian(64, 4, seed=0), gaussian(4, 48, seed=1)
    nudge_b, nudge_a = b + 1e-6 * gaussian(64, 4, seed=2), a + 1e-6 * gaussian(4, 48, seed=3)
    move = difference(LowRank(nudge_b, nudge_a, 2.0), LowRank(b, a, 2.0))
    exact = 2 * (nudge_b.double() @ nudge_a.double() - b.double() @ a.double())
    assert exact.norm() < 1e-5 * (b @ a).norm()
    assert linalg.norm(move) == pytest.approx(exact.norm().item(), rel=1e-10)
    torch.testing.assert_close(move.dense(torch.float64), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "other",
    [Dense(torch.ones(6, 5)), LowRank(torch.ones(6, 3), torch.ones(3, 5), 1.0), LowRank(*torch.ones(2, 5, 5), 1.0)],
)
def test_entries_that_one_run_cannot_have_kept_are_refused(other):
    with pytest.raises(DeltaError, match="same format"):
        difference(LowRank(torch.ones(6, 2), torch.ones(2, 5), 1.0), other)


def test_the_reference_run_and_other_kinds_and_steps_have_no_cosine(tmp_path, base):
    reference = full_run(tmp_path, "sft", seed=0)
    bare = full_run(tmp_path, "bare", seed=3, snapshots=False)
    runs = [reference, full_run(tmp_path, "full", seed=1), lora_run(tmp_path, "lora", seed=2), bare]

    def cosines(of, to, steps=None):
        return [row["cosine_reference"] for row in rows_of(runs, base, of, to, steps)[0]]

    assert cosines("sft", "sft") == [None] * 5
    assert cosines("lora", "sft") == [None] * 5
    assert cosines("full", "diverged") == [None] * 5
    assert None not in cosines("full", "sft")
    assert cosines("full", "bare")[:4] == [None] * 4
    assert cosines("full", "bare")[4] == pytest.approx(cosine(flat(runs[1])[LAST], flat(replace(
        bare, snapshots=runs[1].snapshots))[LAST]), abs=1e-12)  # fmt: skip
    assert cosines("full", "sft", {"sft": 40, "full": LAST, "lora": LAST, "bare": LAST})[4] is None


def test_only_whole_folders_of_steps_are_read(tmp_path, base):
    run = full_run(tmp_path, "run", seed=0)
    (run.snapshots / "_COMPLETE").touch()
    (run.snapshots / "step-000003.5af1.tmp").mkdir()
    assert [row["step"] for row in rows_of([run], base, "run")[0]] == list(STEPS)


def test_deltas_of_another_base_or_of_other_parameters_are_refused(tmp_path, base):
    wrong = kept_run(tmp_path, "wrong", {1: {f"{Q.format(0)}.weight": torch.ones(2, 2)}} | {
        LAST: {f"{Q.format(0)}.weight": torch.ones(2, 2)}}, save_full_delta)  # fmt: skip
    with pytest.raises(DeltaError, match="another model"):
        rows_of([wrong], base, "wrong")
    mixed = kept_run(tmp_path, "mixed", full_deltas(0) | {1: {"model.norm.weight": torch.ones(32)}}, save_full_delta)
    with pytest.raises(DeltaError, match="other parameters"):
        rows_of([mixed], base, "mixed")


def test_one_task_a_run_that_kept_deltas_keyed_by_run_and_reference():
    runs = [Run(BASE, "b", None), Run("x", "1", "/x", "/sx"), Run("y", "2", "/y"), Run("z", "3", "/z", "/sz")]
    workload = pickle.loads(pickle.dumps(Trajectories(TrajectorySettings(), runs, "/b", {}, "y")))
    assert [task.payload.name for task in workload.tasks()] == ["x", "z"]
    keys = {
        task.key
        for reference in ("x", "y", "gone")
        for task in Trajectories(TrajectorySettings(), runs, "/b", {}, reference).tasks()
    }
    assert len(keys) == 6
