"""A study checked and planned without anything being made: ``raygeo run --dry-run``."""

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from rich.console import Console

from raygeo.cluster.session import connect
from raygeo.errors import NoStoreError, StoreError
from raygeo.interrupts import handled
from raygeo.pipeline.budget.cluster import cluster_at_hand
from raygeo.pipeline.budget.command import plan_on
from raygeo.pipeline.config import Study
from raygeo.pipeline.demands import check_demands, check_engines, check_student, cluster_to_check, is_made
from raygeo.pipeline.study import check_settings, stages_until
from raygeo.progress import Progress
from raygeo.store import Store
from raygeo.store.location import is_uri, local_root


def rehearse_study(
    study: Study, *, address: str | None = None, until: str | None = None, out: Console | None = None
) -> bool:
    """Check what ``run_study`` would check before its first stage, and print what each stage takes on the cluster.

    Nothing is written into the store, nor is the store made. Returns whether everything fits.

    Raises:
        RaygeoError: what is wrong and what to do about it.
    """
    out = out or Console()
    check_settings(study, until)
    stages = stages_until(until)
    with handled(), _store_as_it_is(study) as store:
        connect(address)
        check_demands(study, store, stages)
        check_engines(study, store, stages)
        cluster = cluster_to_check(study, Progress(out).say)
        if cluster is not None:
            check_student(study, store, stages, cluster)
        fits = plan_on(study, cluster or cluster_at_hand(study), store, out)
        if is_made(study, store):
            out.print(f"{store.shown} holds all of it: the same command without --dry-run makes nothing anew.")
    return fits


@contextmanager
def _store_as_it_is(study: Study) -> Iterator[Store]:
    """The study's store; where there is none, an empty one on the same disk, which is gone at the end.

    Raises:
        StoreError: the store cannot be reached, or none can be made there.
    """
    try:
        found = Store(study.location, create=False)
    except NoStoreError:
        found = None
    if found is not None:
        yield found
        return
    place = None if is_uri(study.location) else next(p for p in local_root(study.location).parents if p.exists())
    try:
        folder = TemporaryDirectory(prefix=".raygeo-", dir=place)
    except OSError as error:
        raise StoreError(f"no store can be made at {study.location!r}: {error}. Give another with --store.") from error
    with folder as empty:
        yield Store(empty)
