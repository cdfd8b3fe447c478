"""What analyses of single parameters of all runs have in common: what runs hold of one, and a task a matrix."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from raygeo.analyses.modules import ModuleSettings, held_matrices
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import open_all
from raygeo.models.delta import Delta, Entry, module_name
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.workload import Task, Workload

Opened = tuple[BaseWeights, list[Delta]]


class ParameterWorkload(Workload):
    """The trained runs' changes of the base's parameters, one parameter at a time."""

    def __init__(self, settings: Any, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def setup(self) -> Opened:
        """Open the base checkpoint and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def held(self, state: Opened, name: str) -> Iterator[tuple[Run, Entry]]:
        """The runs that changed a matrix, and their changes of it.

        Raises:
            DeltaError: a change has not the shape of the base's matrix.
        """
        base, deltas = state
        for run, delta in zip(self.runs, deltas, strict=True):
            entry = delta.get(name)
            if entry is not None:
                base.check(name, entry)
                yield run, entry


class MatrixWorkload(ParameterWorkload):
    """The trained runs' changes of the base's matrices; one task a matrix, whose base is looked at once for all runs.

    ``decompositions`` are those of a matrix and run, beside one of the base's, for the estimate of the cost.
    """

    decompositions: ClassVar[int]

    @property
    def key_settings(self) -> Settings:
        """The settings that decide the numbers of a task."""
        return self.settings

    def key_parts(self, held: Sequence[Run]) -> Sequence[Any]:
        """What else does, where these runs hold the matrix."""
        return ()

    def tasks(self) -> list[Task]:
        """One task for each chosen matrix that a run holds; the cost counts the operations of its decompositions.

        Raises:
            DeltaError: none of the matrices that runs hold is chosen by ``modules``.
        """
        base, deltas = self.setup()
        holders = held_matrices(base, self.runs, deltas)
        settings: ModuleSettings = self.settings
        tasks = []
        for name in settings.choose(self.name.replace("-", "_"), holders):
            held = holders[name]
            runs = [[run.name, run.key] for run in held]
            key = self.key(self.key_settings, name, runs, *self.key_parts(held))
            cost = math.prod(base.shape(name)) * min(base.shape(name)) * (1 + self.decompositions * len(held))
            tasks.append(Task(key, float(cost), name, f"{self.name} of {module_name(name)}"))
        return tasks
