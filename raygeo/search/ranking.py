"""Ranks of results under several objectives and bounds: non-dominated sorting, those that keep the bounds first.

Deb et al. 2002, algorithm NSGA-II, whose sum of violations is replaced: results beyond a bound are sorted by their
violations as by objectives, so that no unit of one bound is weighed against that of another.
"""

from collections.abc import Sequence

import numpy as np

from raygeo.search.settings import Constraint, Mode


def fronts(results: Sequence[Sequence[float]], modes: Sequence[Mode]) -> list[int]:
    """Rank every result (one number an objective): 1 if no other dominates it, 2 if only those of rank 1 do, and so on.

    One result dominates another when it is as good in every objective and better in one. With a single objective the
    ranks are places, equal results sharing one.
    """
    values = np.array(results, dtype=float).reshape(len(results), len(modes))
    values *= [-1.0 if mode == "max" else 1.0 for mode in modes]
    ahead, behind = values[:, None, :], values[None, :, :]
    dominates = np.logical_and((ahead <= behind).all(-1), (ahead < behind).any(-1))
    ranks = np.zeros(len(results), dtype=int)
    rank = 0
    while (left := ranks == 0).any():
        rank += 1
        ranks[left & ~dominates[left].any(0)] = rank
    return ranks.tolist()


def ranked(
    results: Sequence[Sequence[float]], modes: Sequence[Mode], constraints: Sequence[Constraint]
) -> list[tuple[int, bool]]:
    """The rank of every result, and whether it keeps all bounds; the numbers of the constraints follow the objectives.

    Those that keep them have the ranks of their ``fronts``; behind them come the others, by the fronts of how far they
    lie beyond each bound.
    """
    excess = [
        [max(0.0, bound.excess(value)) for bound, value in zip(constraints, result[len(modes) :], strict=True)]
        for result in results
    ]
    keeping = [not any(beyond) for beyond in excess]
    within = fronts([r[: len(modes)] for r, kept in zip(results, keeping, strict=True) if kept], modes)
    others = [beyond for beyond, kept in zip(excess, keeping, strict=True) if not kept]
    behind = [max(within, default=0) + rank for rank in fronts(others, ["min"] * len(constraints))]
    return [(within.pop(0) if kept else behind.pop(0), kept) for kept in keeping]
