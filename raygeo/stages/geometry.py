"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from raygeo.errors import DataError
from raygeo.geometry.cka import CKA
from raygeo.geometry.curvature import Curvature
from raygeo.geometry.norms import Norms
from raygeo.geometry.paths import Paths
from raygeo.geometry.probes import Probe
from raygeo.geometry.similarity import Similarity
from raygeo.geometry.subspaces import Subspaces
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.evaluate import heldout_problems
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.students.encoding import Sequence, encode
from raygeo.students.loading import load_tokenizer
from raygeo.students.run import Run
from raygeo.workload import Workload

PROBES = "probes"


def analyse_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish the tables of all analyses the study asks for."""
    geometry = context.study.geometry
    base = student.folder
    workloads: list[Workload] = []
    if geometry.norms is not None:
        workloads.append(Norms(geometry.norms, runs, base))
    if geometry.similarity is not None:
        workloads.append(Similarity(geometry.similarity, runs, base))
    if geometry.subspaces is not None:
        workloads.append(Subspaces(geometry.subspaces, runs, base))
    if geometry.paths or geometry.cka or geometry.curvature:
        folder = provide_probes(context, student, rollouts)
        solutions = f"{folder}/solutions.npz"
        if geometry.paths is not None:
            probes = {"solutions": solutions, "answer": f"{folder}/answer.npz"}
            problems = [(p.prompt, p.gold) for p in heldout_problems(rollouts)]
            workloads.append(Paths(geometry.paths, runs, base, probes, problems, context.study.rollouts.grading))
        if geometry.cka is not None:
            workloads.append(CKA(geometry.cka, runs, base, solutions))
        if geometry.curvature is not None:
            workloads.append(Curvature(geometry.curvature, runs, base, f"{folder}/curvature.npz"))
    for workload in workloads:
        context.publish(workload)
    if geometry.norms is not None:
        _fill_norms(context)


def provide_probes(context: Context, student: Student, rollouts: Rollouts) -> str:
    """Folder of the study's probes: ``solutions``, ``answer`` and ``curvature``, the same for every run.

    Raises:
        DataError: there is no correct held-out solution.
    """
    settings, store = context.study.probes, context.store
    key = content_key(PROBES, settings, rollouts.key, student.key)
    if not store.has_folder(PROBES, key):
        tokenizer = load_tokenizer(student.folder)
        chosen: dict[str, tuple[str, str, str | None]] = {}
        for row in rollouts.heldout.to_pylist():
            if row["correct"] and not row["truncated"]:
                chosen.setdefault(row["prompt_id"], (row["prompt"], row["completion"], row["gold"]))
        texts = list(chosen.values())[: settings.sequences]
        if not texts:
            raise DataError(
                "no held-out prompt has a correct solution, so there is nothing to measure likelihood and curvature "
                "on; hold out more prompts (rollouts.heldout) or sample more."
            )
        solutions = [encode(tokenizer, prompt, completion) for prompt, completion, _ in texts]
        answers = [encode(tokenizer, prompt, settings.answer_prefix + gold) for prompt, _, gold in texts if gold]
        folder = store.scratch()
        _save(folder, "solutions", solutions)
        _save(folder, "answer", answers or solutions)
        _save(folder, "curvature", solutions[: settings.curvature_sequences])
        store.save_folder(PROBES, key, folder)
    return str(store.stored(PROBES, key))


def _save(folder: Path, name: str, sequences: list[Sequence]) -> None:
    Probe(name, sequences).save(folder / f"{name}.npz")


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
