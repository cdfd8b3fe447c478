import numpy as np
import pytest

from benchmarks.replay import Measured, replay


def tasks(costs, seconds=None):
    return [Measured(float(c), float(s)) for c, s in zip(costs, costs if seconds is None else seconds, strict=True)]


@pytest.mark.parametrize(("actors", "makespan"), [(1, 16.0), (2, 8.0), (3, 6.0), (9, 5.0)])
def test_a_replay_is_a_schedule_done_by_hand(actors, makespan):
    # three actors: 5 and then 1, 4 and then 1, 3 and then 2
    found = replay(tasks([5, 4, 3, 2, 1, 1]), actors)
    assert found.makespan == makespan
    assert found.bound == max(16 / actors, 5)


def test_a_replay_charges_calls():
    one = replay(tasks([2, 2]), 1, call_seconds=0.5)
    assert (one.calls, one.makespan) == (2, 2 * 2.5)


@pytest.mark.parametrize("actors", [10, 100, 1000])
def test_schedules_are_near_the_bound_though_estimates_are_wrong(actors):
    rng = np.random.default_rng(0)
    estimates = rng.lognormal(0.0, 1.5, 20 * actors)
    seconds = 0.1 * estimates * rng.lognormal(0.0, 0.5, len(estimates))
    found = replay(tasks(estimates, seconds), actors, call_seconds=0.005)
    assert found.bound <= found.makespan <= 1.1 * found.bound
    assert found.calls < len(estimates)


@pytest.mark.parametrize(("driver_seconds", "ratio"), [(0.0, 1.02), (5e-4, 1.15), (1e-3, 1.3)])
def test_one_driver_keeps_a_thousand_actors_at_work(driver_seconds, ratio):
    found = replay(tasks([1 / 3] * 20_000), 1000, driver_seconds=driver_seconds)
    assert found.bound <= found.makespan <= ratio * found.bound


def test_a_driver_hands_out_one_call_after_the_other():
    # the first two begin at 1 and 2 s and end at 11 and 12, the others begin a second later and end at 22 and 23
    found = replay(tasks([10] * 4), 2, driver_seconds=1.0)
    assert found.calls == 4
    assert found.makespan == 23.0
