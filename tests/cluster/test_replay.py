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
