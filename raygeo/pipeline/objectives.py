"""Measures a run by itself as soon as it is trained, with the units of work that evaluation and geometry use later."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.inputs import AnalysisInputs, Training
from raygeo.analyses.measured import Measured, Measures
from raygeo.analyses.registry import view
from raygeo.cluster.execution import FanoutResult
from raygeo.data.exam import Exam
from raygeo.data.grading import Grading
from raygeo.data.readers import Prompt
from raygeo.evaluation.answered import Answered
from raygeo.evaluation.answers import Answers, AnswerSettings
from raygeo.evaluation.statistics import accuracy_rows, pass_rows
from raygeo.generation.engine import EngineSettings
from raygeo.generation.renderer import Renderer
from raygeo.losses.registry import parse_loss
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.naming import benchmark_of, reported_as
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.evaluate import asked_problems
from raygeo.pipeline.journal import StoreJournal
from raygeo.pipeline.probes import provide_probes
from raygeo.pipeline.published import published
from raygeo.pipeline.rollouts import Rollouts, heldout_exam
from raygeo.pipeline.student import Student
from raygeo.records import RunRecord
from raygeo.report.parts import Parts
from raygeo.report.study import STUDY
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath, Store
from raygeo.tables import BASE, to_arrow
from raygeo.workload import Workload

RunWorkload = Callable[[Workload], FanoutResult]
"""Computes the units of a workload that the store lacks."""


@dataclass(frozen=True)
class Objectives:
    """Measures ``metrics``, by their full names, of finished runs. It can be sent to a worker.

    ``asked`` holds the settings of analyses, of which ``own`` are the study's, as ``module:name``; ``benchmarks``
    problems by name, ``probes`` files by name; the rest is as evaluation and geometry have it, ``base`` and
    ``base_key`` the student's.
    """

    metrics: tuple[str, ...]
    asked: Mapping[str, Settings]
    own: tuple[str, ...]
    benchmarks: Mapping[str, Sequence[Prompt]]
    probes: Mapping[str, AnyPath]
    exam: Exam
    base: AnyPath
    base_key: str
    rollouts: str
    tokens: AnyPath
    answers: AnswerSettings
    grading: Grading
    renderer: Renderer
    engine: EngineSettings
    loading: Loading

    def measure(self, run: Run, key: str, store: Store, run_workload: RunWorkload) -> dict[str, float]:
        """The metrics of ``run``, whose training has this ``key``; one that it has not got is left out.

        ``run_workload`` computes the units that ``store`` lacks.
        """
        answered = Answered(dict.fromkeys(self.benchmarks, "none"), self.answers.samples)
        measures = Measures(self.asked, answered, self.own)
        wanted = [measures.find(name) for name in self.metrics]
        found: dict[str, float] = {}
        groups: dict[str, tuple[Analysis, tuple[type[Workload], ...], Settings, bool]] = {}
        for one in wanted:
            if one.metric.among == "training":
                found |= last_reported(store, key, one.name)
            elif one.analysis is not None:
                settings = one.metric.only(self.asked[one.analysis.name], one.name)
                kinds, beside = one.metric.made_by or one.analysis.workloads, one.metric.among == "base"
                groups[f"{one.analysis.name} {kinds} {settings} {beside}"] = (one.analysis, kinds, settings, beside)
        if asked := [one for one in wanted if one.analysis is None and one.metric.among != "training"]:
            found |= self._answered(run, asked, store, run_workload)
        for analysis, kinds, settings, beside in groups.values():
            runs = [self._base(), run] if beside else [run]
            arguments = analysis.arguments(self._inputs(runs, run.name, key, store))
            workloads = [kind(settings, *arguments) for kind in kinds]  # type: ignore[call-arg]
            found |= numbers(analysis.report, computed(workloads, store, run_workload), run.name)
        return {name: found[name] for name in self.metrics if name in found}

    def _answered(
        self, run: Run, wanted: Iterable[Measured], store: Store, run_workload: RunWorkload
    ) -> dict[str, float]:
        asked = {benchmark_of(one.name) for one in wanted}
        problems = {name: found for name, found in self.benchmarks.items() if name in asked}
        how = self.grading, self.renderer, self.engine
        answers = Answers(self.answers, [run], self.base, self.base_key, problems, *how)
        table = computed([answers], store, run_workload)["answers"]
        rows = {"accuracy": accuracy_rows(table), "pass_at_k": pass_rows(table)}
        return numbers(STUDY, {name: to_arrow(name, found) for name, found in rows.items()}, run.name)

    def _base(self) -> Run:
        return Run(BASE, content_key(self.base_key, BASE, *self.loading.keyed), None, loading=self.loading)

    def _inputs(self, runs: list[Run], name: str, key: str, store: Store) -> AnalysisInputs:
        [row] = store.read_unit("runs", key).to_pylist()
        record = RunRecord.of(row | {"run": name})
        losses = {} if record.loss is None else {name: parse_loss(record.loss)}
        return AnalysisInputs(
            base=self.base,
            runs=runs,
            reference=name,
            records={name: record},
            table=partial(published, store),
            make_probes=lambda: self.probes,
            exam=self.exam,
            journals=partial(StoreJournal, store),
            training=Training(losses, store, self.rollouts, self.tokens),
        )


def computed(workloads: Sequence[Workload], store: Store, run_workload: RunWorkload) -> dict[str, pa.Table]:
    """The tables of workloads, with what they aggregate; nothing is published."""
    units: defaultdict[str, list[pa.Table]] = defaultdict(list)
    schemas = {name: columns for workload in workloads for name, columns in workload.tables.items()}
    for workload in workloads:
        keys = run_workload(workload).keys
        for name, columns in workload.tables.items():
            units[name] += store.read_units(name, keys, columns)
    tables = {name: pa.concat_tables([columns.empty_table(), *units[name]]) for name, columns in schemas.items()}
    totals = [workload.aggregate(tables) for workload in workloads]
    for rows in totals:
        for name, more in rows.items():
            tables[name] = pa.concat_tables([tables[name], to_arrow(name, more, schemas[name])])
    return tables


def numbers(report: Parts, tables: Mapping[str, pa.Table], run: str) -> dict[str, float]:
    """The metrics of a run that ``report`` makes of tables."""
    seen = view(tables, run)
    made = (row for metrics in report.metrics for row in metrics(seen))
    return {name: float(value) for of, name, value in made if of == run and value is not None}


def last_reported(store: Store, key: str, metric: str) -> dict[str, float]:
    """The last of a metric that the run with this key reported while it trained; empty if it never did."""
    curves = store.read_unit("training_curves", key)
    values = curves.filter(pc.equal(curves["metric"], reported_as(metric))).sort_by("step")["value"].to_pylist()
    return {metric: values[-1]} if values else {}


def provide_objectives(context: StudyContext, student: Student, rollouts: Rollouts) -> Objectives:
    """Everything needed to measure the study's objectives and constraints; ``foresee`` has seen that it is there."""
    study, judged = context.study, context.study.judged
    problems, _ = asked_problems(study, rollouts)
    probes = provide_probes(context, student, rollouts)
    asked = study.geometry.asked()
    wanted = {analysis.name for _, _, analysis in judged.measured.values() if analysis is not None}
    return Objectives(
        metrics=tuple(judged.measured),
        asked={name: settings for name, settings in asked.items() if name in wanted},
        own=study.geometry.own,
        benchmarks=problems,
        probes=probes,
        exam=heldout_exam(rollouts, study.evaluation.engine),
        base=student.folder,
        base_key=student.key,
        rollouts=rollouts.key,
        tokens=rollouts.tokens,
        answers=study.evaluation.answers,
        grading=rollouts.grading,
        renderer=rollouts.renderer,
        engine=study.evaluation.engine,
        loading=Loading.of(study.student),
    )
