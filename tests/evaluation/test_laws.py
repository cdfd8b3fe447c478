import numpy as np
import pytest

from raygeo.evaluation.laws import fit_laws

OPTIONS = {"resamples": 400, "seed": 0}


def runs(configurations=12, seeds=2, noise=0.02, seed=0):
    """x, drops of 0.5 x + 2 x^2 with noise, unrelated numbers, and configurations."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.uniform(0, 1, configurations), seeds) + rng.normal(0, 0.01, configurations * seeds)
    y = 0.5 * x + 2 * x**2 + rng.normal(0, noise, len(x))
    other = np.repeat(rng.uniform(0, 1, configurations), seeds)
    return x, y, other, np.repeat(np.arange(configurations), seeds)


def design(x):
    return np.stack([x, x**2], -1)


def test_coefficients_are_those_of_least_squares_through_the_origin():
    x, y, _, groups = runs()
    law = fit_laws({"x": x}, y, groups, **OPTIONS)["x"]
    (a, b), (left,), *_ = np.linalg.lstsq(design(x), y, rcond=None)
    assert (law.a.value, law.b.value) == pytest.approx((a, b), rel=1e-9)
    assert law.r2.value == pytest.approx(1 - left / ((y - y.mean()) ** 2).sum(), rel=1e-9)
    assert law.a.low < 0.5 < law.a.high
    assert law.b.low < 2 < law.b.high
    assert law.behind is None


def test_a_configuration_is_predicted_from_the_others_alone():
    x, y, _, groups = runs(noise=0.3)
    law = fit_laws({"x": x}, y, groups, **OPTIONS)["x"]
    missed = null = 0.0
    for group in np.unique(groups):
        out = groups == group
        coefficients = np.linalg.lstsq(design(x[~out]), y[~out], rcond=None)[0]
        missed += ((y[out] - design(x[out]) @ coefficients) ** 2).sum()
        null += ((y[out] - y[~out].mean()) ** 2).sum()
    assert law.held_out_r2.value == pytest.approx(1 - missed / null, rel=1e-9)
    assert law.held_out_r2.value < law.r2.value


def test_intervals_are_of_whole_configurations():
    x, y, other, groups = runs(noise=0.3)
    found = fit_laws({"x": x, "other": other}, y, groups, **OPTIONS)
    drawn = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=400)
    slopes = []
    for times in drawn:
        rows = np.repeat(np.arange(len(y)), times[groups])
        slopes.append(np.linalg.lstsq(design(x[rows]), y[rows], rcond=None)[0][0])
    assert (found["x"].a.low, found["x"].a.high) == pytest.approx(np.quantile(slopes, [0.025, 0.975]), rel=1e-6)


def test_what_has_nothing_to_do_with_it_foretells_nothing_and_lies_behind():
    x, y, other, groups = runs()
    found = fit_laws({"x": x, "other": other, "copy": 3 * x}, y, groups, **OPTIONS)
    assert found["x"].held_out_r2.low > 0.9
    assert found["other"].held_out_r2.low < 0
    assert found["other"].behind.low > 0
    assert found["copy"].behind.value == pytest.approx(0, abs=1e-9)
    assert found["copy"].b.value == pytest.approx(found["x"].b.value / 9)


def test_where_nothing_is_to_be_found_intervals_say_so():
    shown = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        law = fit_laws({"x": rng.uniform(0, 1, 16)}, rng.normal(0, 1, 16), range(16), resamples=200, seed=0)["x"]
        shown += law.held_out_r2.low is not None and law.held_out_r2.low > 0
    assert shown <= 4


def test_a_predictor_of_one_value_is_a_constant():
    x, y, _, groups = runs()
    law = fit_laws({"lr": np.full_like(x, 1e-5)}, y, groups, **OPTIONS)["lr"]
    assert law.a == law.b == (None, None, None)
    assert law.r2.value == pytest.approx(0, abs=1e-9)
    assert law.held_out_r2.value == pytest.approx(0, abs=1e-9)


def test_few_configurations_have_no_intervals_and_few_runs_no_law():
    x, y, _, groups = runs(4)
    law = fit_laws({"x": x}, y, groups, **OPTIONS)["x"]
    assert law.held_out_r2.value is not None
    assert law.held_out_r2.low is law.a.low is None
    with pytest.raises(ValueError, match="3 runs or more"):
        fit_laws({"x": x[:2]}, y[:2], groups[:2], **OPTIONS)
