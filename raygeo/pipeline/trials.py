"""The table of a sweep's trials: what was chosen, what was measured by evaluation and geometry, and who did best."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from raygeo.analyses.measured import Measured
from raygeo.analyses.registry import published_view
from raygeo.errors import DataError
from raygeo.naming import reported_as
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.judged import Judged
from raygeo.pipeline.plan import SEEDS, PlannedRun
from raygeo.pipeline.published import published
from raygeo.records import FINISHED
from raygeo.report.study import STUDY
from raygeo.search.ranking import ranked
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.training.settings import REVISION


def publish_trials(context: StudyContext, trials: Sequence[PlannedRun], *, analysed: bool, reference: str = "") -> None:
    """Publish the tables ``objectives`` and ``trials`` from those that have been published before.

    A configuration is judged by the means over its seeds; it has a rank once all that it is judged by is known of all
    of them. What analyses find counts once they have ``analysed``: until then their tables are of an earlier study.
    ``reference`` names the run they compared others with.

    Raises:
        DataError: something that runs are judged by was measured of none of them, though all was analysed.
    """
    store, judged = context.store, context.study.judged
    known = [one for one in judged.measured.values() if analysed or one.analysis is None]
    measured = published_metrics(store, known, reference)
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
                "measured": measured.get(trial.spec.name, {}) if status.get(trial.spec.name) == FINISHED else {},
            }
        )
    for row, rank in zip(rows, _ranks(rows, judged), strict=True):
        row["rank"], row["keeps"] = rank
    lacking = [name for name in judged.measured if not any(name in row["measured"] for row in rows)]
    rows = [row | {"measured": json.dumps(row["measured"])} for row in rows]
    store.publish_rows("objectives", to_arrow("objectives", _goals(judged)))
    store.publish_rows("trials", to_arrow("trials", rows), _made_by(store, known))
    if analysed and lacking and FINISHED in status.values():
        raise DataError(
            f"sweep: {', '.join(lacking)} was measured of no run, so that none has a rank; see what else failed, or "
            "judge by another metric."
        )


def _made_by(store: Store, known: Sequence[Measured]) -> dict[str, int]:
    """Revisions of the trainer, and of what made the tables that runs were judged by."""
    found = {"training": REVISION}
    for table in {"accuracy", *(table for one in known if one.analysis is not None for table in one.analysis.tables)}:
        found |= store.revisions(table) or {}
    return found


def published_metrics(store: Store, wanted: Sequence[Measured], reference: str) -> dict[str, dict[str, float]]:
    """Of every run, by name, the metrics that are ``wanted``, made of published tables; what it has not is left out."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    names = {one.name for one in wanted}
    curves = {reported_as(one.name): one.name for one in wanted if one.metric.among == "training"}
    if curves:
        for row in store.table("training_curves").sort_by("step").to_pylist():
            if row["metric"] in curves:
                found[row["run"]][curves[row["metric"]]] = row["value"]
    makers = {one.analysis.name: one.analysis for one in wanted if one.analysis is not None}
    seen = published_view(partial(published, store), reference)
    for report in (STUDY, *(analysis.report for analysis in makers.values())):
        for run, name, value in (row for metrics in report.metrics for row in metrics(seen)):
            if name in names and value is not None:
                found[run][name] = float(value)
    return dict(found)


def _goals(judged: Judged) -> list[dict[str, Any]]:
    goals: list[dict[str, Any]] = [{"metric": o.metric, "mode": o.mode} for o in judged.objectives]
    return goals + [{"metric": c.metric, "at_most": c.at_most, "at_least": c.at_least} for c in judged.constraints]


def _ranks(rows: Sequence[Mapping[str, Any]], judged: Judged) -> list[tuple[int, bool] | tuple[None, None]]:
    """The rank of each row's configuration by its means over seeds, and whether it keeps the bounds; None where a
    number is missing.
    """
    members: defaultdict[tuple[int, str], list[list[float]]] = defaultdict(list)
    for row in rows:
        members[row["entry"], row["values"]].append([row["measured"].get(name, np.nan) for name in judged.metrics])
    means = {configuration: np.mean(values, 0) for configuration, values in members.items()}
    complete = {configuration: mean.tolist() for configuration, mean in means.items() if np.isfinite(mean).all()}
    found = ranked(list(complete.values()), judged.modes, judged.constraints)
    ranks = dict(zip(complete, found, strict=True))
    return [ranks.get((row["entry"], row["values"]), (None, None)) for row in rows]
