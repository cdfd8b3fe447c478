"""How much of what a run gained over its base is kept by less than the whole of it, with intervals over texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from raygeo.geometry.bootstrap import Array, Interval, percentile_interval, percentile_intervals, resampled_means


class Retention(NamedTuple):
    """The gain of the whole over the base, in nats a token, and what P points keep of it.

    ``shares`` are (base - point) / (base - whole), ``intervals`` their 95 % paired bootstrap intervals; both are empty
    where the interval of the gain holds 0, as a share of nothing is undefined. ``least`` is the place of the first
    point from which on all keep enough, P if none does, with the 95 % interval of that place over resamples.
    """

    gain: float
    gain_interval: Interval
    shares: list[float]
    intervals: list[Interval]
    least: int | None
    least_interval: tuple[int, int] | None


def retention(
    base: ArrayLike,
    points: Sequence[ArrayLike],
    whole: ArrayLike,
    counts: ArrayLike,
    *,
    keep: float,
    resamples: int,
    seed: int,
) -> Retention:
    """What ``points`` keep of the gain of ``whole`` over ``base``, all measured on the same N texts.

    Of a run that is worse than its base the gain is negative, and the shares are of what it lost.

    Args:
        base: summed NLL of each text, [N].
        points: the same at each point, from the least of the run to the most of it.
        whole: the same of the run.
        counts: tokens of each text, [N].
        keep: the share that is enough, .99 say.
        resamples: bootstrap resamples.
        seed: seed of the resampling.
    """
    start, end = (np.asarray(sums, dtype=np.float64) for sums in (base, whole))
    gains = np.stack([start - np.asarray(sums, dtype=np.float64) for sums in points] + [start - end], 1)
    drawn = resampled_means(gains, counts, resamples=resamples, seed=seed)
    means = gains.sum(0) / np.asarray(counts, dtype=np.float64).sum()
    [interval] = percentile_intervals(drawn[:, -1:], len(start))
    if interval.low is None or interval.high is None or interval.low <= 0 <= interval.high:
        return Retention(float(means[-1]), interval, [], [], None, None)
    shares, resampled = means[:-1] / means[-1], drawn[:, :-1] / drawn[:, -1:]
    places = least_place(resampled, keep)
    low, high = np.quantile(places, [0.025, 0.975], method="inverted_cdf").astype(int).tolist()
    return Retention(
        float(means[-1]),
        interval,
        shares.tolist(),
        [Interval(*percentile_interval(column)) for column in resampled.T],
        int(least_place(shares[None], keep)[0]),
        (low, high),
    )


def least_place(shares: Array, keep: float) -> Array:
    """In each row of ``shares`` [R, P], the first place from which on all are at least ``keep``; P if none is: [R]."""
    short = shares < keep
    if not shares.shape[1]:
        return np.zeros(len(shares), dtype=int)
    last_short = shares.shape[1] - np.argmax(short[:, ::-1], axis=1)
    return np.where(short.any(1), last_short, 0)
