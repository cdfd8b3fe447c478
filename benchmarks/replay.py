"""The fan-out's schedule in simulated time: how long many actors would take for tasks that were measured on few."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from raygeo.cluster.schedule import Schedule


@dataclass(frozen=True)
class Measured:
    """A task of a replay: its cost as the scheduler sees it, and the seconds it really takes."""

    cost: float
    seconds: float


@dataclass(frozen=True)
class Replay:
    """What a replay gave: seconds from the first call to the last end, the number of calls, and the lower bound.

    No schedule is shorter than the ``bound``, the longest task or an equal share of all seconds for each actor,
    whichever is more; it costs calls nothing.
    """

    makespan: float
    calls: int
    bound: float


def replay(tasks: Sequence[Measured], actors: int, *, call_seconds: float = 0.0, driver_seconds: float = 0.0) -> Replay:
    """Let ``actors`` actors work on ``tasks`` in simulated time, under the policy of ``Schedule``.

    Between two calls an actor idles ``call_seconds``, in which it stores the rows of the first. Calls are handed out
    one after the other, each of which takes ``driver_seconds``.
    """
    schedule = Schedule(tasks, actors)
    schedule.handling = driver_seconds
    ends: list[tuple[float, int, list[Measured]]] = []
    idle, calls, now = min(actors, len(tasks)), 0, 0.0
    while schedule or ends:
        while ends and (ends[0][0] <= now or not (schedule and idle)):
            end, _, call = heapq.heappop(ends)
            now = max(now, end)
            schedule.learn(call, sum(task.seconds for task in call))
            idle += 1
        if schedule:
            call = schedule.take()
            idle, calls, now = idle - 1, calls + 1, now + driver_seconds
            heapq.heappush(ends, (now + call_seconds + sum(task.seconds for task in call), calls, call))
    total = sum(task.seconds for task in tasks)
    return Replay(now, calls, max(total / actors, max(task.seconds for task in tasks)))
