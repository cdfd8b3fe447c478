"""Where Tune's trials come from: the runs known before, then those a search proposes as results come in."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from raygeo.interrupts import asked
from raygeo.search.loop import Search
from raygeo.training.settings import RunSpec


class RunQueue(Searcher):
    """A Tune searcher that gives the choices ``known``, then what ``choice`` makes of the runs ``search`` proposes.

    No more are given at once than there is ``room`` for, which is asked each time, as nodes come and go. A proposed run
    has a ``name`` and a ``spec``. Once a run has found the disk full, or the process has been asked to stop, there are
    no more runs; the search learns nothing of an interrupted run.
    """

    def __init__(
        self,
        known: Sequence[dict[str, Any]],
        search: Search[Any] | None,
        choice: Callable[[RunSpec], dict[str, Any]],
        room: Callable[[], int] = lambda: sys.maxsize,
    ):
        super().__init__()
        self.room, self.given = room, set[str]()
        self.known, self.search, self.choice = list(known), search, choice
        self.proposed: dict[str, str] = {}
        self.full = ""

    def __reduce__(self) -> Any:
        return (Searcher, ())  # Tune pickles its searcher for `Tuner.restore`, which is not used

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, or that there is none, or (None) none now."""
        if asked() or self.full:
            return Searcher.FINISHED
        if len(self.given) >= self.room():
            return None
        choice = self._next(trial_id)
        if choice != Searcher.FINISHED:
            self.given.add(trial_id)
        return choice

    def _next(self, trial_id: str) -> Any:
        if self.known:
            return {"choice": self.known.pop(0)}
        proposal = None if self.search is None else self.search.next()
        if proposal is None:
            return Searcher.FINISHED
        self.proposed[trial_id] = proposal.name
        return {"choice": self.choice(proposal.spec)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search what was measured of its run; Tune has flattened it to ``measured/<metric>``."""
        self.given.discard(trial_id)
        name = self.proposed.pop(trial_id, None)
        if (result or {}).get("full"):
            self.full = (result or {})["reason"]
        interrupted = (result or {}).get("status") == "interrupted"
        if self.search is not None and name is not None and not interrupted:
            prefix = "measured/"
            found = {n.removeprefix(prefix): v for n, v in (result or {}).items() if n.startswith(prefix)}
            self.search.record(name, found or None)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a study resumes by content keys, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""
