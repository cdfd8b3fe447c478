"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

import numpy as np
import pyarrow as pa

from raygeo.errors import DataError
from raygeo.geometry.cka import CKA
from raygeo.geometry.curvature import Curvature
from raygeo.geometry.norms import Norms
from raygeo.geometry.paths import Paths
from raygeo.geometry.similarity import Similarity
from raygeo.geometry.subspaces import Subspaces
from raygeo.geometry.trajectories import Trajectories
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.evaluate import heldout_problems
from raygeo.stages.probes import provide_probes
from raygeo.stages.report import reference_run
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.students.run import Run
from raygeo.workload import Workload


def analyse_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish the tables of all analyses the study asks for."""
    geometry = context.study.geometry
    base = student.folder
    workloads: list[Workload] = []
    if geometry.norms is not None:
        workloads.append(Norms(geometry.norms, runs, base))
    if geometry.trajectories is not None:
        table = context.store.table("runs")
        steps = {row["run"]: row["steps"] for row in table.to_pylist()}
        workloads.append(Trajectories(geometry.trajectories, runs, base, steps, reference_run(context.study, table)))
    if geometry.similarity is not None:
        workloads.append(Similarity(geometry.similarity, runs, base))
    if geometry.subspaces is not None:
        workloads.append(Subspaces(geometry.subspaces, runs, base))
    if geometry.paths or geometry.cka or geometry.curvature:
        probes = provide_probes(context, student, rollouts)
        if not probes:
            raise DataError(
                "no held-out prompt has a correct solution, so there is nothing to measure likelihood and curvature "
                "on; hold out more prompts (rollouts.heldout) or sample more."
            )
        curvature = probes.pop("curvature")
        if geometry.paths is not None:
            problems = [(p.prompt, p.gold) for p in heldout_problems(rollouts)]
            workloads.append(Paths(geometry.paths, runs, base, probes, problems, context.study.rollouts.grading))
        if geometry.cka is not None:
            workloads.append(CKA(geometry.cka, runs, base, probes["solutions"]))
        if geometry.curvature is not None:
            workloads.append(Curvature(geometry.curvature, runs, base, curvature))
    for workload in workloads:
        context.publish(workload)
    if geometry.norms is not None:
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
