import itertools
import math

import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, full_run, gaussian, lora_run, low_rank
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_qwen

from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.errors import DeltaError
from raygeo.geometry.weights import grouping
from raygeo.geometry.weights.linalg import participation_rank
from raygeo.geometry.weights.moments import Moments, cosine, moments, null_variance, whole_moments
from raygeo.models.delta import Dense, LowRank
from raygeo.models.run import Run
from raygeo.tables import BASE

Q0, V0, V1, NORM = Q.format(0) + ".weight", V.format(0) + ".weight", V.format(1) + ".weight", "model.norm.weight"


def rows_of(runs, base):
    rows = all_rows(Similarity(SimilaritySettings(), runs, base))["similarity"]
    return {(row["run_a"], row["run_b"], row["scope"], row["name"]): row for row in rows}


SHAPES = {name: parameter.shape for name, parameter in tiny_qwen().named_parameters()}


def flat(run, names):
    """The dense delta over ``names`` as one fp64 vector, zeros where the run lacks a parameter."""
    delta = run.open()
    parts = [
        delta[n].dense(torch.float64) if n in delta else torch.zeros(SHAPES[n], dtype=torch.float64) for n in names
    ]
    return torch.cat([part.flatten() for part in parts])


def cosine_of(x, y):
    return (x @ y / (x.norm() * y.norm())).item()


def test_constructed_deltas_have_known_cosines(tmp_path, base):
    entry = low_rank(32, 32, 4, seed=0)
    flipped, upper, lower = LowRank(-entry.b, entry.a, 2.0), entry.b.clone(), entry.b.clone()
    upper[16:], lower[:16] = 0, 0
    runs = [
        lora_run(tmp_path, "a", {Q.format(0): entry}),
        lora_run(tmp_path, "same", {Q.format(0): entry}),
        lora_run(tmp_path, "scaled", {Q.format(0): LowRank(entry.b, entry.a, 10.0)}),
        lora_run(tmp_path, "negated", {Q.format(0): flipped}),
        lora_run(tmp_path, "upper", {Q.format(0): LowRank(upper, entry.a, 2.0)}),
        lora_run(tmp_path, "lower", {Q.format(0): LowRank(lower, entry.a, 2.0)}),
        full_run(tmp_path, "full", {Q0: entry.dense()}),
    ]
    rows = rows_of(runs, base)
    assert len(rows) == 3 * len(runs) * (len(runs) - 1)
    for scope in [("global", ""), ("layer", "0"), ("module", Q.format(0))]:
        for a, b, expected in [
            ("a", "same", 1),
            ("a", "scaled", 1),
            ("a", "negated", -1),
            ("scaled", "negated", -1),
            ("a", "full", 1),
            ("upper", "lower", 0),
        ]:
            for pair in [(a, b), (b, a)]:
                row = rows[(*pair, *scope)]
                assert row["cosine"] == pytest.approx(expected, abs=1e-12)
                assert row["orthogonal_fraction"] == pytest.approx(1 - abs(expected), abs=1e-6)


def mixed_runs(tmp_path):
    """LoRA and full runs that hold different parameters."""
    return [
        lora_run(tmp_path, "l0", {Q.format(0): low_rank(32, 32, 4, 0), V.format(1): low_rank(16, 32, 4, 1)}),
        lora_run(tmp_path, "l1", {Q.format(0): low_rank(32, 32, 2, 2), V.format(0): low_rank(16, 32, 2, 3)}),
        full_run(tmp_path, "f0", {Q0: gaussian(32, 32, seed=4), V0: gaussian(16, 32, seed=5), NORM: torch.ones(32)}),
        full_run(tmp_path, "f1", {V0: gaussian(16, 32, seed=6), V1: gaussian(16, 32, seed=7), NORM: -torch.ones(32)}),
    ]


def test_every_scope_equals_dense_fp64_with_missing_parameters_as_zero(tmp_path, base):
    runs = mixed_runs(tmp_path)
    rows = rows_of(runs, base)
    scopes = {("global", ""): [Q0, V0, V1, NORM], ("layer", "0"): [Q0, V0], ("layer", "1"): [V1]}
    scopes |= {("module", name.removesuffix(".weight")): [name] for name in (Q0, V0, V1, NORM)}
    assert len(rows) == len(scopes) * 12
    for (scope, names), (a, b) in itertools.product(scopes.items(), itertools.permutations(runs, 2)):
        x, y, row = flat(a, names), flat(b, names), rows[(a.name, b.name, *scope)]
        if x.any() and y.any():
            assert row["cosine"] == pytest.approx(cosine_of(x, y), abs=1e-12)
            left = sum(
                (v.norm() ** 2 - ((u @ v) ** 2 / u.norm() ** 2 if u.any() else 0)).item()
                for u, v in ((flat(a, [name]), flat(b, [name])) for name in names)
            )
            assert row["orthogonal_fraction"] == pytest.approx((left / y.norm().item() ** 2) ** 0.5, abs=1e-7)
            assert (row["null_sd"] > 0) == any(flat(a, [name]).any() and flat(b, [name]).any() for name in names)
        else:
            assert row["cosine"] is row["orthogonal_fraction"] is row["null_sd"] is None


