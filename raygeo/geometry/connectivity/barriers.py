"""Barriers of one path from its losses: how high it rises over its ends, how sure that is, and where to look closer."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from scipy.stats import t as student

from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import LEVEL, Array, resampled_means

REVISION = 2
"""Counts the ways barriers have been computed, so that no two meet under one key."""


class Excess(NamedTuple):
    """Height of a path [..., A] over the chord between its ends, and over the mean of its ends."""

    chord: Array
    mean: Array


class Barrier(NamedTuple):
    """Both barriers of one path and the alphas where they are attained (the first ones, if several)."""

    chord: float
    chord_alpha: float
    mean: float
    mean_alpha: float


class Intervals(NamedTuple):
    """A (low, high) interval of each barrier."""

    chord: tuple[float, float]
    mean: tuple[float, float]

    def columns(self) -> dict[str, float]:
        """The four ends, named as in tables: ``chord_low`` and so on."""
        return {
            f"{kind}_{side}": value
            for kind, interval in self._asdict().items()
            for side, value in zip(("low", "high"), interval, strict=True)
        }


def check_finite(losses: ArrayLike, where: str) -> None:
    """See that losses of mixtures of runs, or of points of a path between two, are numbers.

    Raises:
        DeltaError: a loss is NaN or infinite.
    """
    if not np.isfinite(losses).all():
        raise DeltaError(f"the loss {where} is not finite; a run has diverged, leave it out.")


def excess(alphas: ArrayLike, losses: ArrayLike) -> Excess:
    """Subtract from ``losses`` [..., A] the chord between the first and the last, or their mean.

    Args:
        alphas: [A] strictly increasing from 0 to 1.
        losses: [..., A] in any unit.

    Raises:
        ValueError: ``alphas`` is not such a grid, or the shapes differ.
        DeltaError: a loss is NaN or infinite.
    """
    a, x = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if a.ndim != 1 or len(a) < 2 or a[0] != 0 or a[-1] != 1 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas must increase from 0 to 1, not {a}")
    if x.shape[-1:] != a.shape:
        raise ValueError(f"{x.shape} losses for {len(a)} alphas")
    check_finite(x, f"at alpha = {a[~np.isfinite(x).reshape(-1, len(a)).all(0)].tolist()}")
    first, last = x[..., :1], x[..., -1:]
    chord = x - ((1 - a) * first + a * last)
    rounding = 4 * np.finfo(np.float64).eps * np.abs(x).max(-1, keepdims=True)
    return Excess(np.where(np.abs(chord) <= rounding, 0.0, chord), x - (first + last) / 2)


def barrier(alphas: ArrayLike, losses: ArrayLike) -> Barrier:
    """Both barriers of one path: how high its loss rises above its ends.

    * chord: max of L(alpha) - [(1 - alpha) L(0) + alpha L(1)] (Entezari et al., arXiv:2110.06296); 0 when the path
      never rises above the chord.
    * mean: max of L(alpha) - [L(0) + L(1)] / 2 (Frankle et al., arXiv:1912.05671); at least |L(0) - L(1)| / 2, because
      the ends belong to the path.

    Args:
        alphas: [A] strictly increasing from 0 to 1.
        losses: [A] in any unit, the ``means`` of a ``paths.Path`` say.

    Returns:
        Both in the losses' unit, never negative, and the alphas where they are attained.

    Raises:
        ValueError: ``alphas`` is not such a grid, or the shapes differ.
        DeltaError: a loss is NaN or infinite.
    """
    chord, mean = excess(alphas, losses)
    grid = np.asarray(alphas, dtype=np.float64)
    return Barrier(float(chord.max()), float(grid[chord.argmax()]), float(mean.max()), float(grid[mean.argmax()]))


def maximum_interval(
    curve: ArrayLike, resampled: ArrayLike, examples: int, level: float = LEVEL
) -> tuple[float, float]:
    """Interval (low, high) of the largest value of a curve that is known with noise.

    The largest of noisy values is biased upwards, and percentiles of resampled maxima are so once more: on a flat path
    over 48 texts they exclude 0 in a fifth of cases. Instead a band is laid that holds for all points at once, value
    less or more so many standard errors, and the largest of its lower and of its upper ends are taken (intersection
    bounds: Chernozhukov, Lee & Rosen 2013, arXiv:0907.3503). How many standard errors, for either side, is the quantile
    of the largest deviation of a resample, times what Student's t has over the normal law for so many examples. Either
    end is missed with at most half of 1 - level; the interval is somewhat too wide where the maximum is sharp. A single
    example gives NaN.

    Args:
        curve: [A].
        resampled: [R, A], resamples of the curve.
        examples: how many examples were resampled.
        level: coverage aimed at.
    """
    if examples < 2:
        return math.nan, math.nan
    x, draws = np.asarray(curve, dtype=np.float64), np.asarray(resampled, dtype=np.float64)
    error = draws.std(0)
    deviation = np.divide(draws - x, error, out=np.zeros_like(draws), where=error > 0)
    quantile = (1 + level) / 2
    above, below = (np.quantile(side.max(1).clip(min=0), quantile) for side in (deviation, -deviation))
    few = np.sqrt(examples / (examples - 1)) * student.ppf(quantile, examples - 1) / norm.ppf(quantile)
    return float((x - few * above * error).max()), float((x + few * below * error).max())


def barrier_intervals(
    alphas: ArrayLike, sums: ArrayLike, counts: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = LEVEL
) -> Intervals:
    """Intervals of both barriers (``maximum_interval``) by a paired bootstrap over examples.

    On a flat path they exclude 0 in at most 1 - level of cases, as far as the examples stand for all.

    Args:
        alphas: [A] strictly increasing from 0 to 1.
        sums: [A, N] loss of each of N examples at each alpha, summed over what ``counts`` counts.
        counts: [N] positive, tokens of each example (1 each for an error rate).
        resamples: number of resamples.
        seed: seed of the draws, the same examples for every alpha.
        level: coverage aimed at.

    Returns:
        Intervals in the unit of a mean loss (nats a token), none below 0; NaN for a single example.

    Raises:
        ValueError: ``alphas`` is not such a grid, or the shapes differ.
        DeltaError: a loss is NaN or infinite.
    """
    x = np.asarray(sums, dtype=np.float64)
    found = excess(alphas, x.sum(1) / np.sum(counts))
    drawn = excess(alphas, resampled_means(x.T, counts, resamples=resamples, seed=seed))
    ends = (maximum_interval(*pair, len(np.asarray(counts)), level) for pair in zip(found, drawn, strict=True))
    return Intervals(*((max(low, 0.0), high) for low, high in ends))


def headroom(alphas: ArrayLike, losses: ArrayLike) -> Array:
    """By how much measuring inside each gap of the grid might still raise a barrier: [A - 1], in the losses' unit.

    Between two points of a gap of width h a curve whose second derivative is no less than -k lies at most h^2 k / 8
    above the higher of them. k is taken from the divided second differences at both points (0 where the curve bends
    upwards); the bound is compared with each barrier found so far, and the larger headroom counts. It is at most 0
    where nothing is to be found as far as the measured points tell: a hump that leaves no trace on them stays unseen.

    Args:
        alphas: [A], at least 3, as in ``excess``.
        losses: [..., A], several curves on one grid, of which the largest headroom counts.
    """
    a, x = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    width = np.diff(a)
    second = 2 * np.diff(np.diff(x) / width) / (width[1:] + width[:-1])
    down = np.concatenate([second[..., :1], second, second[..., -1:]], axis=-1).clip(max=0)
    hump = width**2 / 8 * -np.minimum(down[..., 1:], down[..., :-1])
    room = [np.maximum(h[..., 1:], h[..., :-1]) + hump - h.max(-1, keepdims=True) for h in excess(a, x)]
    return np.maximum(*room).reshape(-1, len(width)).max(0)
