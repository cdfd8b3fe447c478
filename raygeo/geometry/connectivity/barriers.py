"""Barriers of one path from its losses: how high it rises over its ends, how sure that is, and where to look closer."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raygeo.errors import DeltaError

Array = NDArray[np.float64]
LEVEL = 0.95


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


def excess(alphas: ArrayLike, losses: ArrayLike) -> Excess:
    """Subtract from ``losses`` [..., A] the chord between the first and the last, or their mean.

    Args:
        alphas: [A] strictly increasing from 0 to 1.
        losses: [..., A] in any unit.

    Raises:
        ValueError: ``alphas`` is no such grid or the shapes differ.
        DeltaError: a loss is NaN or infinite.
    """
    a, x = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if a.ndim != 1 or len(a) < 2 or a[0] != 0 or a[-1] != 1 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas must increase from 0 to 1, not {a}")
    if x.shape[-1:] != a.shape:
        raise ValueError(f"{x.shape} losses for {len(a)} alphas")
    if not np.isfinite(x).all():
        where = a[~np.isfinite(x).reshape(-1, len(a)).all(0)]
        raise DeltaError(
            f"the loss is not finite at alpha = {where.tolist()}; an end of the path has diverged, leave it out."
        )
    first, last = x[..., :1], x[..., -1:]
    chord = x - ((1 - a) * first + a * last)
    rounding = 4 * np.finfo(np.float64).eps * np.abs(x).max(-1, keepdims=True)
    return Excess(np.where(np.abs(chord) <= rounding, 0.0, chord), x - (first + last) / 2)


def barrier(alphas: ArrayLike, losses: ArrayLike) -> Barrier:
    """Both barriers of one path ``losses`` [A] over ``alphas`` [A], in the unit of the losses.

    * chord: max of L(alpha) - [(1 - alpha) L(0) + alpha L(1)] (Entezari et al., arXiv:2110.06296); 0 when the path
      never rises above the chord.
    * mean: max of L(alpha) - [L(0) + L(1)] / 2 (Frankle et al., arXiv:1912.05671); at least |L(0) - L(1)| / 2, because
      the ends belong to the path.

    Neither is ever negative. Raises as ``excess`` does.
    """
    chord, mean = excess(alphas, losses)
    grid = np.asarray(alphas, dtype=np.float64)
    return Barrier(float(chord.max()), float(grid[chord.argmax()]), float(mean.max()), float(grid[mean.argmax()]))


def resampled_losses(sums: ArrayLike, counts: ArrayLike, *, resamples: int, seed: int) -> Array:
    """Losses [R, A] of R = ``resamples`` paired bootstrap resamples over examples.

    Each resample draws N of the N examples with replacement, the same ones for every column; its loss is the sum of the
    drawn ``sums`` over the sum of the drawn ``counts`` (a token mean).

    Args:
        sums: [A, N] loss of each example at each of A points, summed over what ``counts`` counts.
        counts: [N] positive, tokens of each example (1 each for an error rate).
        resamples: number of resamples.
        seed: seed of the draws; equal seeds and N draw equal examples.
    """
    x, n = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    times_drawn = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=resamples)
    times = times_drawn.astype(np.float64)  # for BLAS
    return (times @ x.T) / (times @ n)[:, None]


def percentiles(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval (low, high) of resampled ``values`` [R]."""
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def barrier_intervals(
    alphas: ArrayLike, sums: ArrayLike, counts: ArrayLike, *, resamples: int, seed: int, level: float = LEVEL
) -> Intervals:
    """Percentile intervals of both barriers by a paired bootstrap over examples.

    The barriers of every resample (``resampled_losses``) are recomputed from its curve, their alphas included. A
    maximum is convex, so resampling noise biases it upwards: on a flat path the interval lies above 0 and may lie above
    the estimate. Read an interval that stays near 0 as "no barrier seen".

    Args:
        alphas: [A], as in ``excess``.
        sums: [A, N], as in ``resampled_losses``, as are ``counts``, ``resamples`` and ``seed``.
        counts: [N].
        resamples: number of resamples.
        seed: seed of the draws.
        level: coverage aimed at.
    """
    chord, mean = excess(alphas, resampled_losses(sums, counts, resamples=resamples, seed=seed))
    return Intervals(percentiles(chord.max(-1), level), percentiles(mean.max(-1), level))


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
