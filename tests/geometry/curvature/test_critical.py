"""The step at which a loss first rises, against closed forms and products of the Hessian."""

import math

import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL, make_probe
from delta_cases import full_run, gaussian, lora_run, low_rank
from spectrum_cases import symmetric
from tiny import TinyLM, save_tiny_student

from raygeo.analyses.critical_sharpness.workload import CriticalSettings, CriticalSharpness
from raygeo.data.probes import Probe, nll
from raygeo.geometry.curvature.critical import critical_step, gradient, length_of, random_direction
from raygeo.geometry.curvature.operators import Hessian
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import Dense, LowRank
from raygeo.models.loading import load_student
from raygeo.models.mix import MixedWeights
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

HESSIAN = symmetric(np.concatenate([[9.0, 4.0], np.linspace(0.1, 2, 18)]))
G = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def along(direction):
    return lambda step: float(step * G @ direction + step**2 * direction @ HESSIAN @ direction / 2)


@pytest.mark.parametrize("first", [1e-6, 1e-2, 30.0])
def test_on_a_quadratic_it_is_the_closed_form_in_seven_passes(first):
    for direction in (-G, -3 * G, -G + 0.3 * torch.ones_like(G)):
        found = critical_step(along(direction), first, resolution=1e-15, doublings=20)
        expected = float(direction @ HESSIAN @ direction / -(G @ direction))
        assert found.outcome == "found"
        assert 2 / found.high <= expected * (1 + 1e-9)
        assert expected <= 2 / found.low * (1 + 1e-9)
        assert found.high <= 1.1 * found.low
        assert found.sharpness == pytest.approx(expected, rel=0.05)
        assert found.curvature / -found.slope == pytest.approx(expected, rel=1e-3)
        assert found.passes <= 8
    rayleigh = float(G @ HESSIAN @ G / (G @ G))
    assert critical_step(along(-G), 1e-2, tolerance=1e-6).sharpness == pytest.approx(rayleigh, rel=1e-6)


def test_directions_that_go_up_or_down_for_ever_have_no_critical_step():
    assert critical_step(along(G), 1e-3).outcome == "rises at once"
    turned = critical_step(along(G), 1e-3, descend=True)
    assert (turned.outcome, turned.sign) == ("found", -1)
    assert turned.sharpness == pytest.approx(critical_step(along(-G), 1e-3).sharpness)
    assert critical_step(lambda step: -step, 1.0).outcome == "does not rise"
    assert critical_step(lambda step: 0.0, 1.0).outcome == "does not rise"
    rounding = critical_step(lambda step: step**2 - 1e-9 * step, 1e-3, resolution=1e-12)
    assert (rounding.outcome, rounding.step) == ("rises at once", None), "a dip below the resolution is none"


@pytest.mark.parametrize(
    ("rise", "first", "resolution", "expected"),
    [
        (lambda step: -step + 0.25 * step**2 + 0.125 * step**3, 2**-6, 1e-4, 2),
        (lambda step: -step + step**2 / 8, 2**-20, 1e-4, 8),
        (lambda step: -step + step**2 / 6, 2**-20, 1e-4, 6),
        (lambda step: -step + 0.25 * step**2 + 0.125 * step**3, 2**-20, 1e-4, 2),
    ],
    ids=["a fall was seen at first", "the first guess is exact", "or nearly so", "half the first guess is exact"],
)
def test_next_to_the_critical_step_a_change_below_the_resolution_is_no_rise_at_once(rise, first, resolution, expected):
    found = critical_step(rise, first, resolution=resolution, doublings=30)
    assert found.outcome == "found"
    assert found.low * (1 - 1e-4) <= expected <= found.high * (1 + 1e-4)
    assert found.high <= 1.1 * found.low


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_loss_that_diverges_rises(beyond):
    found = critical_step(lambda step: -step if step < 3 else beyond, 100.0)
    assert found.outcome == "found"
    assert found.low < 3 <= found.high
    assert found.high <= 1.1 * found.low


