"""Division of a probe's batches into shares of equal work."""

import heapq
from collections.abc import Sequence


def balanced_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide indices into ``count`` shares of nearly equal total size, each in ascending order.

    The largest goes first, each to the smallest share so far: the largest share is at most 4/3 - 1/(3 count) of the
    best possible (Graham 1969, "Bounds on multiprocessing timing anomalies"). With no more shares than sizes, and no
    size of zero, none is empty.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, share) for share in range(count)]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size, share = heapq.heappop(heap)
        shares[share].append(index)
        heapq.heappush(heap, (size + sizes[index], share))
    return [sorted(share) for share in shares]
