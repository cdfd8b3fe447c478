"""What analyses of the deltas that runs kept while they trained have in common: runs, steps, groups of parameters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import group_label, parameter_groups
from raygeo.models.delta import Delta
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.workload import Task, Workload


class KeptWorkload(Workload):
    """The runs that kept deltas; one task a run and group of its parameters.

    ``steps`` is the last step of every run by name, at which its final delta stands.
    """

    def __init__(self, settings: Any, runs: Sequence[Run], base: AnyPath, steps: Mapping[str, int]):
        self.settings = settings
        self.runs = [run for run in runs if run.snapshots is not None]
        self.base = base
        self.steps = dict(steps)

    def chosen(self, base: BaseWeights, delta: Delta) -> Collection[str]:
        """The parameters that are looked at: all."""
        return delta.keys()

    def tasks(self) -> list[Task]:
        """One task a run and group of its parameters; the cost is how many numbers are read."""
        base, tasks = self.setup(), []
        for run in self.runs:
            delta = run.open()
            assert delta is not None
            chosen = set(self.chosen(base, delta))
            for group, cost in parameter_groups([delta]):
                if names := [name for name in group if name in chosen]:
                    key = self.key(self.settings, [run.name, run.key], names)
                    label = f"{self.name} of {run.name}, {group_label(names)}"
                    tasks.append(Task(key, float(cost), (run, names), label))
        return tasks

    def setup(self) -> BaseWeights:
        """Open the base checkpoint."""
        return BaseWeights(self.base)