def test_on_a_short_way_it_is_what_hessian_products_say():
    model, batches = TinyLM(), UNEQUAL.batches(0, 2)
    names = ["embed.weight", "mix.weight", "mix.bias"]
    slope, start = gradient(model, batches, names), nll(model, batches)
    g = torch.cat([slope[name].value.flatten() for name in names])
    weights = MixedWeights(model, names)
    checked = 0
    for seed in range(6):
        u = torch.randn(len(g), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # Almost level with the slope, so that the loss rises where it is still quadratic.
        d = u - (g @ u / (g @ g)) * g - 1e-4 * g
        sizes = [slope[name].value.shape for name in names]
        parts = d.split([size.numel() for size in sizes])
        line = {name: Dense(part.view(size)) for name, part, size in zip(names, parts, sizes, strict=True)}

        def rise(step, line=line):
            with weights.mixed([(step, line)]):
                return nll(model, batches) - start

        found = critical_step(rise, 1e-4, resolution=1e-13, tolerance=1e-3)
        bend = float(d @ Hessian(model, batches, names).matmat(d[:, None])[:, 0])
        assert found.curvature == pytest.approx(bend, rel=1e-2)
        assert found.slope == pytest.approx(float(g @ d), rel=1e-2)
        if bend > 0:
            checked += 1
            assert found.sharpness == pytest.approx(bend / -float(g @ d), rel=1e-2)
    assert checked >= 2


def test_gradients_are_token_weighted_and_the_same_layer_by_layer(tmp_path):
    model, _ = load_student(save_tiny_student(tmp_path / "student"), dtype=torch.float64)
    probe = make_probe([(2, 5), (3, 2), (1, 7)], 20)
    names = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    found = gradient(model, probe.batches(0, 1), names)
    [whole] = probe.batches(0, 3)
    logprobs = model(input_ids=whole.input_ids, attention_mask=whole.attention_mask).logits[:, :-1].log_softmax(-1)
    loss = -logprobs.gather(-1, whole.input_ids[:, 1:, None])[..., 0][whole.mask].sum() / 14
    own = dict(model.named_parameters())
    for name, value in zip(names, torch.autograd.grad(loss, [own[name] for name in names]), strict=True):
        torch.testing.assert_close(found[name].value, value, rtol=1e-9, atol=1e-12)
        by_layer = gradient(model, probe.batches(0, 2), names, by_layer=True)[name].value
        torch.testing.assert_close(by_layer, value, rtol=1e-9, atol=1e-12)


def test_a_random_direction_has_the_norm_of_every_parameter_and_the_rank_of_every_adapter():
    direction = {"a": Dense(gaussian(6, 5, seed=1)), "b": low_rank(7, 8, 2, seed=2), "c": Dense(torch.zeros(3))}
    device = torch.device("cpu")
    one, again, other = (random_direction(direction, device, "x", draw) for draw in (0, 0, 1))
    for name, entry in direction.items():
        assert float(one[name].dense().norm()) == pytest.approx(float(entry.dense().norm()), rel=1e-5)
        assert torch.equal(one[name].dense(), again[name].dense())
        assert name == "c" or not torch.equal(one[name].dense(), other[name].dense())
    assert isinstance(one["b"], LowRank)
    assert one["b"].a.shape == (2, 8)
    assert length_of(one) == pytest.approx(length_of(direction), rel=1e-5)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("critical")
    student = save_tiny_student(folder / "student")
    model, _ = load_student(student)
    # Without the padding token: its embedding is zero, where a normed state has no derivative.
    texts = [TokenSequence(s.ids + 3, s.prompt_length) for s in make_probe([(2, 5), (3, 2), (1, 7)], 17).sequences]
    Probe("tiny", texts).save(folder / "probe.npz")
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    down = gradient(model, Probe.load(folder / "probe.npz").batches(0, 4), names)
    runs = [
        Run(BASE, BASE, None),
        full_run(folder, "down", {name: -0.5 * entry.value for name, entry in down.items()}),
        full_run(folder, "up", {name: 0.5 * entry.value for name, entry in down.items()}),
        lora_run(folder, "lora", {"model.layers.0.self_attn.q_proj": low_rank(32, 32, 2, seed=1, scale=0.01)}),
    ]
    return student, folder / "probe.npz", runs, names


def test_rows_are_of_the_models_own_loss_and_leave_it_as_it_was(case):
    student, probe, runs, names = case
    workload = CriticalSharpness(CriticalSettings(draws=1, batch_size=2, doublings=20), runs, student, probe)
    state = workload.setup()
    before = {key: value.clone() for key, value in state.student.model.state_dict().items()}
    rows = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["critical_sharpness"]]
    assert all(torch.equal(value, before[key]) for key, value in state.student.model.state_dict().items())
    to_arrow("critical_sharpness", rows, CriticalSharpness.tables["critical_sharpness"])
    found = {(row["run"], row["direction"], row["kind"]): row for row in rows}
    assert len(rows) == len(found) == 2 + 3 * 4
    model, _ = load_student(student, dtype=torch.float64)
    batches = Probe.load(probe).batches(0, 3)
    start = nll(model, batches)
    own = found["down", "delta", "own"]
    assert (own["at"], own["outcome"], own["tokens"]) == ("base", "found", 14)
    assert own["nll"] == pytest.approx(start, rel=1e-6)
    delta = runs[1].open()
    for share, sense in ((0.93, -1), (1.07, 1)):
        with MixedWeights(model, delta).mixed([(share * own["step"], delta)]):
            assert np.sign(nll(model, batches) - start) == sense
    assert own["distance"] == pytest.approx(own["step"] * length_of(delta), rel=1e-6)
    # The delta is half the gradient, reversed: the same line in another unit.
    at_base = found["base", "gradient", "own"]
    assert own["sharpness"] == pytest.approx(at_base["sharpness"] / 2, rel=0.11)
    assert own["curvature"] == pytest.approx(at_base["curvature"], rel=0.05, abs=1e-3)
    assert found["up", "delta", "own"]["outcome"] == "rises at once"
    assert found["down", "gradient", "own"]["nll"] < start
    for row in rows:
        assert row["kind"] == "own" or row["slope"] <= 0, "random directions are taken downwards"
        assert row["parameters"] == sum(dict(model.named_parameters())[name].numel() for name in names)


