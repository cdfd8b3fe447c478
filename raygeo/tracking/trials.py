"""Tune's side of the tracking."""

from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from rich.markup import escape

from raygeo.progress import Bar
from raygeo.records import FINISHED
from raygeo.tracking.tracking import Status, Tracking


def status_of(ended: str) -> Status:
    """MLflow's word for how a run ended: those that a scheduler stopped are killed, not failed."""
    return "FINISHED" if ended == FINISHED else "KILLED" if ended == "stopped" else "FAILED"


class TrialLogger(tune.Callback):
    """Opens a child as a trial starts, logs each report, ends it.

    ``params`` gives each run's parameters by content key.
    """

    def __init__(
        self, tracking: Tracking, params: Mapping[str, Mapping[str, Any]], bar: Bar, say: Callable[[str], None]
    ):
        self.tracking, self.params, self.bar, self.say = tracking, params, bar, say
        self.steps: dict[str, int] = {}

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks for `Tuner.restore`; a study resumes by content keys and never restores one.
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's child run."""
        choice = trial.config["choice"]
        self.tracking.child(choice["key"], choice["run"], self.params[choice["key"]])
        self.tracking.begin(choice["key"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        """Log the report's metrics and move the bar."""
        choice = trial.config["choice"]
        if "text" in result:
            self.say(f"  [yellow]{choice['run']}[/yellow]: {escape(result['text'])}")
        if result["step"] <= self.steps.get(choice["key"], 0):
            return  # a run that resumes from a checkpoint takes some steps again, to the same numbers
        self.steps[choice["key"]] = result["step"]
        self.bar.update(sum(self.steps.values()), choice["run"])
        if "metrics" in result:
            self.tracking.step(choice["key"], result["step"], result["metrics"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the child, unless its run was interrupted."""
        status = (trial.last_result or {}).get("status")
        if status is not None and status != "interrupted":
            self.tracking.end(trial.config["choice"]["key"], status_of(status))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the child as failed."""
        self.tracking.end(trial.config["choice"]["key"], "FAILED")
