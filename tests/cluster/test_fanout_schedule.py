from raygeo.cluster.schedule import CALL_SECONDS, Schedule
from raygeo.workload import Task


def tasks(costs):
    return [Task(str(number), float(cost), None, "") for number, cost in enumerate(costs)]


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


def test_calls_are_so_large_that_their_handling_keeps_up_with_all_actors():
    schedule = Schedule(tasks([1] * 100), actors=10)
    schedule.learn(schedule.take(), 0.1)
    schedule.handling = 0.05  # ten actors take a call each in the time that ten are handed out: half a second
    assert len(schedule.take()) == 5
    schedule.handling = 0.5
    assert len(schedule.take()) == 50
