"""Where Tune's trials come from: the runs known before, then those a search proposes as results come in."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from raygeo.search.loop import Search
from raygeo.training.settings import RunSpec


class RunQueue(Searcher):
    """A Tune searcher that gives the choices ``known``, then what ``choice`` makes of the runs ``search`` proposes.

    A proposed run has a ``name`` and a ``spec``.
    """

    def __init__(
        self,
        known: Sequence[dict[str, Any]],
        search: Search[Any] | None,
        choice: Callable[[RunSpec], dict[str, Any]],
    ):
        super().__init__()
        self.known, self.search, self.choice = list(known), search, choice
        self.proposed: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, or that there is none."""
        if self.known:
            return {"choice": self.known.pop(0)}
        proposal = None if self.search is None else self.search.next()
        if proposal is None:
            return Searcher.FINISHED
        self.proposed[trial_id] = proposal.name
        return {"choice": self.choice(proposal.spec)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search what was measured of its run; Tune has flattened it to ``measured/<metric>``."""
        name = self.proposed.pop(trial_id, None)
        if self.search is not None and name is not None:
            prefix = "measured/"
            found = {n.removeprefix(prefix): v for n, v in (result or {}).items() if n.startswith(prefix)}
            self.search.record(name, found or None)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a study goes on by content keys, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""
