import numpy as np
import pytest

from raygeo.cluster.schedule import CALL_SECONDS, Measured, Schedule, replay


def tasks(costs, seconds=None):
    return [Measured(float(c), float(s)) for c, s in zip(costs, costs if seconds is None else seconds, strict=True)]


def costs(call):
    return [task.cost for task in call]


def test_the_most_costly_task_goes_first_and_alone_until_seconds_are_known():
    schedule = Schedule(tasks([1, 3, 2]), actors=1)
    assert [costs(schedule.take()) for _ in range(3)] == [[3], [2], [1]]
    assert len(schedule) == 0


def test_calls_are_worth_a_second_at_most_and_half_a_share_of_what_waits():
    schedule = Schedule(tasks([1] * 41), actors=2)
    first = schedule.take()
    schedule.learn(first, 0.2)  # five of them take a second
    sizes = []
    while len(schedule):
        sizes.append(len(schedule.take()))
    assert sizes[0] == round(CALL_SECONDS / 0.2)
    assert sizes == [5, 5, 5, 5, 5, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1]  # a quarter of what waits, for half a share of two


def test_a_lost_call_is_handed_out_again_first():
    schedule = Schedule(tasks([1, 2, 3, 4]), actors=1)
    lost = schedule.take()
    schedule.put_back(lost)
    assert costs(schedule.take()) == [4]
    assert len(schedule) == 3


@pytest.mark.parametrize(("actors", "makespan"), [(1, 16.0), (2, 8.0), (3, 6.0), (9, 5.0)])
def test_a_replay_is_a_schedule_done_by_hand(actors, makespan):
    # three actors: 5 and then 1, 4 and then 1, 3 and then 2
    found = replay(tasks([5, 4, 3, 2, 1, 1]), actors)
    assert found.makespan == makespan
    assert found.bound == max(16 / actors, 5)


def test_a_replay_charges_calls_and_keeping():
    one = replay(tasks([2, 2]), 1, call_seconds=0.5, keep_seconds=0.25)
    assert (one.calls, one.makespan) == (2, 2 * 2.5 + 0.25)  # rows of the first are kept while the second runs
    crowd = replay(tasks([2] * 8), 8, keep_seconds=1.0)
    assert crowd.makespan == 2 + 8  # one driver keeps all rows


@pytest.mark.parametrize("actors", [10, 100, 1000])
def test_schedules_are_near_the_bound_though_estimates_are_wrong(actors):
    rng = np.random.default_rng(0)
    estimates = rng.lognormal(0.0, 1.5, 20 * actors)
    seconds = 0.1 * estimates * rng.lognormal(0.0, 0.5, len(estimates))
    found = replay(tasks(estimates, seconds), actors, call_seconds=0.005)
    assert found.bound <= found.makespan <= 1.1 * found.bound
    assert found.calls < len(estimates)
