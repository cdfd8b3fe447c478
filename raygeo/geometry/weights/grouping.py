"""Parameters in groups that are worth about the same reading, so that actors share the work of an analysis."""

from collections.abc import Iterable

from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Delta, module_name
from raygeo.models.run import Run

GROUP_SIZE = 1 << 27
"""Stored numbers of one group, half a gigabyte in fp32; one parameter may be more."""


def open_all(runs: Iterable[Run]) -> list[Delta]:
    """Open the deltas of the runs that have one, in order; a base that several complete models have is opened once."""
    bases: dict[str, Checkpoint] = {}
    deltas = []
    for run in runs:
        base = None
        if run.base is not None:
            folder = str(run.base)
            base = bases[folder] = bases.get(folder) or Checkpoint(folder)
        delta = run.open(base)
        if delta is not None:
            deltas.append(delta)
    return deltas


def parameter_groups(deltas: Iterable[Delta], size: int | None = None) -> list[tuple[list[str], int]]:
    """All parameters of ``deltas``, sorted, in groups of neighbours; and how many numbers all deltas store for each.

    A group is closed before it would pass ``size`` (``GROUP_SIZE`` by default). Groups depend on the deltas alone and
    not on how many actors there are.
    """
    limit = GROUP_SIZE if size is None else size
    deltas = list(deltas)
    groups: list[tuple[list[str], int]] = []
    for name in sorted({name for delta in deltas for name in delta}):
        cost = sum(delta.sizes.get(name, 0) for delta in deltas)
        if groups and groups[-1][1] + cost <= limit:
            groups[-1] = ([*groups[-1][0], name], groups[-1][1] + cost)
        else:
            groups.append(([name], cost))
    return groups


def group_label(names: list[str]) -> str:
    """How a group is shown to the user: its first and last module."""
    first, last = module_name(names[0]), module_name(names[-1])
    return first if first == last else f"{first} to {last}"
