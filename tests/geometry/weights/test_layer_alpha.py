import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, full_run, gaussian
from safetensors.torch import save_file

from raygeo.analyses.layer_alpha.workload import LayerAlpha, LayerAlphaSettings
from raygeo.geometry.weights.power_law import LEAST, fit_power_law
from raygeo.geometry.weights.random_delta import random_like
from raygeo.tables import BASE

Q0, V0 = Q.format(0) + ".weight", V.format(0) + ".weight"


def heavy(out, into, seed):
    """A matrix with a heavy tail of singular values."""
    u, v = (torch.linalg.qr(gaussian(n, min(out, into), seed=seed + n)).Q for n in (out, into))
    s = torch.from_numpy(np.random.default_rng(seed).pareto(2.0, min(out, into)) + 0.05).float()
    return (u * s) @ v.T


@pytest.fixture(scope="module")
def watcher():
    return pytest.importorskip("weightwatcher")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_file({Q0: heavy(48, 64, 0), V0: heavy(16, 64, 1)}, folder / "model.safetensors")
    change = {Q0: 0.3 * heavy(48, 64, 2), V0: gaussian(16, 64, seed=3)}
    run = full_run(folder, "run", change)
    return run, all_rows(LayerAlpha(LayerAlphaSettings(), [run], folder))["layer_alpha"]


def test_laws_are_those_of_weightwatcher_on_the_same_matrices(rows, watcher):
    """The whole package, on layers of these weights, and not its fit alone."""
    run, found = rows
    before = heavy(48, 64, 0)
    for who, weight in ((BASE, before), ("run", before + run.open()[Q0].dense())):
        layer = torch.nn.Linear(64, 48, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        (expected,) = watcher.WeightWatcher(model=torch.nn.Sequential(layer)).analyze(min_evals=1).to_dict("records")
        (row,) = [r for r in found if (r["run"], r["scope"], r["module"]) == (who, "module", Q.format(0))]
        assert row["alpha"] == pytest.approx(expected["alpha"], rel=1e-4)
        assert row["error"] == pytest.approx(expected["sigma"], rel=1e-4)
        assert row["xmin"] == pytest.approx(expected["xmin"], rel=1e-4)
        assert row["distance"] == pytest.approx(expected["D"], rel=1e-4)
        assert row["tail"] == expected["num_pl_spikes"]
        assert row["eigenvalues"] == expected["num_evals"]


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_is_weightwatchers(watcher, seed):
    from weightwatcher.WW_powerlaw import WWFit

    values = np.linalg.svd(heavy(40, 60, seed).numpy().astype(float), compute_uv=False) ** 2
    expected, law = WWFit(values), fit_power_law(values)
    assert (law.alpha, law.error, law.xmin, law.distance) == pytest.approx(
        (expected.alpha, expected.sigma, expected.xmin, expected.D), rel=1e-12
    )
    assert law.tail == len(expected.data)


def test_a_drawn_exponent_is_found_again():
    values = (1 - np.random.default_rng(0).random(4000)) ** (-1 / 1.5)
    law = fit_power_law(values)
    assert law.alpha == pytest.approx(2.5, abs=4 * law.error)
    assert law.error < 0.1
    below = np.concatenate([values, np.linspace(0.01, 0.99, 3000)])
    assert fit_power_law(below).xmin == pytest.approx(1, rel=0.3)
    assert fit_power_law(below, above=1.0).tail <= len(values)


def test_too_few_or_equal_values_have_no_law():
    values = np.arange(1.0, LEAST + 1)
    assert fit_power_law(values) is not None
    assert fit_power_law(values[1:]) is None
    assert fit_power_law(values, above=1.0) is None
    assert fit_power_law(np.ones(50)) is None


def test_changes_stand_beside_those_of_a_random_delta(rows):
    run, found = rows
    by_place = {(r["run"], r["scope"], r["module"]): r for r in found}
    row, before = (by_place[who, "module", Q.format(0)] for who in ("run", BASE))
    assert row["change"] == row["alpha"] - before["alpha"] != 0
    random = heavy(48, 64, 0).double() + random_like(run.open()[Q0], 0, Q0).dense(torch.float64)
    alpha = fit_power_law(torch.linalg.svdvals(random).square().numpy(), 1e-5).alpha
    assert row["null_change"] == pytest.approx(alpha - before["alpha"], rel=1e-8)
    assert before.get("change") is before.get("null_change") is None


def test_a_matrix_without_a_law_is_null_and_no_part_of_means(rows):
    _, found = rows
    few = [r for r in found if r["module"] == V.format(0)]
    assert [r.get("alpha") for r in few] == [None, None]
    (whole,) = [r for r in found if (r["run"], r["scope"]) == ("run", "global")]
    (row,) = [r for r in found if (r["run"], r["scope"], r["module"]) == ("run", "module", Q.format(0))]
    assert (whole["matrices"], whole["alpha"]) == (1, row["alpha"])
