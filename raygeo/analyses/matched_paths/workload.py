"""The NLL and the accuracy along the straight line between two deltas scaled to equal norm."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from raygeo.analyses.pairs import Pairs, PairSettings, paired
from raygeo.analyses.paths.workload import BARRIERS, POINTS, PathSettings, StraightPaths
from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.mixtures import delta_gram
from raygeo.models.run import Run
from raygeo.tables import schema
from raygeo.workload import Rows


class MatchedPathsSettings(PairSettings, PathSettings):
    """How finely the paths between runs of equal norm are measured."""


class MatchedPaths(StraightPaths):
    """Paths between deltas of equal norm, for pairs of trained runs: the longer one is scaled down.

    A gap in norm makes a path trivial near the shorter end. Both ends here are points that the runs' own lines from the
    base pass through, ``base + scale delta``; none lies beyond a trained run.
    """

    name = "matched-paths"
    tables: ClassVar = {
        "matched_paths": schema("Points of straight paths between deltas of equal norm, as in `paths`.", POINTS),
        "matched_barriers": schema(
            """Barriers between deltas of equal norm `norm`, as in `barriers`: the deltas times `scale_a` and `scale_b`,
            one of which is 1.""",
            f"{BARRIERS}; scale_a, scale_b, norm: float",
        ),
    }

    settings: MatchedPathsSettings

    def join(self, runs: Sequence[Run], chosen: Pairs | None) -> list[tuple[Run, Run]]:
        """The chosen pairs of trained runs, or every two."""
        trained = [run for run in runs if run.delta is not None]
        return paired(trained, None if self.settings.pairs == "all" else chosen, lambda run: run.name)

    def compute(self, state: Any, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one path.

        Raises:
            DeltaError: a delta is zero.
        """
        a, b = payload
        norms = np.sqrt(np.diag(delta_gram([a.open(), b.open()]))).tolist()
        if min(norms) == 0:
            raise DeltaError(f"the delta of {a.name} or of {b.name} is zero and cannot be scaled; leave it out.")
        scale_a, scale_b = (min(norms) / norm for norm in norms)
        paths, barriers = self.measure(state, a, b, (scale_a, scale_b))
        scaled = [row | {"scale_a": scale_a, "scale_b": scale_b, "norm": min(norms)} for row in barriers]
        return {"matched_paths": paths, "matched_barriers": scaled}
