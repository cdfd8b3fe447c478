"""A study from beginning to end: the stages in order, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT

from rich.markup import escape

from raygeo.analyses.registry import know
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.nodes import check_nodes
from raygeo.cluster.session import connect
from raygeo.errors import ConfigError
from raygeo.interrupts import asked, handled
from raygeo.logs import about
from raygeo.pipeline.budget.cluster import wants_gpu
from raygeo.pipeline.config import Study, study_yaml
from raygeo.pipeline.context import StudyContext, timed_stage
from raygeo.pipeline.demands import (
    check_demands,
    check_engines,
    check_rollouts,
    check_student,
    cluster_to_check,
    is_made,
)
from raygeo.pipeline.evaluate import evaluate_runs
from raygeo.pipeline.foreseen import foresee
from raygeo.pipeline.found import analyses_found, answers_found, references_found, runs_found, student_found
from raygeo.pipeline.geometry import analyse_runs
from raygeo.pipeline.logged import logged
from raygeo.pipeline.problems import check_builtin, check_sources
from raygeo.pipeline.reference_run import reference_run
from raygeo.pipeline.report import about_study, study_note, study_params, write_report
from raygeo.pipeline.rollouts import provide_rollouts
from raygeo.pipeline.standing import STUDY, Standing
from raygeo.pipeline.student import provide_student
from raygeo.pipeline.tracked_data import base_key, log_asked
from raygeo.pipeline.train import provide_references, train_runs
from raygeo.pipeline.trials import publish_trials
from raygeo.progress import Progress, StageTime, stage_table
from raygeo.search.optimizer import import_optuna
from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.store.lease import Lease, held
from raygeo.tracking import Status, Tracking
from raygeo.tracking.origin import cluster_tags, code_tags

STAGES = ("student", "rollouts", "reference", "train", "evaluate", "geometry", "report")


class _Stop(Exception):
    """The stage named by ``until`` is done."""


def run_study(
    study: Study,
    *,
    address: str | None = None,
    until: str | None = None,
    progress: Progress | None = None,
    memory_check: bool = True,
    wait: bool = False,
    allow_failures: bool = False,
) -> Store:
    """Run ``study``: whatever its store lacks is made, and the rest is taken from there. Returns the store.

    ``address`` names a running Ray cluster; ``until`` is the last stage to run. A run, an analysis or an evaluation
    that fails does not end the study: the page is written without it, and says so; what failed is raised then, unless
    ``allow_failures``. Whatever ends the study, ``rewrite_report`` makes a page of what it left. Without
    ``memory_check`` a study is begun even if it is not thought to fit. Where another process works on the store, this
    one is refused, or with ``wait`` waits for it.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
        KeyboardInterrupt: SIGINT or SIGTERM came; the same call resumes.
    """
    know(study.geometry.own)
    check_settings(study, until)
    progress = progress or Progress()
    store = Store(study.location)
    store.check_own(STUDY)
    with (
        handled(),
        held(store, f"the study {study.name}", wait=wait, say=progress.say) as lease,
        store.noting(study.name) as ledger,
        logged(store, study.name),
    ):
        store.write_bytes(STUDY, study_yaml(study).encode())
        tags = code_tags(content_key(study.model_copy(update={"store": None})))
        tracking = Tracking(store, study.name, study_params(study), tags, progress.say, study_note(study))
        times: list[StageTime] = []
        try:
            context = _run_stages(study, store, tracking, address, until, progress, times, memory_check, lease)
        except KeyboardInterrupt as stop:
            _close(tracking, "KILLED", store, progress)
            progress.say(f"\n{escape(_where(times, stop))}")
            raise
        except BaseException:
            _close(tracking, "FAILED", store, progress)
            raise
        _close(tracking, "FAILED" if context.missing else "FINISHED", store, progress)
        ledger.whole = until is None
        progress.show(stage_table(times))
    if not allow_failures:
        context.check_whole()
    return store


def check_settings(study: Study, until: str | None = None) -> None:
    """Refuse what can be known to fail of the settings, of the packages that are installed and of what is to be read.

    Raises:
        ConfigError: ``until`` is no stage, optuna is not installed, or as ``check_builtin``.
        DataError: as ``check_sources``.
    """
    if until is not None and until not in STAGES:
        raise ConfigError(f"--until {until!r} is not a stage; the stages are {', '.join(STAGES)}.")
    if study.plan.open_entries():
        import_optuna()  # now rather than after an hour
    check_builtin(study)
    if until != "student":
        check_sources(study)


def stages_until(until: str | None) -> tuple[str, ...]:
    """The stages up to this one; all for None."""
    return STAGES[: None if until is None else STAGES.index(until) + 1]


def _close(tracking: Tracking, status: Status, store: Store, progress: Progress) -> None:
    """End the study's runs in MLflow, and say what it could not be told."""
    if waiting := tracking.close(status):
        progress.say(
            f"  [yellow]{waiting} entries for MLflow wait[/yellow]: `raygeo report {escape(store.location)}`, or the "
            "same command, sends them once it answers"
        )


