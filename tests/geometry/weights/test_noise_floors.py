import numpy as np
import pytest

from raygeo.geometry.weights.inner_products import unit
from raygeo.geometry.weights.noise_floors import disattenuate, noise_floors
from raygeo.records import Condition


def seeded(losses, seeds, inits=(0,), settings=""):
    return [Condition(loss, settings, seed, init) for loss in losses for seed in seeds for init in inits]


def test_floors_keep_orders_and_initialisations_apart():
    conditions = [*seeded("a", (0, 1), (0, 1)), *seeded("b", (0,)), *seeded("a", (0,), settings="other")]
    cosines = np.arange(36.0).reshape(6, 6) / 100
    cosines = np.triu(cosines, 1) + np.triu(cosines, 1).T
    rows = {(r.configuration_a, r.configuration_b, r.seeds): r for r in noise_floors(cosines, conditions)}
    pairs = {"order": [(0, 2), (1, 3)], "init": [(0, 1), (2, 3)], "both": [(0, 3), (1, 2)]}
    for kind, members in pairs.items():
        values, row = [cosines[pair] for pair in members], rows[0, 0, kind]
        assert (row.n, row.low, row.high) == (2, min(values), max(values))
        assert row.mean == pytest.approx(np.mean(values))
        assert row.disattenuated is None
    assert {key: row.n for key, row in rows.items() if key[0] != key[1]} == {
        (a, b, kind): 1
        for a, b in ((0, 4), (0, 5), (4, 5))
        for kind in (("same", "order", "init", "both") if a == 0 else ("same",))
    }


def test_disattenuation_finds_the_cosine_below_the_noise():
    """Losses along directions of cosine 0.6; a third of the energy of a, two thirds of that of b come of the order."""
    rng, d, seeds = np.random.default_rng(0), 20_000, range(6)
    signal = np.linalg.qr(rng.standard_normal((d, 2))).Q.T
    directions = {"a": signal[0], "b": 0.6 * signal[0] + 0.8 * signal[1]}
    share = {"a": 2 / 3, "b": 1 / 3}
    conditions = seeded("ab", seeds)
    shared = rng.standard_normal((6, d)) / d**0.5
    x = np.stack(
        [share[c.loss] ** 0.5 * directions[c.loss] + (1 - share[c.loss]) ** 0.5 * shared[c.seed] for c in conditions]
    )
    rows = {(r.configuration_a, r.configuration_b, r.seeds): r for r in noise_floors(unit(x @ x.T), conditions)}
    assert rows[0, 0, "order"].mean == pytest.approx(2 / 3, abs=0.01)
    assert rows[6, 6, "order"].mean == pytest.approx(1 / 3, abs=0.01)
    assert rows[0, 6, "order"].mean == pytest.approx(0.6 * (2 / 9) ** 0.5, abs=0.01)
    assert rows[0, 6, "order"].disattenuated == pytest.approx(0.6, abs=0.015)
    assert rows[0, 6, "same"].mean > 0.7
    assert rows[0, 6, "same"].disattenuated is None


def test_disattenuated_is_never_clipped_nor_made_of_noise():
    assert disattenuate(0.5, 0.4, 0.4) == pytest.approx(1.25)
    assert disattenuate(0.5, -0.1, 0.4) is disattenuate(0.5, None, 0.4) is disattenuate(0.5, 0.4, 0.0) is None
