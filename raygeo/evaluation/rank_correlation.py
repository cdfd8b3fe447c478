"""Rank correlations of many numbers of runs with few others, where runs of one configuration are not independent."""

from collections.abc import Sequence
from math import atanh, ceil, sqrt, tanh
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from raygeo.geometry.bootstrap import percentile_interval

Array = NDArray[np.float64]
FEWEST = 10
"""Configurations below which nothing is tested: a bootstrap of so few clusters says little, and no permutation of them
outlasts a correction over many metrics."""
_SPREAD = 1.06
"""Variance of Fisher's z of a rank correlation, times n - 3 (Fieller, Hartley and Pearson 1957,
https://doi.org/10.1093/biomet/44.3-4.470)."""
_ROUNDING = 1e-9
_DEFINED = 0.95
"""Share of resamples in which a correlation must be defined for its interval to be."""


class Correlations(NamedTuple):
    """Of M metrics with K outcomes, [M, K] each and NaN where undefined: the correlation, ends of its 95 % interval, p,
    and the same with the controls partialled out.
    """

    rho: Array
    low: Array
    high: Array
    p: Array
    partial_rho: Array
    partial_low: Array
    partial_high: Array
    partial_p: Array


def spearman(metrics: ArrayLike, outcomes: ArrayLike) -> Array:
    """Spearman's correlation of columns of ``metrics`` [n, M] with those of ``outcomes`` [n, K]: [M, K], fp64.

    Pearson's of ranks, ties having their mean rank (Spearman 1904); NaN where a column is constant.
    """
    return _pearson(_ranks(metrics), _ranks(outcomes), _basis(np.empty((len(np.asarray(outcomes)), 0))))


def partial_spearman(metrics: ArrayLike, outcomes: ArrayLike, controls: ArrayLike) -> Array:
    """``spearman`` with ``controls`` [n, C] partialled out: Pearson's of the residuals of ranks on the controls' ranks.

    NaN where nothing is left of a column, as of one that is itself a control.
    """
    return _pearson(_ranks(metrics), _ranks(outcomes), _basis(_ranks(controls)))


def correlate(
    metrics: ArrayLike,
    outcomes: ArrayLike,
    groups: Sequence[int],
    controls: ArrayLike,
    *,
    resamples: int,
    permutations: int,
    seed: int,
) -> Correlations:
    """Correlate columns of ``metrics`` [n, M] with those of ``outcomes`` [n, K] over n runs; nothing may be missing.

    Runs of one configuration have the same number in ``groups`` [n] and stand in the order of their seeds. Intervals
    are percentiles of a bootstrap that draws configurations with all their runs. p is two-sided, of ``permutations`` in
    which configurations with equally many runs exchange the outcomes of all their runs at once (whole-block
    exchangeability, Winkler et al. 2015, https://doi.org/10.1016/j.neuroimage.2015.05.092), so that neither the number
    of seeds nor their likeness matters; (1 + those at least as large) / (1 + permutations), where ties count as at
    least as large (Phipson and Smyth 2010, arXiv:1603.05766). With ``controls`` [n, C] partialled out, the residuals of
    the outcome's ranks are exchanged and taken again (Freedman and Lane 1983). Constant controls are left out.
    """
    x, y, z = (np.asarray(columns, dtype=np.float64) for columns in (metrics, outcomes, controls))
    members = [np.flatnonzero(np.asarray(groups) == group) for group in dict.fromkeys(groups)]
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(members), size=(resamples, len(members)))
    exchanged = _exchanges(members, len(x), permutations, rng)

    def interval(values: list[Array]) -> tuple[Array, Array]:
        stacked = np.stack(values).reshape(resamples, -1)
        ends = [_ends(column) for column in stacked.T]
        low, high = (np.array(side).reshape(values[0].shape) for side in zip(*ends, strict=True))
        return low, high

    plain, partial = [], []
    for drawn in draws:
        rows = np.concatenate([members[i] for i in drawn])
        ranks = _ranks(x[rows]), _ranks(y[rows])
        plain.append(_pearson(*ranks, _basis(np.empty((len(rows), 0)))))
        partial.append(_pearson(*ranks, _basis(_ranks(z[rows]))))
    ranks, none, controlled = (_ranks(x), _ranks(y)), _basis(np.empty((len(x), 0))), _basis(_ranks(z))
    return Correlations(
        _pearson(*ranks, none),
        *interval(plain),
        _p_values(*ranks, none, exchanged),
        _pearson(*ranks, controlled),
        *interval(partial),
        _p_values(*ranks, controlled, exchanged),
    )


