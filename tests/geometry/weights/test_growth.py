import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from raygeo.geometry.weights.growth import fit_log, fit_power

STEPS = np.array([1.0, 2, 4, 8, 15, 30, 60, 120])


def noisy(law, seed):
    return law * (1 + 0.05 * np.random.default_rng(seed).standard_normal(len(law)))


@given(st.floats(0.01, 1e3), st.floats(-0.5, 5))
@settings(max_examples=40, deadline=None)
def test_a_logarithm_is_found_exactly(scale, b):
    found = fit_log(STEPS, scale * (3 + b * np.log(STEPS)))
    assert found.a == pytest.approx(3 * scale, rel=1e-12, abs=1e-12 * scale)
    assert found.b == pytest.approx(b * scale, rel=1e-12, abs=1e-12 * scale)
    assert found.rss < 1e-24 * scale**2


@given(st.floats(1e-6, 1e6), st.floats(-1, 3))
@settings(max_examples=40, deadline=None)
def test_a_power_is_found_exactly(factor, exponent):
    found = fit_power(STEPS, factor * STEPS**exponent)
    assert found.a == pytest.approx(factor, rel=1e-10)
    assert found.b == pytest.approx(exponent, abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_logarithm_is_that_of_ordinary_least_squares_with_its_criterion(seed):
    y = noisy(0.4 + 0.3 * np.log(STEPS), seed)
    found, other = fit_log(STEPS, y), sm.OLS(y, sm.add_constant(np.log(STEPS))).fit()
    assert (found.a, found.b) == pytest.approx(tuple(other.params), rel=1e-10)
    assert found.rss == pytest.approx(other.ssr, rel=1e-10)
    assert found.aic == pytest.approx(other.aic + 2, rel=1e-10)  # which does not count the variance


@pytest.mark.parametrize("seed", range(4))
def test_the_power_is_the_best_of_a_dense_search_and_that_of_curve_fit(seed):
    y = noisy(0.2 * STEPS**0.6, seed)
    found = fit_power(STEPS, y)
    exponents = np.linspace(-1, 3, 20001)
    grown = STEPS ** exponents[:, None]
    factors = (grown @ y) / (grown**2).sum(1)
    residuals = ((y - factors[:, None] * grown) ** 2).sum(1)
    best = residuals.argmin()
    assert found.b == pytest.approx(exponents[best], abs=2e-4)
    assert found.a == pytest.approx(factors[best], rel=1e-3)
    assert found.rss <= residuals[best]
    (a, b), _ = curve_fit(lambda t, a, b: a * t**b, STEPS, y, p0=(1.0, 0.5), xtol=1e-12, ftol=1e-12)
    assert (found.a, found.b) == pytest.approx((a, b), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_criterion_tells_the_laws_apart(seed):
    log, power = noisy(1 + 2 * np.log(STEPS), seed), noisy(0.2 * STEPS**0.7, seed)
    assert fit_log(STEPS, log).aic < fit_power(STEPS, log).aic
    assert fit_power(STEPS, power).aic < fit_log(STEPS, power).aic


def test_zeros_are_points_of_a_power_too():
    y = np.array([0.0, 0, 1, 2, 4, 8, 16, 32])
    found = fit_power(STEPS, y)
    assert found.rss == pytest.approx(((y - found.a * STEPS**found.b) ** 2).sum(), rel=1e-9)


def test_too_few_points_are_refused():
    assert fit_log(STEPS[:3], STEPS[:3]) is None
    assert fit_power(STEPS[:3], STEPS[:3]) is None
    assert fit_log(STEPS[:4], STEPS[:4]) is not None
    assert fit_power(STEPS[:4], STEPS[:4]) is not None
    assert fit_power(STEPS[:4], np.zeros(4)) is None


def test_a_perfect_fit_has_no_criterion():
    found = fit_log(STEPS, np.zeros(8))
    assert (found.a, found.b, found.rss, found.aic) == (0, 0, 0, None)
