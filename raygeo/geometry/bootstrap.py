"""Intervals by resampling examples (texts, problems), the units that are independent of each other."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEVEL = 0.95


class Interval(NamedTuple):
    """The ends of a 95 % interval; None with a single example."""

    low: float | None
    high: float | None


def token_means(sums: ArrayLike, counts: ArrayLike) -> Array:
    """Means of ``sums`` [N, ...] over all that ``counts`` [N] count, the tokens of N texts say: [...] fp64."""
    return np.asarray(sums, dtype=np.float64).sum(0) / np.asarray(counts, dtype=np.float64).sum()


def resampled_means(sums: ArrayLike, counts: ArrayLike, *, resamples: int, seed: int) -> Array:
    """``token_means`` of N examples drawn with replacement from the N given, ``resamples`` times: [R, ...] fp64.

    Each resample divides the drawn examples' sums by their counts, so long texts weigh more, as in the mean itself.
    The same examples are drawn for every column, and equal seeds and N draw equal examples: intervals of several runs,
    or of several points of one path, are paired (Efron and Tibshirani 1993, chapter 13).

    Args:
        sums: [N, ...] of each example, summed over what ``counts`` counts.
        counts: [N] positive, tokens of each example (1 each for an error rate).
        resamples: number of resamples R.
        seed: seed of the draws.
    """
    x, n = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=resamples)
    times = drawn.astype(np.float64)  # for BLAS
    return ((times @ x.reshape(len(n), -1)) / (times @ n)[:, None]).reshape(resamples, *x.shape[1:])


def percentile_interval(resampled: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval (low, high) of a resampled number [R] (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(np.asarray(resampled, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def percentile_intervals(resampled: Array, examples: int) -> list[Interval]:
    """95 % percentile intervals of each of k numbers, from [R, k] resamples of so many examples."""
    if examples < 2:
        return [Interval(None, None)] * resampled.shape[1]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [Interval(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
