"""Words, now and then, for work that waits for a place on the cluster."""

import time
from collections.abc import Collection, Mapping, Sequence

from raygeo.cluster.preflight import count_within, free_resources, listed_resources, living_nodes

FIRST_SECONDS = 30.0
"""How long is waited without a word."""
_LONGEST_SECONDS = 600.0


class Waiting:
    """Says that places with ``demand`` are waited for, after ``FIRST_SECONDS`` and then after ever longer pauses."""

    def __init__(self, demand: Mapping[str, float]):
        self.demand = demand
        self.over()

    def over(self) -> None:
        """Note that nothing is waited for."""
        self.since: float | None = None

    def note(self, count: int, meanwhile: str = "", without: Collection[str] = ()) -> str | None:
        """Note that ``count`` places are waited for; what is to be said of it now, with what goes on ``meanwhile``.

        Nodes with an id in ``without`` are not waited for. Where there is room for all, their processes are awaited.
        """
        now = time.monotonic()
        if self.since is None:
            self.since, self.pause, self.due = now, FIRST_SECONDS, now + FIRST_SECONDS
        if now < self.due:
            return None
        self.pause = min(2 * self.pause, _LONGEST_SECONDS)
        self.due = now + self.pause
        nodes, free = living_nodes(without), free_resources(without)
        start = "the start of " if count_within(free, self.demand) >= count else ""
        asked = f"{start}{count} x {listed_resources(self.demand)}"
        return f"waiting for {asked} for {now - self.since:.0f} s (cluster has {self._offered(nodes, free)}{meanwhile})"

    def _offered(self, nodes: Sequence[Mapping[str, float]], free: Sequence[Mapping[str, float]]) -> str:
        """What the nodes have of what is wanted, and what of it is ``free``."""
        names = [name for name, amount in self.demand.items() if amount > 0 and ":" not in name]
        has = [f"{_total(nodes, name):g} {name}, {_total(free, name):g} free" for name in names]
        return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {', '.join(has)}"


def _total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