def test_the_cosine_of_whole_deltas_is_that_over_all_parameters(tmp_path):
    runs = mixed_runs(tmp_path)
    deltas, whole = [run.open() for run in runs], [flat(run, [Q0, V0, V1, NORM]) for run in runs]
    expected = [[cosine_of(x, y) for y in whole] for x in whole]
    np.testing.assert_allclose(whole_moments(deltas).cosine, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose([[cosine(x, y) for y in deltas] for x in deltas], expected, rtol=0, atol=1e-13)


def test_the_cosine_of_any_mappings_of_entries():
    ones = {"a": Dense(torch.ones(2, 2))}
    both = ones | {"b": LowRank(torch.ones(2, 1), torch.ones(1, 2), 1.0)}
    assert cosine(ones, both) == pytest.approx(0.5**0.5)
    assert cosine(ones, {"b": both["b"]}) == 0
    with pytest.raises(DeltaError, match="shapes"):
        cosine(ones, {"a": Dense(torch.ones(3))})


def test_the_cosine_of_a_zero_delta_is_undefined():
    one, zero = {Q0: Dense(torch.ones(2, 2))}, {Q0: Dense(torch.zeros(2, 2))}
    assert cosine(one, one) == pytest.approx(1)
    assert math.isnan(cosine(one, zero))
    assert math.isnan(cosine(zero, zero))


def test_a_run_that_did_not_move_has_null_rows(tmp_path, base):
    entry = low_rank(32, 32, 4, seed=0)
    still = LowRank(torch.zeros_like(entry.b), entry.a, 2.0)
    runs = [lora_run(tmp_path, "a", {Q.format(0): entry}), lora_run(tmp_path, "still", {Q.format(0): still})]
    for row in rows_of(runs, base).values():
        assert row["cosine"] is row["orthogonal_fraction"] is row["null_sd"] is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(-1, 1)), min_size=1, max_size=6), st.integers(0, 99)
)
def test_projecting_each_parameter_leaves_no_more_than_projecting_the_whole(parameters, seed):
    parts = []
    for index, (size_a, size_b, mix) in enumerate(parameters):
        a, noise = gaussian(4, 3, seed=seed + index), gaussian(4, 3, seed=seed + index + 500)
        parts.append(moments([Dense(size_a * a), Dense(size_b * (mix * a + noise))]))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    bound = np.sqrt(np.clip(1 - total.cosine**2, 0, None))
    defined = ~np.isnan(bound)
    assert (total.orthogonal_fraction[defined] <= bound[defined] + 1e-7).all()


def test_orthogonal_fraction_depends_on_the_order_of_the_pair():
    first = moments([Dense(torch.tensor([1.0, 0.0])), Dense(torch.tensor([1.0, 0.0]))])
    second = moments([Dense(torch.tensor([0.0, 0.0])), Dense(torch.tensor([0.0, 3.0]))])
    found = (first + second).orthogonal_fraction
    assert found[0, 1] == pytest.approx(np.sqrt(0.9))
    assert found[1, 0] == pytest.approx(0)


def sd(samples):
    return np.sqrt(np.mean(np.square(samples)))


DRAWS = 3000


def test_null_of_dense_deltas_is_that_of_random_directions():
    x, y = gaussian(DRAWS, 15, seed=0).double(), gaussian(DRAWS, 15, seed=1).double()
    samples = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    found = moments([Dense(torch.ones(5, 3)), Dense(torch.ones(5, 3))]).null_sd
    np.testing.assert_allclose(found, 15**-0.5)
    assert sd(samples.numpy()) == pytest.approx(found[0, 1], rel=0.05)


def random_b(a, out, seed):
    """Draws of vec(B A) with normal B: [DRAWS, out * in]."""
    return (gaussian(DRAWS, out, len(a), seed=seed) @ a).flatten(1).double()


