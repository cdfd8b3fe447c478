"""The measured NLL along the paths that the span's Hessians predict."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raygeo.analyses.curvature.settings import PathSettings
from raygeo.analyses.curvature.workload import EXPANSIONS, CurvatureWorkload, State
from raygeo.data.probes import Probe, nll
from raygeo.models.run import Run
from raygeo.workload import Rows, Task


@dataclass(frozen=True)
class Path:
    """From one run to another."""

    start: Run
    end: Run


class MeasuredPaths(CurvatureWorkload):
    """The NLL of the path between two runs, one task a path, rows of table ``expansions`` whose ``at`` is null."""

    name = "curvature.paths"
    tables: ClassVar = {"expansions": EXPANSIONS}
    affecting = PathSettings

    def tasks(self) -> list[Task]:
        """One task a path; none if no paths are asked for, or no span that predicts them."""
        points, probe = self.settings.path_points, Probe.load(self.probe)
        if "span" not in self.settings.spaces or not points:
            return []
        settings = self.affected()
        return [
            Task(
                self.key(settings, [a.name, a.key], [b.name, b.key], probe.key),
                points / 4 * probe.tokens,
                Path(a, b),
                f"NLL from {a.name} to {b.name}",
            )
            for a, b in self.paths
        ]

    def set_parallelism(self, processes: int) -> bool:
        """A path is measured in one process."""
        return False

    def compute(self, state: State, payload: Path) -> dict[str, Rows]:
        """Measure one path, then put the base back."""
        start, end = payload.start, payload.end
        tokens = sum(batch.tokens for batch in state.batches)
        rows: Rows = []
        for alpha in np.linspace(0, 1, self.settings.path_points).tolist():
            with state.weights.mixed([*start.mixture(1 - alpha), *end.mixture(alpha)]) as model:
                value = nll(model, state.batches)
            rows.append({"run_a": start.name, "run_b": end.name, "alpha": alpha, "nll": value, "tokens": tokens})
        return {"expansions": rows}
