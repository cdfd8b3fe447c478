"""Successive halving among runs of one loss: their held-out NLL is comparable, that of different losses is not."""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raygeo.naming import reported_as
from raygeo.search.settings import Asha

_NEVER = 10**9


class HalvingByLoss(FIFOScheduler):
    """A Tune scheduler that gives every loss an ASHA of its own.

    ``stop`` is called with the content key of a run as soon as it is decided to stop it.
    """

    def __init__(self, settings: Asha, stop: Callable[[str], None]):
        super().__init__()
        self.settings, self.stop = settings, stop
        self.races: dict[str, ASHAScheduler] = {}

    def _race(self, trial: Any) -> ASHAScheduler:
        loss = trial.config["choice"]["loss"]
        if loss not in self.races:
            self.races[loss] = ASHAScheduler(
                time_attr="step",
                metric=f"metrics/{reported_as(self.settings.metric)}",
                mode="min",
                max_t=_NEVER,
                stop_last_trials=False,
                grace_period=self.settings.grace,
                reduction_factor=self.settings.reduction_factor,
            )
        return self.races[loss]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Enter a trial into its loss's race."""
        self._race(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop the trial if it comes to a rung and is not among the best there."""
        decision = self._race(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stop(trial.config["choice"]["key"])
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last result of a trial."""
        self._race(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that never ran."""
        self._race(trial).on_trial_remove(tune_controller, trial)