@pytest.mark.parametrize("shared", [True, False])
def test_null_of_lora_deltas_is_that_of_random_b(shared):
    out, spectrum = 48, torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5])
    a1 = spectrum[:, None] * gaussian(5, 20, seed=2)
    a2 = a1 if shared else gaussian(5, 20, seed=3)
    x, y = random_b(a1, out, seed=4), random_b(a2, out, seed=5)
    samples = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    b = gaussian(out, 5, seed=6)
    found = moments([LowRank(b, a1, 1.0), LowRank(b, a2, 3.0)]).null_sd[0, 1]
    assert sd(samples.numpy()) == pytest.approx(found, rel=0.05)
    if shared:
        r_eff = participation_rank(torch.linalg.svdvals(a1.double()))
        assert found == pytest.approx((out * r_eff) ** -0.5, rel=1e-6)
        assert found > 2 * (out * 20) ** -0.5


def test_null_of_unrelated_row_spaces_is_close_to_that_of_dense_deltas():
    entries = [low_rank(64, 512, 32, seed=seed) for seed in (0, 1)]
    assert null_variance(entries)[0, 1] == pytest.approx(1 / (64 * 512), rel=0.05)
    assert null_variance(entries)[0, 0] == pytest.approx(1 / (64 * 32), rel=0.1)


def test_null_of_a_lora_and_a_full_delta_is_that_of_a_random_full_delta():
    low, full = low_rank(12, 10, 2, seed=0), Dense(torch.ones(12, 10))
    np.testing.assert_allclose(null_variance([full, low])[[0, 0, 1], [0, 1, 0]], 1 / 120)


def test_null_over_several_parameters_keeps_their_norms():
    a, out = gaussian(3, 16, seed=0), 40
    energies = [(9.0, 1.0), (1.0, 4.0), (0.5, 3.0)]
    low_x, low_y = random_b(a, out, seed=1), random_b(a, out, seed=2)
    small_x, small_y = gaussian(DRAWS, 6, seed=3).double(), gaussian(DRAWS, 6, seed=4).double()
    large_x, large_y = gaussian(DRAWS, 90, seed=5).double(), gaussian(DRAWS, 90, seed=6).double()
    inner, total = torch.zeros(DRAWS, dtype=torch.float64), np.sum(energies, axis=0)
    for (ex, ey), x, y in zip(energies, (low_x, small_x, large_x), (low_y, small_y, large_y), strict=True):
        inner += (ex * ey) ** 0.5 * (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    samples = inner / np.prod(total) ** 0.5

    def scaled(entry, energy):
        size = entry.dense().norm().item()
        if isinstance(entry, LowRank):
            return LowRank(entry.b, entry.a, energy**0.5 / size)
        return Dense(entry.value * energy**0.5 / size)

    kinds = [LowRank(gaussian(out, 3, seed=7), a, 1.0), Dense(torch.ones(6)), Dense(torch.ones(90))]
    found = Moments(*np.zeros((3, 2, 2)))
    for (ex, ey), kind in zip(energies, kinds, strict=True):
        found += moments([scaled(kind, ex), scaled(kind, ey)])
    assert sd(samples.numpy()) == pytest.approx(found.null_sd[0, 1], rel=0.05)


def test_deltas_of_another_base_are_refused(tmp_path, base):
    runs = [full_run(tmp_path, name, {Q0: torch.ones(8, 4)}) for name in ("a", "b")]
    with pytest.raises(DeltaError, match=r"shape \(8, 4\)"):
        rows_of(runs, base)


@pytest.mark.parametrize("size", [1, 1900, 1 << 27])
def test_groups_change_who_reads_and_not_a_bit_of_what_is_found(tmp_path, base, monkeypatch, size):
    runs = mixed_runs(tmp_path)
    whole = rows_of(runs, base)
    monkeypatch.setattr(grouping, "GROUP_SIZE", size)
    tasks = Similarity(SimilaritySettings(), runs, base).tasks()
    assert [name for task in tasks for name in task.payload] == sorted([Q0, V0, V1, NORM])
    assert len(tasks) == {1: 4, 1900: 2, 1 << 27: 1}[size]
    assert rows_of(runs, base) == whole


def test_tasks_are_known_by_all_runs_but_the_base(tmp_path, base):
    runs = mixed_runs(tmp_path)
    (task,) = Similarity(SimilaritySettings(), [Run(BASE, "b", None), *runs], base).tasks()
    assert task.cost == sum(size for run in runs for size in run.open().sizes.values())
    (shuffled,) = Similarity(SimilaritySettings(), runs[::-1], base).tasks()
    assert task.key == shuffled.key
    (fewer,) = Similarity(SimilaritySettings(), runs[1:], base).tasks()
    assert fewer.key != task.key
    alone = Similarity(SimilaritySettings(), runs[:1], base)
    assert alone.tasks() == []
    assert all_rows(alone) == {"similarity": [], "moments": []}
