"""``raygeo plan``: from a study to its plan, printed."""

from __future__ import annotations

from rich.console import Console

from raygeo.errors import StoreError
from raygeo.pipeline.budget.cluster import Cluster, cluster_at_hand
from raygeo.pipeline.budget.facts import find_facts
from raygeo.pipeline.budget.plan import make_plan
from raygeo.pipeline.budget.rates import read_rates
from raygeo.pipeline.budget.show import plain_plan, print_plan
from raygeo.pipeline.config import Study
from raygeo.plain import as_json
from raygeo.store import Store


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
    """Print the plan of a study on ``gpus`` of a ``device``, as JSON if asked; return whether everything fits.

    Raises:
        RaygeoError: the student's shapes or the data cannot be read, or there is no such device.
    """
    try:
        store = Store(study.location, create=False)
    except StoreError:
        store = None
    cluster = cluster_at_hand(study, device, gpus)
    return plan_on(study, cluster, store, console or Console(), shapes=shapes, data=data, json=json)


def plan_on(
    study: Study,
    cluster: Cluster,
    store: Store | None,
    out: Console,
    *,
    shapes: str | None = None,
    data: str | None = None,
    json: bool = False,
) -> bool:
    """Print the plan of a study on a cluster, with what its ``store`` has measured; return whether everything fits."""
    facts = find_facts(study, shapes, data)
    lines = make_plan(study, facts, cluster, {} if store is None else read_rates(store))
    if json:
        out.print(as_json(plain_plan(study, facts, cluster, lines)), markup=False, highlight=False, soft_wrap=True)
    else:
        print_plan(study, facts, cluster, lines, out, None if store is None else store.free_bytes())
    return not any(line.problem for line in lines)
