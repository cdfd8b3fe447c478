"""``raygeo plan``: from a study to its plan, printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory

from rich.console import Console

from raygeo.errors import NoStoreError, RaygeoError, StoreError
from raygeo.interrupts import handled
from raygeo.pipeline.budget.cluster import Cluster, cluster_at_hand
from raygeo.pipeline.budget.facts import find_facts, student_config
from raygeo.pipeline.budget.plan import make_plan
from raygeo.pipeline.budget.rates import read_rates
from raygeo.pipeline.budget.show import plain_plan, print_plan, print_problems
from raygeo.pipeline.budget.stages import STAGES
from raygeo.pipeline.config import Study
from raygeo.pipeline.demands import check_cores
from raygeo.pipeline.standing import STUDY
from raygeo.pipeline.student import check_fitting, check_models
from raygeo.pipeline.study import check_settings
from raygeo.pipeline.tried import Tried, try_rollouts
from raygeo.plain import as_json
from raygeo.store import Store
from raygeo.store.location import is_uri, local_root
from raygeo.tracking import check_tracking


def plan_study(
    study: Study,
    *,
    device: str | None = None,
    gpus: int | None = None,
    shapes: str | None = None,
    data: str | None = None,
    json: bool = False,
    console: Console | None = None,
) -> bool:
    """Print the plan of a study on ``gpus`` of a ``device``, as JSON if asked; return whether everything fits, and a
    run would not refuse what is known of its student and its rollouts. What keeps it from being run here, its store or
    MLflow, is said alone.

    Raises:
        RaygeoError: the student's shapes or the data cannot be read, or there is no such device.
    """
    cluster, here = cluster_at_hand(study, device, gpus), list[str]()
    with handled(), ExitStack() as stack:
        store = None
        try:
            store = stack.enter_context(store_as_it_is(study))
            check_tracking(store, study.name)
            if shapes is None:
                check_models(study)
            if device is None and cluster.gpu is None:
                check_cores(study, store, STAGES, cluster.cores)
        except RaygeoError as error:
            here.append(str(error))
        tried = Tried()
        try:
            check_fitting(study, lambda: student_config(study, shapes))
            if data is None and shapes is None:
                check_settings(study)
                tried = try_rollouts(study, STAGES)
        except RaygeoError as error:
            tried = Tried(error=error)
        out = console or Console()
        return plan_on(study, cluster, store, out, tried, shapes=shapes, data=data, json=json, here=here)


def plan_on(
    study: Study,
    cluster: Cluster,
    store: Store | None,
    out: Console,
    tried: Tried,
    *,
    shapes: str | None = None,
    data: str | None = None,
    json: bool = False,
    quiet: bool = False,
    here: Sequence[str] = (),
) -> bool:
    """Print the plan of a study on a cluster, with what its ``store`` has measured, and what its rollouts showed when
    they were ``tried``; with ``quiet`` what is wrong alone. ``here`` says what keeps it from being run on this machine.

    Returns whether everything fits and nothing of the rollouts is refused.
    """
    facts = find_facts(study, shapes, data)
    facts = replace(facts, said=(*facts.said, *tried.said))
    lines = make_plan(study, facts, cluster, {} if store is None else read_rates(store))
    refused = str(tried.error or "").splitlines()
    if json:
        plain = plain_plan(study, facts, cluster, lines) | {"refused": refused, "here": list(here)}
        out.print(as_json(plain), markup=False, highlight=False, soft_wrap=True)
    else:
        free = None if store is None or is_uri(study.location) else store.free_bytes()
        if not quiet:
            print_plan(study, facts, cluster, lines, out, free)
        print_problems(lines, out, free, refused, here)
    return not refused and not any(line.problem for line in lines)


@contextmanager
def store_as_it_is(study: Study) -> Iterator[Store]:
    """The study's store; where there is none, an empty one on the same disk, which is gone at the end.

    Raises:
        StoreError: the store cannot be reached, or none can be made there.
    """
    try:
        found = Store(study.location, create=False)
    except NoStoreError:
        found = None
    if found is not None:
        found.check_own(STUDY)
        yield found
        return
    place = None
    if not is_uri(study.location):
        root = local_root(study.location)
        place = next(path for path in (root, *root.parents) if path.exists())
    try:
        folder = TemporaryDirectory(prefix=".raygeo-", dir=place)
    except OSError as error:
        raise StoreError(
            f"no store can be made at {study.location!r}: {place}: {error.strerror}. Give another with --store."
        ) from error
    with folder as empty:
        yield Store(empty)
