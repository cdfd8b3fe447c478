"""Words, now and then, for work that waits for a place on the cluster."""

import time
from collections.abc import Mapping

import ray

from raygeo.cluster.preflight import listed_resources, living_nodes

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

    def note(self, count: int, meanwhile: str = "") -> str | None:
        """Note that ``count`` places are waited for; what is to be said of it now, with what goes on ``meanwhile``."""
        now = time.monotonic()
        if self.since is None:
            self.since, self.pause, self.due = now, FIRST_SECONDS, now + FIRST_SECONDS
        if now < self.due:
            return None
        self.pause = min(2 * self.pause, _LONGEST_SECONDS)
        self.due = now + self.pause
        asked = f"{count} x {listed_resources(self.demand)}"
        return f"waiting for {asked} for {now - self.since:.0f} s (cluster has {offered(self.demand)}{meanwhile})"


def offered(demand: Mapping[str, float]) -> str:
    """What the living nodes have of the resources of ``demand``, and what of it is free."""
    nodes, free = living_nodes(), ray.available_resources()
    names = [name for name, amount in demand.items() if amount > 0 and ":" not in name]
    has = [f"{sum(node.get(name, 0) for node in nodes):g} {name}, {free.get(name, 0):g} free" for name in names]
    return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {', '.join(has)}"
