"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from raygeo.errors import DataError
from raygeo.geometry.connectivity.paths import Paths
from raygeo.geometry.curvature.sharpness import Sharpness
from raygeo.geometry.curvature.spectra import Curvature
from raygeo.geometry.representation.cka import CKA
from raygeo.geometry.weights.norms import Norms
from raygeo.geometry.weights.similarity import Similarity
from raygeo.geometry.weights.subspaces import Subspaces
from raygeo.geometry.weights.trajectories import Trajectories
from raygeo.journal import StoreJournal
from raygeo.rollouts.grading import Grading
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.evaluate import heldout_problems
from raygeo.stages.probes import provide_probes
from raygeo.stages.report import reference_run
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.workload import Workload


@dataclass(frozen=True)
class Material:
    """What analyses are made of: the trained runs with the base first, and the texts they are measured on."""

    context: Context
    student: Student
    rollouts: Rollouts
    runs: list[Run]

    @property
    def base(self) -> AnyPath:
        """Folder of the base student."""
        return self.student.folder

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """Rows of the table ``runs``."""
        return self.context.store.table("runs").to_pylist()

    @property
    def steps(self) -> dict[str, int]:
        """Last step of every run by name."""
        return {row["run"]: row["steps"] for row in self.table}

    @property
    def reference(self) -> str:
        """Name of the run others are compared with."""
        return reference_run(self.context.study, self.context.store.table("runs"))

    @cached_property
    def probes(self) -> Mapping[str, AnyPath]:
        """Probe files by name.

        Raises:
            DataError: there is nothing to make them of.
        """
        probes = provide_probes(self.context, self.student, self.rollouts)
        if not probes:
            raise DataError(
                "no held-out prompt has a correct solution, so there is nothing to measure likelihood and curvature "
                "on; hold out more prompts (rollouts.heldout) or sample more."
            )
        return probes

    @property
    def likelihood_probes(self) -> dict[str, AnyPath]:
        """The probes whose likelihood is followed between runs."""
        return {name: path for name, path in self.probes.items() if name != "curvature"}

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Held-out prompts with gold answers."""
        return [(problem.prompt, problem.gold) for problem in heldout_problems(self.rollouts)]

    @property
    def grading(self) -> Grading:
        """How answers are judged."""
        return self.context.study.rollouts.grading


ANALYSES: dict[str, Callable[[Any, Material], Workload]] = {
    "norms": lambda settings, of: Norms(settings, of.runs, of.base),
    "trajectories": lambda settings, of: Trajectories(settings, of.runs, of.base, of.steps, of.reference),
    "similarity": lambda settings, of: Similarity(settings, of.runs, of.base),
    "subspaces": lambda settings, of: Subspaces(settings, of.runs, of.base),
    "paths": lambda settings, of: Paths(settings, of.runs, of.base, of.likelihood_probes, of.problems, of.grading),
    "cka": lambda settings, of: CKA(settings, of.runs, of.base, of.probes["solutions"]),
    "curvature": lambda settings, of: Curvature(
        settings, of.runs, of.base, of.probes["curvature"], partial(StoreJournal, of.context.store)
    ),
    "sharpness": lambda settings, of: Sharpness(settings, of.runs, of.base, of.probes["curvature"]),
}
"""Every analysis by its field in ``GeometrySettings``, in the order they run."""


def analyse_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish the tables of all analyses the study asks for."""
    material = Material(context, student, rollouts, runs)
    asked = {name: getattr(context.study.geometry, name) for name in ANALYSES}
    for workload in [ANALYSES[name](settings, material) for name, settings in asked.items() if settings is not None]:
        context.publish(workload)
    if asked["norms"] is not None:
        _fill_norms(context)


def _fill_norms(context: Context) -> None:
    """Write the global norms of the deltas into the table ``runs``."""
    store = context.store
    norms = {row["run"]: row for row in store.table("deltas").to_pylist() if row["scope"] == "global"}
    runs = store.table("runs")
    for column, source in (("delta_norm", "norm"), ("relative_norm", "relative_norm")):
        values = [norms[run][source] if run in norms else np.nan for run in runs["run"].to_pylist()]
        array = pa.array(values, pa.float64(), from_pandas=True)
        runs = runs.set_column(runs.schema.get_field_index(column), column, array)
    key = content_key("runs-with-norms", runs["key"].to_pylist(), runs["run"].to_pylist(), runs["status"].to_pylist())
    store.write_unit(key, {"runs": runs})
    store.publish("runs", [key])
