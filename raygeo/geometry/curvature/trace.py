"""The trace of a symmetric operator from random vectors: Hutch++. And how sure a mean over few random vectors is."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.lanczos import MatMat

LEVEL = 0.95


def hutch_plus_plus(matmat: MatMat, basis: Tensor, inside: float, probes: Tensor | Iterable[Tensor]) -> "Estimate":
    """The trace, from Rademacher ``probes`` [n, p]: p products, in a block; or from several such blocks, of which one
    is held at a time.

    Within the span of ``basis`` Q [n, d], orthonormal, the trace is exact: ``inside`` = tr(Q'AQ). The rest is estimated
    by Hutchinson's mean of g'(I - QQ')A(I - QQ')g over the probes g. The estimate is unbiased for every Q that was not
    made from the probes, and its error is small where Q holds what of A is large. Meyer, Musco, Musco & Woodruff 2021
    (Hutch++, arXiv:2010.09649, algorithm 1) take for Q the image of random vectors; a Krylov basis, where there is one
    already, holds more and costs nothing (Chen & Hallman 2023, arXiv:2205.01736).

    Raises:
        ValueError: there is no probe.
    """
    blocks = [probes] if isinstance(probes, Tensor) else probes
    outside = [_outside(matmat, basis, block) for block in blocks]
    if not sum(map(len, outside)):
        raise ValueError("the trace outside the basis needs at least one probe")
    return Estimate(*map(float, estimate(inside + np.concatenate(outside))))


def _outside(matmat: MatMat, basis: Tensor, probes: Tensor) -> np.ndarray:
    """g'(I - QQ')A(I - QQ')g of each probe, [p]."""
    if probes.shape[1] == 0:
        return np.zeros(0)
    rows = probes.T.clone()
    for _ in range(2):
        long.remove(rows, basis.T)
    return long.dots(rows, matmat(rows.T).T).cpu().numpy()


class Estimate(NamedTuple):
    """A mean of independent samples: its value, its standard error, and the ends of its 95 % interval."""

    value: Any
    error: Any
    low: Any
    high: Any


def estimate(samples: np.ndarray) -> Estimate:
    """The mean over the first axis, with Student's t interval, which is as wide as few samples leave it: 12.7 standard
    errors to either side of two of them, 2.4 of eight. One sample gives NaN for all but the value.
    """
    n, value = len(samples), samples.mean(0)
    error = samples.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(value.shape, np.nan)
    reach = student.ppf((1 + LEVEL) / 2, n - 1) * error if n > 1 else error
    return Estimate(value, error, value - reach, value + reach)
