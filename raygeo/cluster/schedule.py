"""Which tasks go into the next call of an actor: the fan-out's policy without Ray.

The most costly tasks go first, one a call (Graham 1969, "Bounds on multiprocessing timing anomalies"); small ones are
packed into calls, smaller ones towards the end, so that neither the cost of a call nor a straggler dominates (guided
self-scheduling, Polychronopoulos & Kuck 1987).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar


class Costed(Protocol):
    """Anything with an estimate of its cost, in a unit that is constant within one schedule."""

    @property
    def cost(self) -> float:
        """The estimate."""


T = TypeVar("T", bound=Costed)

CALL_SECONDS = 1.0
"""Most estimated seconds that tasks are packed into one call for."""


class Schedule(Generic[T]):
    """Tasks that wait for one of ``actors`` actors, which may become more or fewer.

    A call holds the first waiting task and as many of the next as its estimated seconds leave room for: at most
    ``CALL_SECONDS``, and at most half of an actor's equal share of what waits; but so many that whoever hands out the
    calls, which takes ``handling`` seconds each, can keep up with all actors. Seconds are the estimated costs times the
    seconds that a unit of cost has taken so far; before any task is finished, calls hold one task.
    """

    def __init__(self, tasks: Iterable[T], actors: int = 1):
        self.actors = actors
        self._waiting = deque(sorted(tasks, key=lambda task: -task.cost))
        self._cost = sum(task.cost for task in self._waiting)
        self._done_cost = self._done_seconds = 0.0
        self.handling = 0.0

    def __len__(self) -> int:
        """Number of waiting tasks."""
        return len(self._waiting)

    def take(self) -> list[T]:
        """Remove the tasks of the next call; there must be one."""
        share = self._cost / (2 * self.actors)
        call = [self._waiting.popleft()]
        worth = call[0].cost
        if self._done_cost > 0:
            second = self._done_cost / max(self._done_seconds, 1e-9)
            least = self.handling * self.actors * second
            most = min(share, max(CALL_SECONDS * second, 2 * least))
            while self._waiting and (worth < least or worth + self._waiting[0].cost <= most):
                call.append(self._waiting.popleft())
                worth += call[-1].cost
        self._cost -= worth
        return call

    def put_back(self, call: Sequence[T]) -> None:
        """Let the tasks of a lost call wait again, before all others."""
        self._waiting.extendleft(reversed(call))
        self._cost += sum(task.cost for task in call)

    def learn(self, call: Sequence[T], seconds: float) -> None:
        """Note how long the tasks of a finished call took."""
        self._done_cost += sum(task.cost for task in call)
        self._done_seconds += seconds
