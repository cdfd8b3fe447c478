import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, full_run, gaussian, lora_run, low_rank

from raygeo.analyses.sign_interference.workload import SignInterference, SignInterferenceSettings
from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.signs import signs
from raygeo.models.delta import Dense, LowRank
from raygeo.models.run import Run
from raygeo.tables import BASE

Q0, NORM = Q.format(0) + ".weight", "model.norm.weight"


def sparse(seed, *shape):
    values = gaussian(*shape, seed=seed) + 0.4
    return torch.where(gaussian(*shape, seed=seed + 1) > 0.5, torch.zeros(()), values)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    return [
        Run(BASE, BASE, None),
        full_run(folder, "a", {Q0: sparse(0, 32, 32), NORM: sparse(4, 32)}),
        full_run(folder, "b", {Q0: sparse(10, 32, 32), NORM: sparse(14, 32)}),
        lora_run(folder, "c", {Q.format(0): low_rank(32, 32, 2, 20), V.format(0): low_rank(16, 32, 2, 30)}),
    ]


def by_definition(x, y, order):
    """Everything about two dense deltas, entry by entry, in numpy."""
    moved = (x != 0) & (y != 0)
    opposite = moved & (np.sign(x) != np.sign(y))
    other = y[..., order]
    random = [[(np.sign(x) == s).mean() * (np.sign(y) == t).sum() for t in (1, -1)] for s in (1, -1)]
    size = np.abs(x * y)
    return {
        "both": moved.sum(),
        "opposite": opposite.sum(),
        "share": opposite.sum() / moved.sum(),
        "null_share": (random[0][1] + random[1][0]) / np.sum(random),
        "shuffled_both": ((x != 0) & (other != 0)).sum(),
        "shuffled_opposite": (x * other < 0).sum(),
        "weighted_share": size[opposite].sum() / size.sum(),
        "norm_ratio": np.linalg.norm(x) / np.linalg.norm(y),
    }


@pytest.mark.parametrize("block", [1 << 22, 200])
def test_every_row_equals_its_definition(runs, base, monkeypatch, block):
    monkeypatch.setattr(linalg, "_BLOCK", block)
    rows = all_rows(SignInterference(SignInterferenceSettings(seed=5), runs, base))["sign_interference"]
    modules = {(r["run_a"], r["run_b"], r["module"]): r for r in rows if r["scope"] == "module"}
    held = {run.name: run.open() for run in runs[1:]}
    assert set(modules) == {("a", "b", Q.format(0)), ("a", "c", Q.format(0)), ("b", "c", Q.format(0)),
                            ("a", "b", "model.norm")}  # fmt: skip
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5)).numpy()
    for (a, b, module), row in modules.items():
        x, y = (held[run][f"{module}.weight"].dense(torch.float64).numpy() for run in (a, b))
        for column, value in by_definition(x, y, order).items():
            assert row[column] == pytest.approx(value, rel=1e-12), (a, b, module, column)
        cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
        weight = row["products"] / np.linalg.norm(x) / np.linalg.norm(y)
        assert (1 - 2 * row["weighted_share"]) * weight == pytest.approx(cosine, abs=1e-12)


def test_totals_pool_counts(runs, base):
    rows = all_rows(SignInterference(SignInterferenceSettings(), runs, base))["sign_interference"]
    modules = [r for r in rows if (r["run_a"], r["run_b"], r["scope"]) == ("a", "b", "module")]
    (whole,) = [r for r in rows if (r["run_a"], r["run_b"], r["scope"]) == ("a", "b", "global")]
    assert len(modules) == 2
    assert whole["share"] == sum(r["opposite"] for r in modules) / sum(r["both"] for r in modules)
    expected = [sum(r[name] for r in modules) for name in ("expected_opposite", "expected_both")]
    assert whole["null_share"] == pytest.approx(expected[0] / expected[1])


def test_the_mean_over_places_is_that_of_many_permutations():
    x, y = sparse(0, 12, 10), sparse(7, 12, 10)
    found = signs([Dense(x), Dense(y)], 0)
    rng, flat = np.random.default_rng(0), y.flatten().numpy()
    drawn = [((x.flatten().numpy() * rng.permutation(flat)) < 0).sum() for _ in range(4000)]
    assert found.expected_opposite[0, 1] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 4000**0.5)


def test_a_shared_direction_agrees_and_its_shuffle_does_not():
    b, a = gaussian(300, 1, seed=0), gaussian(1, 200, seed=1)
    found = signs([LowRank(b, a, 1.0), LowRank(2 * b, a, 1.0), LowRank(-b, a, 1.0)], 0)
    assert found.opposite[0, 1] == 0
    assert found.opposite[0, 2] == found.both[0, 2] == 300 * 200
    assert 0.4 < found.shuffled_opposite[0, 1] / found.shuffled_both[0, 1] < 0.6


def test_chosen_pairs_alone_have_rows(runs, base):
    chosen = frozenset({frozenset("ab")})
    some = all_rows(SignInterference(SignInterferenceSettings(), runs, base, chosen))["sign_interference"]
    assert {(r["run_a"], r["run_b"]) for r in some} == {("a", "b")}
    every = all_rows(SignInterference(SignInterferenceSettings(pairs="all"), runs, base, chosen))["sign_interference"]
    assert [r for r in every if (r["run_a"], r["run_b"]) == ("a", "b")] == some


def test_a_delta_that_diverged_is_refused():
    with pytest.raises(DeltaError, match="diverged"):
        signs([Dense(torch.ones(3, 3)), Dense(torch.full((3, 3), torch.nan))], 0)
