"""What the runs of a sweep are judged by, measured with the units of work that evaluation and geometry use too."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raygeo.cluster.fanout import FanoutResult
from raygeo.errors import DataError
from raygeo.evaluation.answers import Answers, AnswerSettings
from raygeo.geometry.curvature.journal import Journals
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.spectra import Curvature, CurvatureSettings
from raygeo.journal import StoreJournal
from raygeo.plan import SEEDS, PlannedRun
from raygeo.rollouts.grading import Grading
from raygeo.rollouts.readers import Prompt
from raygeo.search.ranking import fronts
from raygeo.search.settings import Metric, Objective
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.evaluate import HELDOUT, heldout_problems
from raygeo.stages.probes import provide_probes
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.store import AnyPath, Store
from raygeo.students.run import Run
from raygeo.workload import Task, Workload

_RowsOf = Callable[[Workload], list[dict[str, Any]]]


class Sharpest(Curvature):
    """The extreme eigenvalues of each run's Hessian, in the first of the settings' spaces of merged weights."""

    def __init__(
        self, settings: CurvatureSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, journals: Journals
    ):
        space = next((space for space in settings.spaces if space in ("delta", "all", "attention")), "delta")
        alone = settings.model_copy(update={"spaces": (space,), "ggn": False})
        super().__init__(alone, runs, base, probe, journals)

    def tasks(self) -> list[Task]:
        """Extreme eigenvalues alone, under the keys they have in ``Curvature``."""
        return [task for task in super().tasks() if task.payload.part == "extremes"]


@dataclass(frozen=True)
class Objectives:
    """Measures finished runs by ``objectives``. It can be sent to a worker, which measures a run as soon as it is done.

    ``problems`` are the held-out problems, ``probe`` the texts the Hessian is taken on.
    """

    objectives: tuple[Objective, ...]
    base: AnyPath
    base_key: str
    problems: Sequence[Prompt]
    answers: AnswerSettings
    grading: Grading
    probe: AnyPath | None
    curvature: CurvatureSettings

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured."""
        return tuple(objective.metric for objective in self.objectives)

    def measure(
        self, runs: Mapping[str, Run], store: Store, run_workload: Callable[[Workload], FanoutResult]
    ) -> dict[str, dict[Metric, float]]:
        """Measure ``runs`` (by training key): key -> metric -> value; what a run has not got is left out.

        ``run_workload`` computes the units that ``store`` lacks.
        """

        def rows(workload: Workload) -> list[dict[str, Any]]:
            keys = run_workload(workload).keys
            return [row for key in keys for row in store.read_unit(workload.tables[0], key).to_pylist()]

        measured: dict[Metric, dict[str, float]] = {}
        if "accuracy" in self.metrics:
            measured["accuracy"] = self._accuracy(list(runs.values()), rows)
        if "sharpness" in self.metrics:
            measured["sharpness"] = self._sharpness(list(runs.values()), rows, store)
        if "heldout_nll" in self.metrics:
            measured["heldout_nll"] = {run.name: value for key, run in runs.items() for value in last_nll(store, key)}
        return {
            key: {metric: values[run.name] for metric, values in measured.items() if run.name in values}
            for key, run in runs.items()
        }

    def _accuracy(self, runs: list[Run], rows: _RowsOf) -> dict[str, float]:
        benchmark = {HELDOUT: self.problems}
        verdicts = defaultdict(list)
        for row in rows(Answers(self.answers, runs, self.base, self.base_key, benchmark, self.grading)):
            verdicts[row["run"]].append(row["correct"])
        return {run: fmean(correct) for run, correct in verdicts.items()}

    def _sharpness(self, runs: list[Run], rows: _RowsOf, store: Store) -> dict[str, float]:
        assert self.probe is not None
        journals = partial(StoreJournal, store)
        spectra = rows(Sharpest(self.curvature, runs, self.base, self.probe, journals))
        top = {"operator": Hessian.name, "quantity": "eigenvalue", "index": 0}.items()
        return {row["run"]: row["value"] for row in spectra if top <= row.items()}


def last_nll(store: Store, key: str) -> list[float]:
    """The held-out NLL at the end of training of the run with this key, or nothing if it was never measured."""
    curves = store.read_unit("curves", key)
    found = curves.filter(pc.equal(curves["metric"], "heldout_nll")).sort_by("step")["value"].to_pylist()
    return found[-1:]


def provide_objectives(context: Context, student: Student, rollouts: Rollouts) -> Objectives:
    """Everything needed to measure the study's objectives.

    Raises:
        DataError: there are no held-out problems, or no correct held-out solution, where an objective needs them.
    """
    study = context.study
    assert study.sweep is not None
    metrics = {objective.metric for objective in study.sweep.objectives}
    problems, probes = heldout_problems(rollouts), provide_probes(context, student, rollouts)
    if "accuracy" in metrics and not problems:
        raise DataError("sweep.objectives: accuracy needs held-out prompts with gold answers, and there are none.")
    if metrics - {"accuracy"} and not probes:
        raise DataError("sweep.objectives: no held-out prompt has a correct solution; hold out more prompts.")
    return Objectives(
        objectives=study.sweep.objectives,
        base=student.folder,
        base_key=student.key,
        problems=problems,
        answers=study.evaluation.answers,
        grading=study.rollouts.grading,
        probe=probes.get("curvature"),
        curvature=study.geometry.curvature or CurvatureSettings(),
    )


def publish_trials(
    context: Context, student: Student, rollouts: Rollouts, trials: Sequence[PlannedRun], runs: Sequence[Run]
) -> None:
    """Publish the table ``trials``: what was chosen for every run, its objectives, and the rank of its configuration.

    A configuration is judged by the means over its seeds; it has a rank once all of them are finished.
    """
    store = context.store
    objectives = provide_objectives(context, student, rollouts)
    keys = {trial.spec.name: trial.spec.key(student.key, rollouts.key) for trial in trials}
    finished = {keys[run.name]: run for run in runs if run.name in keys}
    measured = objectives.measure(finished, store, context.run)
    status = {row["run"]: row["status"] for row in store.table("runs").to_pylist()}
    rows: list[dict[str, Any]] = []
    for trial in trials:
        chosen = {".".join(place): value for place, value in trial.values.items() if place not in SEEDS}
        rows.append(
            {
                "run": trial.spec.name,
                "entry": trial.entry,
                "values": json.dumps(chosen),
                "seed": trial.spec.training.seed,
                "init_seed": trial.spec.training.init_seed,
                "status": status.get(trial.spec.name),
            }
            | measured.get(keys[trial.spec.name], {})
        )
    for row, rank in zip(rows, _ranks(rows, objectives.objectives), strict=True):
        row["rank"] = rank
    key = content_key("trials", rows)
    store.write_unit(key, {"trials": rows})
    store.publish("trials", [key])


def _ranks(rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]) -> list[int | None]:
    """The rank of each row's configuration by its means over seeds; None where one is missing."""
    members: defaultdict[tuple[int, str], list[list[float]]] = defaultdict(list)
    for row in rows:
        members[row["entry"], row["values"]].append([row.get(o.metric, np.nan) for o in objectives])
    means = {configuration: np.mean(values, 0) for configuration, values in members.items()}
    complete = {configuration: mean for configuration, mean in means.items() if np.isfinite(mean).all()}
    ranks = dict(zip(complete, fronts(list(complete.values()), [o.mode for o in objectives]), strict=True))
    return [ranks.get((row["entry"], row["values"])) for row in rows]