def _where(times: list[StageTime], stop: KeyboardInterrupt) -> str:
    """One line on how far a study had come when it was stopped."""
    stages = ("start", *STAGES, "end")
    done = [f"{', '.join(time.stage for time in times)} done"] if times else []
    said = "; ".join([*done, *map(str, stop.args), "what is finished is in the store"])
    return f"stopped by {(asked() or SIGINT).name} in the stage {stages[len(times)]}: {said}. The same command resumes."


def _run_stages(
    study: Study,
    store: Store,
    tracking: Tracking,
    address: str | None,
    until: str | None,
    progress: Progress,
    times: list[StageTime],
    memory_check: bool,
    lease: Lease,
) -> StudyContext:
    with timed_stage("start", times, progress, None):
        connect(address)
        tracking.mark(cluster_tags())
        if units := store.unversioned():
            progress.say(
                f"  {units} units in the store were made before keys held the revisions of the code; the study makes "
                "anew what it needs"
            )
        made = is_made(study, store)
        memory_check = memory_check and not made
        stages = stages_until(until)
        check_demands(study, store, stages)
        check_engines(study, store, stages)
        check_nodes(store, gpus=wants_gpu(study), say=progress.say)
        cluster = cluster_to_check(study, progress.say) if memory_check else None
        if cluster is not None:
            check_student(study, store, stages, cluster)
    with about(study.name), ActorPool(study.actors, progress.say, study.name) as pool:
        context = StudyContext(store, pool, progress, study=study)
        standing = Standing(store, about_study(study, ("start", *STAGES[:-1])), times, progress)

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            lease.check()
            with standing.stage(name, context):
                yield
            if name == until:
                raise _Stop

        def say(found: str) -> None:
            progress.say(f"  {escape(found)}")

        try:
            with stage("student"):
                student = provide_student(context)
                standing.note(student=student.description)
                say(student_found(student.folder))
            with stage("rollouts"):
                rollouts = provide_rollouts(context, student)
                learned = {} if made else foresee(context, student, rollouts, stages)
                if cluster is not None:
                    check_rollouts(context, student, rollouts, stages, cluster, learned)
            with stage("reference"):
                references = provide_references(context, student, rollouts)
                say(references_found(references))
            with stage("train"):
                trained = train_runs(context, student, rollouts, references, tracking)
                say(runs_found(store))
            with stage("evaluate"), context.surviving("evaluation"):
                store.publish("trials", [])
                store.publish("objectives", [])
                problems = evaluate_runs(context, student, rollouts, trained.runs)
                log_asked(tracking, base_key(student), store, problems)
                if study.sweep is not None:
                    publish_trials(context, trained.planned, analysed=False)
                say(answers_found(store))
            with stage("geometry"):
                runs, trials = (store.table(name).to_pylist() for name in ("runs", "trials"))
                reference = reference_run(runs, trials, named=study.reference_run or "")
                standing.note(reference_run=reference)
                with context.surviving("geometry"):
                    analyse_runs(context, student, rollouts, trained.runs, reference, references.teacher)
                if study.sweep is not None:
                    with context.surviving("the ranks of the sweep"):
                        publish_trials(context, trained.planned, analysed=True, reference=reference)
                say(analyses_found(study.geometry.asked(), context.missing))
            with stage("report"):
                page = write_report(context, student, tracking, standing)
            progress.say(f"\nreport:  {page}\ncompare: raygeo ui {store.location}")
        except _Stop:
            pass
    return context
