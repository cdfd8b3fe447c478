"""What a sweep's runs are judged by, found among the metrics that the study measures before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raygeo.analyses.measured import Measured, Measures
from raygeo.evaluation.answered import Answered
from raygeo.naming import HELDOUT_NLL
from raygeo.search.settings import Constraint, Mode, Objective
from raygeo.search.space import refusal

if TYPE_CHECKING:
    from raygeo.pipeline.config import Study


@dataclass(frozen=True)
class Judged:
    """Objectives with the full names of their metrics and their modes, constraints with full names, and the metrics."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    measured: Mapping[str, Measured]

    @property
    def modes(self) -> list[Mode]:
        """Which way is better, for each objective."""
        return [objective.mode or "min" for objective in self.objectives]

    @property
    def metrics(self) -> list[str]:
        """What is measured of every run: of the objectives, then of the constraints."""
        return [*(one.metric for one in self.objectives), *(one.metric for one in self.constraints)]


def find_judged(study: Study, answered: Answered) -> Judged:
    """What the sweep of a study that has these benchmarks ``answered`` judges by.

    Raises:
        ValidationError: the study does not measure a metric, or not when it is wanted; the place, and what to do.
    """
    sweep, asked = study.plan.sweep, study.geometry.asked()
    measures, measured = Measures(asked, answered, study.geometry.own), {}
    objectives, constraints = [], []
    for index, objective in enumerate(sweep.objectives):
        found = _find(study, measures, ("sweep", "objectives", index, "metric"), objective.metric)
        mode = objective.mode or found.metric.better
        if mode is None:
            said = f"neither more nor less of {found.name} is better by itself; say mode: max or min"
            raise refusal(("sweep", "objectives", index, "mode"), None, said)
        objectives.append(Objective(metric=found.name, mode=mode))
        measured[found.name] = found
    for index, constraint in enumerate(sweep.constraints):
        found = _find(study, measures, ("sweep", "constraints", index, "metric"), constraint.metric)
        constraints.append(constraint.model_copy(update={"metric": found.name}))
        measured[found.name] = found
    return Judged(tuple(objectives), tuple(constraints), measured)


def _find(study: Study, measures: Measures, place: tuple[str | int, ...], name: str) -> Measured:
    try:
        found = measures.find(name)
    except ValueError as error:
        raise refusal(place, name, str(error)) from None
    metric, analysis = found.metric, found.analysis
    if found.name == HELDOUT_NLL and study.rollouts.heldout == 0:
        raise refusal(place, name, f"{found.name} is measured on held-out prompts; give rollouts.heldout")
    if not study.plan.open_entries():
        return found
    if metric.among == "study":
        said = (
            f"{found.name} is made of what is known once all runs are trained and evaluated; sweep.search: "
            f"optuna judges each when it ends, by one of {', '.join(measures.names(alone=True))}"
        )
        raise refusal(place, name, said)
    adapted = {spec.training.lora and spec.training.lora.target_modules for spec in study.plan.points()}
    if analysis is not None and len(adapted) > 1 and metric.over_changed(measures.asked[analysis.name]):
        said = (
            f"runs adapt different modules, and {found.name} is taken over the weights that any of them changed, "
            f"which depends on the runs that are finished; let geometry.{analysis.name} take it over all weights"
        )
        raise refusal(place, name, said)
    return found
