import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, gaussian, save_lora

from raygeo.analyses.rank_one.workload import RankOneSettings, RankOneTrajectories
from raygeo.geometry.weights.rank_one import extrapolate, rank_one, walk
from raygeo.models.delta import LowRank, open_delta, save_full_delta
from raygeo.models.run import Run

STEPS = np.array([1, 2, 4, 7, 14, 26, 48])


def dense(x, steps, share):
    """Everything about deltas [T, entries], from the singular value decomposition of the matrix itself."""
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    c = s[0] * u[:, 0]
    out = {"share": s[0] ** 2 / (s**2).sum()}
    for name, t in (("r2_linear", steps), ("r2_log", np.log(steps))):
        out[name] = np.corrcoef(t, c)[0, 1] ** 2
    early = int((steps <= share * steps[-1]).sum())
    _, _, vh = np.linalg.svd(x[:early], full_matrices=False)
    slope, level = np.polyfit(steps[:early], x[:early] @ vh[0], 1)
    end, last = x[-1], x[early - 1]
    size = np.linalg.norm(end)
    out["error"] = np.linalg.norm((level + slope * steps[-1]) * vh[0] - end) / size
    out["held_error"] = np.linalg.norm(last - end) / size
    out["scaled_error"] = np.linalg.norm(last * size / np.linalg.norm(last) - end) / size
    return out | {"early": early}


def lora(step):
    b = step**0.8 * gaussian(32, 4, seed=0) + 0.5 * gaussian(32, 4, seed=step)
    return {Q.format(0): LowRank(b, gaussian(4, 32, seed=1) + 0.01 * step * gaussian(4, 32, seed=2), 0.01)}


def full(step):
    return {
        f"{name}.weight": 0.01 * (step * gaussian(*shape, seed=5) + gaussian(*shape, seed=step))
        for name, shape in ((Q.format(0), (32, 32)), (V.format(1), (16, 32)))
    } | {"model.norm.weight": torch.zeros(32)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    made = []
    for name, deltas, save in (("lora", lora, save_lora), ("full", full, save_full_delta)):
        for step in STEPS.tolist():
            save(folder / name / f"step-{step:06d}", deltas(step))
        made.append(Run(name, name, folder / name / f"step-{STEPS[-1]:06d}", folder / name))
    return made


def rows_of(runs, base, **settings):
    steps = {run.name: int(STEPS[-1]) for run in runs}
    return all_rows(RankOneTrajectories(RankOneSettings(**settings), runs, base, steps))["rank_one"]


def test_every_row_equals_the_decomposition_of_the_dense_deltas(runs, base):
    rows = {(r["run"], r["module"]): r for r in rows_of(runs, base) if r["scope"] == "module"}
    assert len(rows) == 1 + 2, "a vector that never moved has no row"
    for (run, module), row in rows.items():
        deltas = [open_delta(runs[run == "full"].snapshots / f"step-{step:06d}") for step in STEPS]
        x = np.stack([delta[f"{module}.weight"].dense(torch.float64).numpy().ravel() for delta in deltas])
        for column, value in dense(x, STEPS, 0.15).items():
            assert row[column] == pytest.approx(value, rel=1e-7), (run, module, column)
        assert (row["snapshots"], row["early"]) == (7, 4)


def test_a_straight_even_way_is_foretold_and_stretching_does_as_well():
    v = np.random.default_rng(0).normal(size=50)
    x = np.outer(3.0 * STEPS, v)
    found, ahead = rank_one(x @ x.T, STEPS), extrapolate(x @ x.T, STEPS, 0.15)
    assert found.share == pytest.approx(1)
    assert found.r2_linear == pytest.approx(1)
    assert found.r2_log < 0.9
    assert found.coefficients[-1] > 0
    assert ahead.line / ahead.end < 1e-12
    assert ahead.scaled / ahead.end < 1e-12
    assert ahead.held / ahead.end == pytest.approx((1 - 7 / 48) ** 2)


def test_a_way_that_turns_is_not_foretold():
    first, second = np.eye(2)
    x = np.stack([step * first if step <= 7 else 7 * first + step * second for step in STEPS])
    ahead = extrapolate(x @ x.T, STEPS, 0.15)
    squares = (41**2 + 48**2, 48**2, (2353**0.5 - 7) ** 2 + 48**2)
    assert (ahead.line, ahead.held, ahead.scaled) == pytest.approx(squares)


def test_the_null_is_a_walk_of_orthogonal_moves_as_long():
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(7, 5)), axis=0)
    moves = np.linalg.norm(np.diff(x, axis=0, prepend=0), axis=1)
    orthogonal = np.cumsum(np.diag(moves), axis=0)
    np.testing.assert_allclose(walk(x @ x.T), orthogonal @ orthogonal.T, rtol=1e-10, atol=1e-12)


def test_random_moves_of_many_dimensions_are_no_more_of_one_direction_than_the_null():
    rng = np.random.default_rng(1)
    scale = np.sqrt(np.diff(STEPS, prepend=0))[:, None]
    x = np.cumsum(scale * rng.normal(size=(7, 20_000)), axis=0)
    found, null = rank_one(x @ x.T, STEPS), rank_one(walk(x @ x.T), STEPS)
    assert found.share == pytest.approx(null.share, abs=0.01)
    assert found.r2_linear == pytest.approx(null.r2_linear, abs=0.02)
    assert null.share > 0.7, "which is a great deal"


def test_what_is_not_known_is_none():
    gram = np.diag([1.0, 2.0])
    assert rank_one(np.zeros((3, 3)), STEPS[:3]) is None
    assert rank_one(gram, STEPS[:2]).r2_linear is None
    assert extrapolate(gram, STEPS[:2], 0.15) is None
    assert extrapolate(np.diag([0.0, 0.0, 1.0]), np.array([1, 2, 100]), 0.15) is None


def test_totals_add_energies_and_too_few_early_deltas_leave_errors_out(runs, base):
    rows = rows_of(runs[1:], base)
    modules = [r for r in rows if r["scope"] == "module"]
    (whole,) = [r for r in rows if r["scope"] == "global"]
    total = sum(r["end_energy"] for r in modules)
    assert whole["error"] == pytest.approx((sum(r["line_squared"] for r in modules) / total) ** 0.5)
    assert whole["share"] == pytest.approx(sum(r["first_energy"] for r in modules) / sum(r["energy"] for r in modules))
    assert whole["r2_linear"] == pytest.approx(np.median([r["r2_linear"] for r in modules]))
    (whole,) = [r for r in rows_of(runs[1:], base, early=0.03) if r["scope"] == "global"]
    assert whole.get("early") is whole.get("error") is None
