"""Intervals of token means by resampling texts, the units that are independent of each other."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """The ends of a 95 % interval; None with a single text."""

    low: float | None
    high: float | None


def token_means(sums: Array, tokens: Array) -> Array:
    """Token means of ``sums`` [N, ...] over N texts of ``tokens`` [N]: [...]."""
    return sums.sum(0) / tokens.sum()


def resampled_means(sums: Array, tokens: Array, *, resamples: int, seed: int) -> Array:
    """Token means of N texts drawn with replacement from the N given, ``resamples`` times: [resamples, ...].

    Each resample divides the drawn texts' ``sums`` [N, ...] by their ``tokens`` [N], so long texts weigh more, as in
    the mean itself. Equal seeds and N draw equal texts: intervals of several runs are paired.
    """
    n = len(tokens)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    means = (drawn @ sums.reshape(n, -1)) / (drawn @ tokens)[:, None]
    return means.reshape(resamples, *sums.shape[1:])


def percentiles(resampled: Array, texts: int) -> list[Interval]:
    """Percentile intervals of each column of ``resampled`` [resamples, k] (Efron and Tibshirani 1993, chapter 13)."""
    if texts < 2:
        return [Interval(None, None)] * resampled.shape[1]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [Interval(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
