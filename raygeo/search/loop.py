"""The loop of a search: ask for a configuration, train its runs, tell how it did; one run at a time, in any order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, Protocol, TypeVar

from raygeo.search.configurations import Configuration
from raygeo.search.optimizer import Optimizer

Results = Mapping[str, float]
"""What was measured of a run, by metric."""


class Named(Protocol):
    """A run, known by its name."""

    @property
    def name(self) -> str:
        """Unique in the search."""


R = TypeVar("R", bound=Named)


@dataclass
class _Attempt:
    """A configuration being tried: the optimiser's numbers for it, how many runs it waits for, and their results."""

    numbers: list[int]
    waiting: int
    results: list[Sequence[float] | None] = field(default_factory=list)

    @property
    def mean(self) -> list[float] | None:
        """Means over the runs, None if one of them came to nothing."""
        found = [result for result in self.results if result is not None]
        return [fmean(values) for values in zip(*found, strict=True)] if len(found) == len(self.results) else None


class Search(Generic[R]):
    """Gives run after run, as ``optimizer`` suggests them, until ``budget`` configurations have been suggested.

    A configuration has one run for each seed and is judged by their means over ``metrics``, in the optimiser's order:
    those of its objectives, then of its constraints.
    ``runs_of(space, values)`` are its runs. ``measured(run)`` gives the results of a run that need not be trained,
    empty if it came to nothing, and None for others. ``save(asked)`` is called with everything suggested so far, before
    anything of it is given out.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        budget: int,
        metrics: Sequence[str],
        runs_of: Callable[[int, Configuration], Sequence[R]],
        measured: Callable[[R], Results | None] = lambda run: None,
        save: Callable[[Sequence[tuple[int, Configuration]]], object] = lambda asked: None,
    ):
        self.optimizer, self.budget, self.metrics = optimizer, budget, metrics
        self.runs_of, self.measured, self.save = runs_of, measured, save
        self.asked: list[tuple[int, Configuration]] = []
        self._queue: list[R] = []
        self._attempts: dict[str, _Attempt] = {}
        self._attempt_of: dict[str, _Attempt] = {}

    def next(self) -> R | None:
        """The next run to train, None when there will be no more."""
        return self._queue.pop(0) if self.has_next() else None

    def has_next(self) -> bool:
        """Whether there is a run to train; if not, there will be none."""
        while not self._queue and len(self.asked) < self.budget:
            suggestion = self.optimizer.ask()
            self.asked.append((suggestion.space, suggestion.values))
            self.save(self.asked)
            known = self._attempts.get(repr(self.asked[-1]))
            if known is None:
                self._begin(suggestion.number, suggestion.space, suggestion.values)
            elif known.waiting:
                known.numbers.append(suggestion.number)
            else:
                self.optimizer.tell(suggestion.number, known.mean)
        return bool(self._queue)

    def record(self, name: str, results: Results | None) -> None:
        """Take the results of the run ``name``; a metric missing from them means that it came to nothing."""
        attempt = self._attempt_of.pop(name)
        whole = results is not None and all(metric in results for metric in self.metrics)
        attempt.results.append([results[metric] for metric in self.metrics] if results is not None and whole else None)
        attempt.waiting -= 1
        if not attempt.waiting:
            for number in attempt.numbers:
                self.optimizer.tell(number, attempt.mean)

    def _begin(self, number: int, space: int, values: Configuration) -> None:
        runs = self.runs_of(space, values)
        attempt = self._attempts[repr((space, values))] = _Attempt([number], len(runs))
        for run in runs:
            self._attempt_of[run.name] = attempt
            results = self.measured(run)
            if results is None:
                self._queue.append(run)
            else:
                self.record(run.name, results)
