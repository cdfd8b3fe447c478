import math
import pickle

import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from spectrum_cases import symmetric
from tiny import save_tiny_student

from raygeo.analyses.sharpness.workload import Sharpness, SharpnessSettings, measure
from raygeo.data.probes import Probe, nll
from raygeo.geometry.curvature.rises import adaptive_ball, average, ball, layer_scales
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_student
from raygeo.models.mix import MixedWeights
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow


class Quadratic:
    """g'e + e'He / 2 about given weights; ``reparametrised`` measures each weight in another unit."""

    def __init__(self, hessian, gradient, weights, sizes=None, unit=None):
        self.hessian, self.slope, self.unit = hessian, gradient, torch.ones_like(gradient) if unit is None else unit
        self.weights = weights / self.unit
        self.sizes = sizes or [len(weights)]

    def loss(self, offset):
        e = offset * self.unit
        return float(self.slope @ e + e @ self.hessian @ e / 2)

    def gradient(self, offset):
        return self.unit * (self.slope + self.hessian @ (offset * self.unit))


HESSIAN = symmetric(np.concatenate([[9.0, 4.0, -3.0], np.linspace(-1, 2, 17)]))
G, W = (torch.randn(20, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
LANDSCAPE = Quadratic(HESSIAN, G, W, [5, 15])


def trust_region_maximum(radius):
    """max of g'e + e'He / 2 over |e| = radius, from the secular equation |(mu - H)^-1 g| = radius, mu > max eigenvalue
    (More & Sorensen 1983).
    """
    values, vectors = np.linalg.eigh(HESSIAN.numpy())
    g = vectors.T @ G.numpy()
    low, high = values[-1], values[-1] + np.linalg.norm(g) / radius
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(g / (mu - values)) > radius else (low, mu)
    e = g / (high - values)
    return g @ e + e @ (values * e) / 2


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
def test_one_step_is_the_closed_form_and_many_reach_the_maximum(radius):
    one, several = ball(LANDSCAPE, radius, 400)
    norm = float(G.norm())
    assert one == pytest.approx(radius * norm + radius**2 * float(G @ HESSIAN @ G) / (2 * norm**2), rel=1e-12)
    assert several == pytest.approx(trust_region_maximum(radius), rel=1e-8)
    assert one <= ball(LANDSCAPE, radius, 3)[1] <= several
    assert ball(LANDSCAPE, radius, 1) == (one, one)


def test_at_a_stationary_point_there_is_no_direction_to_step_in():
    flat = Quadratic(HESSIAN, torch.zeros_like(G), W)
    assert ball(flat, 1.0, 3) == (0.0, 0.0)
    assert adaptive_ball(flat, 1.0) == 0.0


def test_the_adaptive_step_is_the_closed_form_and_does_not_depend_on_units():
    e = 0.7 * W**2 * G / (W.abs() * G).norm()
    expected = float(G @ e + e @ HESSIAN @ e / 2)
    assert adaptive_ball(LANDSCAPE, 0.7) == pytest.approx(expected, rel=1e-12)
    units = torch.logspace(-2, 2, 20, dtype=torch.float64)
    rescaled = Quadratic(HESSIAN, G, W, unit=units)
    assert adaptive_ball(rescaled, 0.7) == pytest.approx(expected, rel=1e-12)
    assert ball(rescaled, 0.7, 1)[0] != pytest.approx(ball(LANDSCAPE, 0.7, 1)[0], rel=0.1)


def test_the_average_is_half_the_trace_within_its_error():
    scales = layer_scales(LANDSCAPE)
    np.testing.assert_allclose(scales[:5], math.sqrt(float(W[:5].square().mean())), rtol=1e-15)
    np.testing.assert_allclose(scales[5:], math.sqrt(float(W[5:].square().mean())), rtol=1e-15)
    for sizes, draws in ((torch.full_like(W, 0.3), 1000), (0.1 * scales, 1000)):
        mean, error, low, high = average(LANDSCAPE, sizes, draws, seed=0)
        curved = sizes[:, None] * HESSIAN * sizes
        # Var(e'Ae / 2) = |A|_F^2 / 2 for normal e.
        assert error == pytest.approx(float(curved.norm()) / math.sqrt(2 * draws), rel=0.1)
        assert abs(mean - float(curved.trace()) / 2) < 3 * error
        assert (low, high) == pytest.approx((mean - 1.96234 * error, mean + 1.96234 * error), rel=1e-5)
    assert average(LANDSCAPE, scales, 3, seed=0) == average(LANDSCAPE, scales, 3, seed=0)
    assert average(LANDSCAPE, scales, 3, seed=0) != average(LANDSCAPE, scales, 3, seed=1)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharpness")
    student = save_tiny_student(folder / "student")
    model, _ = load_student(student)
    name = "model.layers.0.self_attn.q_proj.weight"
    noise = 0.1 * torch.randn(dict(model.named_parameters())[name].shape, generator=torch.Generator().manual_seed(0))
    save_full_delta(folder / "delta", {name: noise})
    make_probe([(2, 5), (3, 2), (1, 7)], 20).save(folder / "probe.npz")
    return student, folder / "probe.npz", [Run(BASE, "k", None), Run("r", "kr", str(folder / "delta"))], name


SETTINGS = SharpnessSettings(
    radii=(1e-2,), adaptive_radii=(1e-2,), sigmas=(1e-3,), relative_sigmas=(1e-2,), draws=2, ascent_steps=2
)


def test_rows_hold_the_rise_of_the_models_own_loss_and_leave_it_as_it_was(case):
    student, probe, runs, name = case
    workload = pickle.loads(pickle.dumps(Sharpness(SETTINGS, runs, student, probe)))
    state = workload.setup()
    before = {key: value.clone() for key, value in state[0].model.state_dict().items()}
    rows = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["sharpness"]]
    assert all(torch.equal(value, before[key]) for key, value in state[0].model.state_dict().items())
    to_arrow("sharpness", rows, Sharpness.tables["sharpness"])
    assert [row["measure"] for row in rows] == 2 * ["sam", "ball", "asam", "noise", "layer noise"]
    model, _ = load_student(student, dtype=torch.float64)
    batches = Probe.load(probe).batches(0, 3)
    found = {(row["run"], row["measure"]): row for row in rows}
    for run in runs:
        with MixedWeights(model, [name]).mixed(run.mixture()):
            weight = dict(model.named_parameters())[name]
            own = weight.detach().clone()
            start = nll(model, batches)
            loss = torch.tensor(0.0, dtype=torch.float64)
            for batch in batches:
                logprobs = model(input_ids=batch.input_ids).logits[:, :-1].log_softmax(-1)
                loss = loss - logprobs.gather(-1, batch.input_ids[:, 1:, None])[..., 0][batch.mask].sum() / 14
            (g,) = torch.autograd.grad(loss, weight)
            for kind, step in (("sam", 1e-2 * g / g.norm()), ("asam", 1e-2 * own**2 * g / (own * g).norm())):
                with torch.no_grad():
                    weight.copy_(own + step)
                rise = nll(model, batches) - start
                assert found[run.name, kind]["value"] == pytest.approx(rise, rel=2e-2, abs=3e-6)
            with torch.no_grad():
                weight.copy_(own)
        assert found[run.name, "sam"]["nll"] == pytest.approx(start, rel=1e-6)
        assert (found[run.name, "sam"]["parameters"], found[run.name, "sam"]["tokens"]) == (weight.numel(), 14)


def test_keys_hold_settings_probe_and_space(case):
    student, probe, runs, _ = case

    def keys(settings=SETTINGS, runs=runs):
        return [task.key for task in Sharpness(settings, runs, student, probe).tasks()]

    assert keys() == keys()
    assert len(set(keys())) == 2
    for change in ({"seed": 1}, {"space": "all"}, {"radii": (0.1,)}):
        assert not set(keys(SETTINGS.model_copy(update=change))) & set(keys())


class Cliff(Quadratic):
    """A loss that is not a number further than 1 away."""

    def loss(self, offset):
        return super().loss(offset) if float(offset.norm()) <= 1 else math.nan


def test_a_neighbour_that_diverges_is_null_and_not_a_number():
    settings = SharpnessSettings(radii=(0.5, 2.0), adaptive_radii=(), sigmas=(10.0,), relative_sigmas=())
    rows = list(measure(Cliff(HESSIAN, G, W), settings))
    assert [row["value"] is None for row in rows] == [False, False, True, True, True]
    assert rows[-1]["error"] is None
    to_arrow("sharpness", rows, Sharpness.tables["sharpness"])
