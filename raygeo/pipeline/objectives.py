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

from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.cluster.execution import FanoutResult
from raygeo.data.grading import Grading
from raygeo.data.readers import Prompt
from raygeo.errors import DataError
from raygeo.evaluation.answers import Answers, AnswerSettings
from raygeo.generation.choice import LOCAL
from raygeo.generation.engine import EngineSettings
from raygeo.generation.renderer import Renderer
from raygeo.geometry.curvature.spaces import Space
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.pipeline.config import HELDOUT
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.journal import StoreJournal
from raygeo.pipeline.plan import SEEDS, PlannedRun
from raygeo.pipeline.probes import provide_probes
from raygeo.pipeline.rollouts import Rollouts, heldout_problems
from raygeo.pipeline.student import Student
from raygeo.search.ranking import fronts
from raygeo.search.settings import Metric, Objective
from raygeo.store import AnyPath, Store
from raygeo.tables import to_arrow
from raygeo.training.settings import RunSpec
from raygeo.workload import Workload

_RowsOf = Callable[[Workload], list[dict[str, Any]]]


_DEFAULT = Loading()


@dataclass(frozen=True)
class Objectives:
    """Measures finished runs by ``objectives``. It can be sent to a worker, which measures a run as soon as it is done.

    ``problems`` are the held-out problems, ``probe`` the texts the Hessian is taken on, as ``curvature`` says
    (``in_one_space``); ``loading`` says how runs are held.
    """

    objectives: tuple[Objective, ...]
    base: AnyPath
    base_key: str
    problems: Sequence[Prompt]
    answers: AnswerSettings
    grading: Grading
    renderer: Renderer
    probe: AnyPath | None
    curvature: CurvatureSettings
    engine: EngineSettings = LOCAL
    loading: Loading = _DEFAULT

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
            [(table, columns)] = workload.tables.items()
            return [row for key in keys for row in store.read_unit(table, key, columns).to_pylist()]

        measured: dict[Metric, dict[str, float]] = {}
        if "accuracy" in self.metrics:
            measured["accuracy"] = self._accuracy(list(runs.values()), rows)
        if "top_eigenvalue" in self.metrics:
            measured["top_eigenvalue"] = self._top_eigenvalue(list(runs.values()), rows, store)
        if "heldout_nll" in self.metrics:
            measured["heldout_nll"] = {run.name: value for key, run in runs.items() for value in last_nll(store, key)}
        return {
            key: {metric: values[run.name] for metric, values in measured.items() if run.name in values}
            for key, run in runs.items()
        }

    def _accuracy(self, runs: list[Run], rows: _RowsOf) -> dict[str, float]:
        benchmark = {HELDOUT: self.problems}
        verdicts = defaultdict(list)
        asked = benchmark, self.grading, self.renderer, self.engine
        for row in rows(Answers(self.answers, runs, self.base, self.base_key, *asked)):
            verdicts[row["run"]].append(row["correct"])
        return {run: fmean(correct) for run, correct in verdicts.items()}

    def _top_eigenvalue(self, runs: list[Run], rows: _RowsOf, store: Store) -> dict[str, float]:
        """The largest eigenvalue of each run's Hessian, in the one space of ``curvature``."""
        assert self.probe is not None
        found = rows(ExtremeEigenvalues(self.curvature, runs, self.base, self.probe, partial(StoreJournal, store)))
        return {row["run"]: row["value"] for row in found if row["quantity"] == "eigenvalue" and row["index"] == 0}


def in_one_space(curvature: CurvatureSettings, specs: Sequence[RunSpec]) -> CurvatureSettings:
    """Settings of the Hessian in the one space of merged weights where all of ``specs`` are judged.

    It is the first of the settings' spaces, if it is the same whichever runs are finished. "delta", what any run
    touches, is so only where all runs adapt the same modules; otherwise "all" takes its place.
    """
    touched = {spec.training.lora and spec.training.lora.target_modules for spec in specs}
    fixed: tuple[Space, ...] = ("all", "attention")
    candidates: tuple[Space, ...] = ("delta", *fixed) if len(touched) == 1 else fixed
    space = next((space for space in curvature.spaces if space in candidates), candidates[0])
    return curvature.model_copy(update={"spaces": (space,), "ggn": False})


def last_nll(store: Store, key: str) -> list[float]:
    """The held-out NLL at the end of training of the run with this key, or nothing if it was never measured."""
    curves = store.read_unit("training_curves", key)
    found = curves.filter(pc.equal(curves["metric"], "heldout_nll")).sort_by("step")["value"].to_pylist()
    return found[-1:]


def provide_objectives(context: StudyContext, student: Student, rollouts: Rollouts) -> Objectives:
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
    curvature = study.geometry.asked().get("curvature")
    return Objectives(
        objectives=study.sweep.objectives,
        base=student.folder,
        base_key=student.key,
        problems=problems,
        answers=study.evaluation.answers,
        grading=rollouts.grading,
        renderer=rollouts.renderer,
        probe=probes.get("curvature"),
        curvature=in_one_space(
            curvature if isinstance(curvature, CurvatureSettings) else CurvatureSettings(), study.plan.points()
        ),
        engine=study.evaluation.engine,
        loading=Loading.of(study.student),
    )


def publish_trials(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    trials: Sequence[PlannedRun],
    runs: Sequence[Run],
    keys: Mapping[str, str],
) -> None:
    """Publish the table ``trials``: what was chosen for every run, its objectives, and the rank of its configuration.

    ``keys`` are those of the training that each run ended with, by name.

    A configuration is judged by the means over its seeds; it has a rank once all of them are finished.
    """
    store = context.store
    objectives = provide_objectives(context, student, rollouts)
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
    store.publish_rows("trials", to_arrow("trials", rows))


def _ranks(rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]) -> list[int | None]:
    """The rank of each row's configuration by its means over seeds; None where one is missing."""
    members: defaultdict[tuple[int, str], list[list[float]]] = defaultdict(list)
    for row in rows:
        members[row["entry"], row["values"]].append([row.get(o.metric, np.nan) for o in objectives])
    means = {configuration: np.mean(values, 0) for configuration, values in members.items()}
    complete = {configuration: mean for configuration, mean in means.items() if np.isfinite(mean).all()}
    ranks = dict(zip(complete, fronts(list(complete.values()), [o.mode for o in objectives]), strict=True))
    return [ranks.get((row["entry"], row["values"])) for row in rows]
