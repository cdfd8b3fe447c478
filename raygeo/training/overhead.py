"""What a trial costs besides training: from its start to its first step, and from its last step to its end."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from ray import tune


@dataclass
class _Times:
    started: float
    first: float | None = None
    last: float | None = None
    ended: float | None = None


class Overhead(tune.Callback):
    """Clocks every trial of a sweep by its reports; workers report their first step at once."""

    def __init__(self) -> None:
        self.trials: dict[str, _Times] = {}
        self.cold = 0

    def __reduce__(self) -> Any:
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the start; trials that start before any has ended start workers, later ones find them running."""
        self.trials[trial.trial_id] = _Times(time.monotonic())
        self.cold += all(times.ended is None for times in self.trials.values())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        """Note a report of curves."""
        times = self.trials[trial.trial_id]
        if "curves" in result:
            times.last = time.monotonic()
            times.first = times.first or times.last

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the end."""
        self.trials[trial.trial_id].ended = time.monotonic()

    @property
    def seconds(self) -> list[float]:
        """Seconds of each trial that ended and reported, in order of their starts."""
        return [
            times.first - times.started + times.ended - times.last
            for times in self.trials.values()
            if times.first is not None and times.last is not None and times.ended is not None
        ]

    def describe(self) -> str | None:
        """One line for people; None without a trial."""
        seconds = self.seconds
        if not seconds:
            return None
        cold, warm = seconds[: self.cold], seconds[self.cold :]
        later = f", {median(warm):.1f} s for each of {len(warm)} on workers already running" if warm else ""
        return f"a run's fixed cost: {median(cold):.1f} s where workers are started{later}"
