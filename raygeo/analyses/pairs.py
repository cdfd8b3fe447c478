"""Which runs are compared with which: every two of few runs, and of many those pairs that answer a question."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, TypeVar

from raygeo.records import Condition, configurations
from raygeo.report import typeset
from raygeo.report.view import View
from raygeo.settings import Settings
from raygeo.tables import BASE

FEW = 12
"""Of at most so many runs, every two are compared."""
REPRESENTATIVES = 24
"""Most runs that are compared with each other as examples of their configurations."""

Pairs = frozenset[frozenset[str]]
"""Pairs of names, in either order."""
Named = TypeVar("Named")


class PairSettings(Settings):
    """Which runs are compared with which."""

    pairs: Literal["default", "all"] = "default"
    """``all`` compares every two runs. ``default`` does so up to 12 runs; of more, it compares all with the base and
    with the reference run, runs that differ in seeds alone, and one run of each configuration with each other (beyond
    24 configurations one of each loss, at most 24), so that their number grows with the runs and not with its square.
    """


def choose_pairs(names: Sequence[str], reference: str, conditions: Mapping[str, Condition]) -> Pairs | None:
    """The pairs that are compared by default of the runs ``names``, or None for all pairs.

    ``conditions`` say how each run was trained, the base's own among them. Of more than ``FEW`` runs besides the base
    these are: each with the base and with ``reference``; those of one configuration; and the first run of each
    configuration with those of the others. Beyond ``REPRESENTATIVES`` configurations, the first of each loss stands
    for all of that loss, and beyond as many losses, the first ``REPRESENTATIVES`` of them do.
    """
    trained = [name for name in names if name != BASE]
    if len(trained) <= FEW:
        return None
    groups = [[trained[i] for i in group] for group in configurations([conditions[name] for name in trained])]
    heads = [group[0] for group in groups]
    if len(heads) > REPRESENTATIVES:
        heads = list({conditions[name].loss: name for name in reversed(heads)}.values())[::-1]
    found = {frozenset((hub, name)) for hub in (BASE, reference) for name in names if name != hub}
    for group in (*groups, heads[:REPRESENTATIVES]):
        found.update(map(frozenset, combinations(group, 2)))
    return frozenset(found)


def paired(items: Sequence[Named], chosen: Pairs | None, name: Callable[[Named], str]) -> list[tuple[Named, Named]]:
    """Every two ``items``, the earlier first, or those whose names are ``chosen``."""
    every = combinations(items, 2)
    return [(a, b) for a, b in every if chosen is None or frozenset((name(a), name(b))) in chosen]


def pairs_key(chosen: Pairs | None, names: Iterable[str]) -> list[list[list[str]]]:
    """What a key holds of pairs among ``names``: nothing where all are compared."""
    if chosen is None:
        return []
    known = set(names)
    return [sorted(sorted(pair) for pair in chosen if pair <= known)]


def left_out(analysis: str, table: str) -> Callable[[View], list[str]]:
    """A caveat on the pairs that ``analysis`` leaves out of ``table`` by default, and how to get them."""

    def pairs_left_out(view: View) -> list[str]:
        frame = view.frame(table)[["run_a", "run_b"]].drop_duplicates()
        names = {*frame.run_a, *frame.run_b}
        made = {frozenset(pair) for pair in frame.itertuples(index=False) if pair.run_a != pair.run_b}
        every = len(names) * (len(names) - 1) // 2
        if len(names - {BASE}) <= FEW or len(made) == every or all(BASE in pair for pair in made):
            return []
        return [
            f"geometry.{analysis} compared {typeset.count(len(made))} of {typeset.count(every)} pairs: every run with "
            "the base and the reference run where these take part, runs that differ in seeds alone, and one run of "
            f"{_each(view, names)} with each other. `geometry.{analysis}.pairs: all` compares the others too."
        ]

    return pairs_left_out


def _each(view: View, names: set[str]) -> str:
    """What each of the runs that are compared with each other stands for."""
    known = [view.conditions[name] for name in names if name in view.conditions]
    if len(configurations(known)) <= REPRESENTATIVES:
        return "each configuration"
    return f"each loss{f' (of at most {REPRESENTATIVES})' if len({of.loss for of in known}) > REPRESENTATIVES else ''}"
