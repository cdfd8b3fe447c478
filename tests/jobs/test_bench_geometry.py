from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import curvature, factored, scaling
from benchmarks.geometry import comparisons
from benchmarks.race import Result, Turn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygeo.geometry.curvature.spectra import CurvatureSettings

UNEQUAL = replace(
    curvature.SPECTRUM, parameters=("model.norm.weight",), texts=4, batch_size=2, completions=(2, 12), columns=2,
    top_k=2, lanczos_steps=30, probe_steps=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    return curvature.Bench(UNEQUAL)


def test_raygeo_is_exact_on_unequal_lengths_and_a_mean_of_batch_means_is_not(bench):
    exact = bench.exact(bench.vectors)
    with sdpa_kernel(SDPBackend.MATH):
        ours, theirs = (make(bench)(bench.vectors).double() for make in (curvature.ours, curvature.eigenthings))
    assert (ours - exact).norm() <= 1e-5 * exact.norm()
    assert (theirs - exact).norm() >= 1e-2 * exact.norm()


def test_peers_are_exact_on_one_batch(bench):
    whole = curvature.Bench(replace(UNEQUAL, batch_size=4))
    with sdpa_kernel(SDPBackend.MATH):
        found = curvature.eigenthings(whole)(whole.vectors).double()
    exact = whole.exact(whole.vectors)
    assert (found - exact).norm() <= 1e-5 * exact.norm()


def test_spectrum_finds_the_top_of_the_dense_matrix(bench):
    exact = np.linalg.eigvalsh(bench.exact(torch.eye(bench.n)).numpy())[::-1]
    values, quadrature = curvature.our_spectrum(bench)
    assert values == pytest.approx(exact[:2], rel=1e-3)
    assert [float(weights.sum()) for _, weights in quadrature] == pytest.approx([1.0] * UNEQUAL.probes)


def test_ratios_are_those_of_rounds():
    def result(name, *seconds):
        return Result(name, [Turn(s, s, 0, 0, 1) for s in seconds], {"error": 0.0, "peak_memory_mb": 1.0})

    ours, theirs = result("raygeo", 2.0, 4.0, 2.0), result("peer", 4.0, 4.0, 6.0)
    row = curvature._row(UNEQUAL, theirs, ours, None)["cpu_seconds"]
    assert (row["ratio"], row["ratio_least"], row["ratio_greatest"]) == (2.0, 1.0, 3.0)


def test_factored_deltas_and_cka_agree_with_plain_code():
    tiny = comparisons(1, None, tiny=True)
    for name, tolerances in (
        ("deltas", {"gram": 1e-6, "singular_values": 1e-5, "angles": 1e-4}),
        ("cka", {"cka": 1e-12}),
    ):
        found = tiny[name].measure(1)
        assert found["error"].keys() == tolerances.keys()
        assert all(found["error"][what] <= tolerance for what, tolerance in tolerances.items())
        assert tiny[name].show(found).row_count == 1


def test_dense_time_is_charged_once_for_every_module_of_a_size(monkeypatch):
    seconds = {(6, 8): (1.0, 2.0), (8, 6): (1.0, 2.0), (4, 4): (10.0, 20.0)}
    real = factored.clocks

    def clocks(work):
        entries = getattr(work, "args", [None])[0]  # dense work is a partial, ours a lambda
        result = real(work)[2]
        return (*((1.0, 1.0) if entries is None else seconds[entries[0].shape]), result)

    monkeypatch.setattr(factored, "clocks", clocks)
    shapes = {"q_proj": (6, 8), "k_proj": (4, 4), "o_proj": (8, 6)}
    ratios = factored.compare_deltas(factored.Deltas(shapes, layers=3, runs=2, rank=2, angles=1), 1)
    assert ratios["dense"] == "6 x 8 timed, charged 6 times, 4 x 4 timed, charged 3 times"
    assert (ratios["seconds"]["ratio"], ratios["cpu_seconds"]["ratio"]) == (36.0, 72.0)


def test_scaling_runs_every_task_and_replays_them(ray_session):
    settings = CurvatureSettings(max_steps=1, slq_probes=2, slq_steps=1, density_points=4)
    case = scaling.Case(runs=1, texts=2, settings=settings, tasks_an_actor=3)
    found = scaling.measure(case, rounds=0)
    # Of the base and of the run: extremes, two densities, the span of the delta; and the path between them.
    assert len(found["tasks"]) == 9
    assert all(seconds > 0 for _, seconds in found["tasks"])
    assert [row["actors"] for row in found["replay"]] == [10, 100, 1000]
    for row in found["replay"]:
        assert row["tasks"] >= 3 * row["actors"]
        assert 1 <= row["ratio"] <= row["ratio_with_driver"]
    assert scaling.table(found).row_count == 3
