"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from raygeo.errors import DataError
from raygeo.geometry.connectivity.curves import Curves
from raygeo.geometry.connectivity.layerwise import Layerwise
from raygeo.geometry.connectivity.paths import MatchedPaths, Paths
from raygeo.geometry.connectivity.planes import Planes
from raygeo.geometry.connectivity.soups import Soups
from raygeo.geometry.connectivity.wise import Wise
from raygeo.geometry.curvature.spectra import Curvature
from raygeo.geometry.representation.cka import CKA
from raygeo.geometry.weights.norms import Norms
from raygeo.geometry.weights.similarity import Similarity
from raygeo.geometry.weights.subspaces import Subspaces
from raygeo.geometry.weights.trajectories import Trajectories
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
    def barriers(self) -> dict[tuple[str, str], float]:
        """Lower ends of the intervals of straight-line barriers of the solutions, by pair, once paths are measured."""
        measured = self.context.study.geometry.paths is not None
        rows = self.context.store.table("barriers").to_pylist() if measured else []
        return {(row["run_a"], row["run_b"]): row["chord_low"] for row in rows if row["probe"] == "solutions"}

    @property
    def seed_groups(self) -> dict[str, list[str]]:
        """Names of the runs that differ in nothing but seeds, by what they share."""
        groups: dict[str, list[str]] = {}
        for row in self.table:
            if row["run"] in {run.name for run in self.runs}:
                params = json.loads(row["params"])
                shared = {k: v for k, v in params["training"].items() if k not in ("seed", "init_seed")}
                groups.setdefault(content_key(params["loss"], shared), []).append(row["run"])
        return {f"seeds of {names[0]}": names for names in groups.values()}

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
    "matched_paths": lambda settings, of: MatchedPaths(
        settings, of.runs, of.base, of.likelihood_probes, of.problems, of.grading
    ),
    "curves": lambda settings, of: Curves(settings, of.runs, of.base, of.probes["solutions"], of.barriers),
    "layerwise": lambda settings, of: Layerwise(settings, of.runs, of.base, of.probes["solutions"], of.reference),
    "soups": lambda settings, of: Soups(
        settings, of.runs, of.base, of.probes["solutions"], of.problems, of.grading, of.seed_groups
    ),
    "wise": lambda settings, of: Wise(settings, of.runs, of.base, of.probes["solutions"], of.problems, of.grading),
    "planes": lambda settings, of: Planes(settings, of.runs, of.base, of.probes["solutions"], of.reference),
    "cka": lambda settings, of: CKA(settings, of.runs, of.base, of.probes["solutions"]),
    "curvature": lambda settings, of: Curvature(settings, of.runs, of.base, of.probes["curvature"]),
}
"""Every analysis by its field in ``GeometrySettings``, in the order they run: curves are trained where paths rise."""


def analyse_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish the tables of all analyses the study asks for."""
    material = Material(context, student, rollouts, runs)
    asked = {name: getattr(context.study.geometry, name) for name in ANALYSES}
    for name, settings in asked.items():
        if settings is not None:
            context.publish(ANALYSES[name](settings, material))
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