def test_keys_hold_settings_probe_and_what_is_moved(case):
    student, probe, runs, _ = case

    def keys(runs=runs, **settings):
        return {task.key for task in CriticalSharpness(CriticalSettings(**settings), runs, student, probe).tasks()}

    assert keys() == keys()
    assert len(keys()) == 4
    for change in ({"seed": 1}, {"draws": 5}, {"first_step": 1e-4}, {"tolerance": 0.2}):
        assert not keys(**change) & keys()
    assert not keys(runs[::3]) & keys(), "other weights are moved"
    assert keys(runs[:1]) == set()


@pytest.mark.parametrize("slope", [1e-2, 1.0])
def test_rounding_moves_neither_the_step_nor_the_curvature(slope):
    def rounded(seed):
        rng = np.random.default_rng(seed)
        return critical_step(
            lambda step: -slope * step + 3e-4 * step**2 / 2 + 1e-6 * (2 * rng.random() - 1),
            1e-2,
            resolution=1e-6,
            doublings=20,
        )

    found = [rounded(seed) for seed in range(20)]
    assert len({(one.low, one.high) for one in found}) == 1
    assert [one.curvature for one in found] == pytest.approx([3e-4] * 20, rel=0.05)
    assert found[0].low <= 2 * slope / 3e-4 <= found[0].high


def test_a_loss_that_is_infinite_at_once_is_followed_inwards():
    found = critical_step(lambda step: -step if abs(step) < 3 else math.inf, 100.0)
    assert (found.outcome, found.curvature) == ("found", math.inf)
    assert found.low < 3 <= found.high


@pytest.mark.parametrize("end", [20.0, 2000.0])
@pytest.mark.parametrize("descend", [False, True])
def test_a_slope_below_the_rounding_makes_no_step_of_it(end, descend):
    slope = 2e-7

    def found(seed):
        rng = np.random.default_rng(seed)
        return critical_step(
            lambda step: -slope * step + slope / end * step**2 + 1e-6 * (2 * rng.random() - 1),
            1.0,
            resolution=1e-6,
            descend=descend,
        )

    steps = [one.step for one in map(found, range(100)) if one.outcome == "found"]
    assert len(steps) > 50 or end == 20, "there the dip is no deeper than rounding"
    assert steps == pytest.approx([end] * len(steps), rel=0.5)


def test_a_curvature_that_no_step_resolves_is_none():
    flat = critical_step(lambda step: -1e-3 * step, 1e-3, resolution=1e-6)
    assert math.isnan(flat.curvature), "a line has none that could be seen"
