"""What benchmarks race computes the same numbers: raygeo, plain torch, TRL and hessian-eigenthings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import curvature, training
from benchmarks.cases import CASES
from benchmarks.geometry import comparisons

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

UNEQUAL = replace(
    curvature.SPECTRUM, parameters=("model.norm.weight",), texts=4, batch_size=2, completions=(2, 12), columns=2,
    top_k=2, lanczos_steps=30, probe_steps=10,
)  # fmt: skip


def test_trl_and_a_plain_loop_train_as_raygeo_does(monkeypatch):
    monkeypatch.setattr(training, "TRL", {"pair": {"TRL": {"precompute_ref_log_probs": True}}})
    rows = training.compare(CASES["tiny"], "dpo", rounds=1, steps=5, threads=1, together=True)
    assert [row["competitor"] for row in rows] == ["raygeo", "plain torch", "TRL", "TRL for each run"]
    assert len({row["tokens"] for row in rows}) == 1
    assert [row["loss_first"] for row in rows] == pytest.approx([np.log(2)] * 4, abs=1e-5)
    assert [row["loss_next"] for row in rows] == pytest.approx([rows[0]["loss_next"]] * 4, abs=1e-4)
    assert abs(rows[0]["loss_next"] - np.log(2)) > 1e-3


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


@pytest.mark.parametrize(
    ("name", "tolerances"),
    [("deltas", {"gram": 1e-6, "singular_values": 1e-5, "angles": 1e-4}), ("cka", {"cka": 1e-12})],
)
def test_factored_deltas_and_cka_agree_with_plain_code(name, tolerances):
    error = comparisons(1, None, tiny=True)[name].measure(1)["error"]
    assert error.keys() == tolerances.keys()
    assert all(error[what] <= tolerance for what, tolerance in tolerances.items())
