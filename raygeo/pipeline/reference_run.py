"""Which run the others are compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

from raygeo.records import FINISHED
from raygeo.tables import BASE


def reference_run(runs: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]] = (), named: str = "") -> str:
    """The run that others are compared with: the one that is ``named``, if it finished; otherwise the first that did.

    In a sweep whose ranks are known it is, unless a run is named, the best of those that come from the same entry of
    the study as that first run: a loss with the settings that suit it. Of runs none of which finished it is the first,
    "" if there is none.

    Args:
        runs: rows of the table ``runs``, in the study's order.
        trials: rows of the table ``trials``.
        named: the study's ``reference_run``, "" if it names none.
    """
    names = [row["run"] for row in runs if row["run"] != BASE]
    finished = [row["run"] for row in runs if row["run"] != BASE and row["status"] == FINISHED]
    if named in finished or not finished:
        return named or next(iter(names), "")
    entries = {row["run"]: row["entry"] for row in trials}
    ranks = {
        row["run"]: row["rank"]
        for row in trials
        if row["rank"] is not None and row["run"] in finished and row["entry"] == entries.get(finished[0])
    }
    return finished[0] if named else min(ranks, key=ranks.__getitem__, default=finished[0])
