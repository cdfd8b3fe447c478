"""Ranks of results under several objectives at once: non-dominated sorting (Deb et al. 2002, algorithm NSGA-II)."""

from collections.abc import Sequence

import numpy as np

from raygeo.search.settings import Mode


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
