"""A study checked and planned without anything being made: ``raygeo run --dry-run``."""

from rich.console import Console

from raygeo.cluster.session import connect
from raygeo.interrupts import handled
from raygeo.pipeline.budget.cluster import cluster_at_hand
from raygeo.pipeline.budget.command import plan_on, store_as_it_is
from raygeo.pipeline.budget.facts import student_config
from raygeo.pipeline.config import Study
from raygeo.pipeline.demands import check_demands, check_engines, check_student, cluster_to_check, is_made
from raygeo.pipeline.student import check_fitting, check_models
from raygeo.pipeline.study import check_settings, stages_until
from raygeo.pipeline.tried import Tried, try_rollouts
from raygeo.progress import Progress
from raygeo.tracking import check_tracking


def rehearse_study(
    study: Study,
    *,
    address: str | None = None,
    until: str | None = None,
    out: Console | None = None,
    quiet: bool = False,
) -> bool:
    """Check what ``run_study`` would check before its first stage and once it has its rollouts, as far as these can be
    known, and print what each stage takes on the cluster; with ``quiet`` what is wrong alone.

    Nothing is written into the store, nor is the store made. Returns whether everything fits.

    Raises:
        RaygeoError: what is wrong and what to do about it.
    """
    out = out or Console()
    check_settings(study, until)
    stages = stages_until(until)
    with handled(), store_as_it_is(study) as store:
        check_tracking(store, study.name)
        check_fitting(study, lambda: student_config(study))
        check_models(study)
        made = is_made(study, store)
        tried = Tried() if made else try_rollouts(study, stages)
        if tried.error is not None:
            raise tried.error
        connect(address)
        check_demands(study, store, stages)
        check_engines(study, store, stages)
        cluster = cluster_to_check(study, Progress(out).say)
        if cluster is not None:
            check_student(study, store, stages, cluster)
        fits = plan_on(study, cluster or cluster_at_hand(study), store, out, tried, quiet=quiet)
        if made and not quiet:
            out.print(f"{store.shown} holds all of it: the same command without --dry-run makes nothing anew.")
    return fits
