import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, gaussian, save_lora

from raygeo.analyses.subspace_locking.workload import SubspaceLocking, SubspaceLockingSettings
from raygeo.geometry.weights.locking import likeness
from raygeo.geometry.weights.subspaces import Subspace, leading_subspaces
from raygeo.models.delta import Dense, LowRank, open_delta, save_full_delta
from raygeo.models.run import Run

STEPS = (1, 4, 9)


def lora(step):
    b = gaussian(32, 6, seed=0) * step**0.5 + gaussian(32, 6, seed=step)
    return {Q.format(0): LowRank(b, gaussian(6, 32, seed=1) + 0.02 * step * gaussian(6, 32, seed=2), 0.01)}


def full(step):
    return {
        f"{name}.weight": 0.01 * (step * gaussian(*shape, seed=5) + gaussian(*shape, seed=step))
        for name, shape in ((Q.format(0), (32, 32)), (V.format(1), (16, 32)))
    } | {"model.norm.weight": torch.ones(32)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    made = []
    for name, deltas, save in (("lora", lora, save_lora), ("full", full, save_full_delta)):
        for step in STEPS:
            save(folder / name / f"step-{step:06d}", deltas(step))
        made.append(Run(name, name, folder / name / f"step-{STEPS[-1]:06d}", folder / name))
    return [*made, Run("bare", "bare", made[1].delta)]


def rows_of(runs, base, **settings):
    steps = {run.name: STEPS[-1] for run in runs}
    return all_rows(SubspaceLocking(SubspaceLockingSettings(**settings), runs, base, steps))["subspace_locking"]


def test_every_row_equals_its_definition(runs, base):
    rows = {
        (r["run"], r["step"], r["module"], r["side"]): r for r in rows_of(runs, base, k=4) if r["scope"] == "module"
    }
    assert len(rows) == 2 * 2 * (1 + 2)
    for run in runs[:2]:
        deltas = {step: open_delta(run.snapshots / f"step-{step:06d}") for step in STEPS}
        for step in STEPS[:-1]:
            for name in set(deltas[step]) - {"model.norm.weight"}:
                (u, _, v), (u1, _, v1) = (
                    np.linalg.svd(deltas[t][name].dense(torch.float64).numpy()) for t in (step, STEPS[-1])
                )
                for side, a, b in (("left", u[:, :4], u1[:, :4]), ("right", v[:4].T, v1[:4].T)):
                    row = rows[run.name, step, name.removesuffix(".weight"), side]
                    assert row["similarity"] == pytest.approx(np.linalg.norm(a.T @ b) ** 2 / 4, rel=1e-9)
                    assert row["k"] == 4
                    if run.name == "full" or side == "left":
                        assert row["null"] == pytest.approx(4 / len(a))
                    else:
                        assert row["null"] > 0.5


def test_random_subspaces_have_the_null_in_the_mean():
    rng = np.random.default_rng(0)

    def frame(d, k):
        return np.linalg.qr(rng.normal(size=(d, k))).Q

    for a, b in ((None, None), (frame(30, 8), frame(30, 6))):
        drawn = []
        for _ in range(600):
            spaces = [
                Subspace(frame(30, 3)) if within is None else Subspace(within @ frame(within.shape[1], 3), within)
                for within in (a, b)
            ]
            drawn.append(likeness(*spaces))
        found = np.array([one.similarity for one in drawn])
        assert drawn[0].null == pytest.approx(found.mean(), abs=4 * found.std() / 600**0.5)


def test_a_shared_row_space_alone_makes_the_right_side_alike_as_the_null_says():
    a = gaussian(4, 40, seed=0)
    one, other = (leading_subspaces(LowRank(gaussian(50, 4, seed=s), a, 1.0), 16) for s in (1, 2))
    right, left = (likeness(one[side], other[side]) for side in ("right", "left"))
    assert (right.k, right.similarity, right.null) == pytest.approx((4, 1, 1))
    assert left.null == 4 / 50
    assert left.similarity < 0.4


def test_a_delta_that_has_not_moved_has_no_directions():
    zero, one = (leading_subspaces(Dense(t), 3)["left"] for t in (torch.zeros(8, 6), gaussian(8, 6, seed=0)))
    assert likeness(zero, one) is None
    assert likeness(one, one).similarity == pytest.approx(1)


def test_totals_are_means_by_step_and_side(runs, base):
    rows = [r for r in rows_of(runs, base) if (r["run"], r["step"], r["side"]) == ("full", 4, "left")]
    modules = [r for r in rows if r["scope"] == "module"]
    (whole,) = [r for r in rows if r["scope"] == "global"]
    assert [r["k"] for r in modules] == [16, 16]
    assert whole["k"] == 32
    assert whole["similarity"] == pytest.approx(np.mean([r["similarity"] for r in modules]))
    assert {r["module"] for r in rows if r["scope"] == "module type"} == {"q_proj", "v_proj"}
