"""``raygeo plan``: from a study to its plan, printed."""

from __future__ import annotations

from rich.console import Console

from raygeo.errors import StoreError
from raygeo.pipeline.budget.cluster import cluster_at_hand
from raygeo.pipeline.budget.facts import find_facts
from raygeo.pipeline.budget.plan import make_plan
from raygeo.pipeline.budget.rates import Rate, read_rates
from raygeo.pipeline.budget.show import print_plan
from raygeo.pipeline.config import Study
from raygeo.store import Store


def plan_study(
    study: Study,
    *,
    device: str | None = None,
    gpus: int | None = None,
    shapes: str | None = None,
    data: str | None = None,
    console: Console | None = None,
) -> bool:
    """Print the plan of a study on ``gpus`` of a ``device``; return whether everything fits.

    Raises:
        RaygeoError: the student's shapes or the data cannot be read, or there is no such device.
    """
    cluster = cluster_at_hand(study, device, gpus)
    facts = find_facts(study, shapes, data)
    lines = make_plan(study, facts, cluster, _rates(study))
    print_plan(study, facts, cluster, lines, console or Console())
    return not any(line.problem for line in lines)


def _rates(study: Study) -> dict[str, Rate]:
    try:
        return read_rates(Store(study.store or f"store/{study.name}", create=False))
    except StoreError:
        return {}
