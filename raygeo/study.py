"""A study from beginning to end: the stages in order, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.session import connect
from raygeo.config import Study, study_yaml
from raygeo.errors import ConfigError
from raygeo.progress import Progress, StageTime, stage_table
from raygeo.search.optimizer import import_optuna
from raygeo.stages.context import Context, timed_stage
from raygeo.stages.evaluate import evaluate_runs
from raygeo.stages.geometry import analyse_runs
from raygeo.stages.objectives import publish_trials
from raygeo.stages.report import study_params, write_report
from raygeo.stages.rollouts import provide_rollouts
from raygeo.stages.student import provide_student
from raygeo.stages.train import provide_references, train_runs
from raygeo.store import Store
from raygeo.tracking import Tracking

STAGES = ("student", "rollouts", "reference", "train", "evaluate", "geometry", "report")


class _Stop(Exception):
    """The stage named by ``until`` is done."""


def run_study(
    study: Study, *, address: str | None = None, until: str | None = None, progress: Progress | None = None
) -> Store:
    """Run ``study``: whatever its store lacks is made, and the rest is taken from there. Returns the store.

    ``address`` names a running Ray cluster; ``until`` is the last stage to run.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
    """
    if until is not None and until not in STAGES:
        raise ConfigError(f"--until {until!r} is no stage; the stages are {', '.join(STAGES)}.")
    if study.plan.open_entries():
        import_optuna()  # now rather than after an hour
    progress = progress or Progress()
    store = Store(study.store or f"store/{study.name}")
    store.write_bytes("study.yaml", study_yaml(study).encode())
    times: list[StageTime] = []

    with timed_stage("start", times, progress, None):
        tracking = Tracking(store, study.name, study_params(study))
        connect(address)
    with ActorPool(study.actors) as pool:
        context = Context(store, pool, progress, study=study)

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            with timed_stage(name, times, progress, context):
                yield
            if name == until:
                raise _Stop

        try:
            with stage("student"):
                student = provide_student(context)
            with stage("rollouts"):
                rollouts = provide_rollouts(context, student)
            with stage("reference"):
                references = provide_references(context, student, rollouts)
            with stage("train"):
                runs, planned = train_runs(context, student, rollouts, references, tracking)
            with stage("evaluate"):
                evaluate_runs(context, student, rollouts, runs)
                if study.sweep is not None:
                    publish_trials(context, student, rollouts, planned, runs)
            with stage("geometry"):
                analyse_runs(context, student, rollouts, runs)
            with stage("report"):
                page = write_report(context, student, tracking, times)
            progress.say(f"\nreport:  {page}\ncompare: raygeo ui {store.location}")
        except _Stop:
            pass
    progress.console.print(stage_table(times))
    return store