def detectable(configurations: int, tests: int, *, level: float = 0.05, power: float = 0.8) -> float:
    """The rank correlation that is found with probability ``power`` among so many configurations, at ``level`` over
    ``tests`` (Bonferroni's, Holm's first step).

    Fisher's z with the variance of ranks, 1.06 / (n - 3): tanh((z(1 - level / (2 tests)) + z(power)) sqrt(1.06 / (n -
    3))).
    """
    return tanh(_distance(tests, level, power) * sqrt(_SPREAD / (configurations - 3))) if configurations > 3 else 1.0


def needed(rho: float, tests: int, *, level: float = 0.05, power: float = 0.8) -> int:
    """How many configurations it takes to find a rank correlation ``rho``, as in ``detectable``."""
    return ceil(3 + _SPREAD * (_distance(tests, level, power) / atanh(abs(rho))) ** 2)


def _distance(tests: int, level: float, power: float) -> float:
    return float(norm.ppf(1 - level / (2 * max(1, tests))) + norm.ppf(power))


def _ranks(columns: ArrayLike) -> Array:
    values = np.asarray(columns, dtype=np.float64)
    return rankdata(values, axis=0) if values.size else values


def _pearson(x: Array, y: Array, basis: Array) -> Array:
    """Pearson's correlations of what is left of the columns of both beside ``basis``."""
    return _units(x, basis).T @ _units(y, basis)


def _units(columns: Array, basis: Array) -> Array:
    """Residuals of length one; NaN where nothing is left."""
    left = _residuals(columns, basis)
    lengths = np.linalg.norm(left, axis=0)
    return left / np.where(lengths > _ROUNDING * len(columns), lengths, np.nan)


def _basis(controls: Array) -> Array:
    """Orthonormal columns that span the constant and the controls' ranks."""
    centred = controls - controls.mean(0) if controls.size else controls
    varied = centred[:, np.linalg.norm(centred, axis=0) > _ROUNDING * len(controls)] if controls.size else centred
    u, sizes, _ = np.linalg.svd(
        np.column_stack([np.full(len(controls), sqrt(len(controls))), varied]), full_matrices=False
    )
    return u[:, sizes > _ROUNDING * sizes[0]]


def _residuals(columns: Array, basis: Array) -> Array:
    left = columns - basis @ (basis.T @ columns)
    return left - basis @ (basis.T @ left)  # once more, for what rounding left


def _exchanges(
    members: Sequence[NDArray[np.intp]], n: int, permutations: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Row indices [P, n]: configurations of equal size exchange their rows."""
    found = np.tile(np.arange(n), (permutations, 1))
    for size in {len(rows) for rows in members}:
        blocks = np.stack([rows for rows in members if len(rows) == size])
        order = rng.permuted(np.tile(np.arange(len(blocks)), (permutations, 1)), axis=1)
        found[:, blocks.ravel()] = blocks[order].reshape(permutations, -1)
    return found


def _p_values(x: Array, y: Array, basis: Array, exchanged: NDArray[np.intp]) -> Array:
    """Two-sided p of the correlations of residuals of ``x`` [n, M] and ``y`` [n, K]: [M, K]."""
    units, found = _units(x, basis), []
    for column in _residuals(y, basis).T:
        moved = column[exchanged]  # [P, n]
        rest = np.square(moved).sum(1) - np.square(moved @ basis).sum(1)
        lengths = np.sqrt(np.where(rest > (_ROUNDING * len(x)) ** 2, rest, np.nan))
        length = np.linalg.norm(column)
        observed = np.abs(column @ units) / (length if length > _ROUNDING * len(x) else np.nan)
        with np.errstate(invalid="ignore"):
            larger = np.abs(moved @ units) / lengths[:, None] >= observed - _ROUNDING
        larger |= np.isnan(lengths)[:, None]
        p = (1 + larger.sum(0)) / (1 + len(exchanged))
        found.append(np.where(np.isnan(observed), np.nan, p))
    return np.stack(found, axis=1)


def _ends(values: Array) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    return percentile_interval(defined) if len(defined) >= _DEFINED * len(values) else (np.nan, np.nan)
