"""Gradient coherence: how much of an example's gradient is shared by other examples, and by other losses.

Everything is a function of the Gram matrix of per-example gradients, G[i, j] = <g_i, g_j>.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

Array = NDArray[np.float64]

_PRODUCT = 2**16
"""Products summed in the gradients' own dtype; longer sums are taken in fp64."""


class Estimate(NamedTuple):
    """A value with its 95 % interval; all None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def cut(rows: int, size: int, held: int) -> list[tuple[int, int]]:
    """Parts of ``size`` entries, from and to, of which about ``held`` are held at once in ``rows`` gradients."""
    width = max(1, held // rows)
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def gradient_gram(
    gradients: Callable[[int, int], Iterator[Tensor]], rows: int, parts: Sequence[tuple[int, int]]
) -> Array:
    """Gram matrix [rows, rows] fp64 of gradients over ``parts`` of their entries, one part after the other.

    ``gradients(start, end)`` computes entries ``start`` to ``end`` of every row's flat gradient, row after row, [end -
    start] each; those of one part are held at once.
    """
    total = np.zeros((rows, rows))
    for start, end in parts:
        part = torch.empty(0)
        for row, gradient in enumerate(gradients(start, end)):
            part = part if row else gradient.new_empty(rows, end - start)
            part[row] = gradient
        for piece in part.split(_PRODUCT, dim=1):
            total += (piece @ piece.mT).double().cpu().numpy()
    return total


def coherence(gram: Array) -> tuple[Estimate, Estimate]:
    """m-coherence of m examples from their Gram matrix [m, m], and the same a pair.

    m-coherence is ``m |mean g|^2 / mean |g|^2`` (Chatterjee and Zielinski, arXiv:2008.01217): m for equal gradients, 1
    for orthogonal ones, 0 where they cancel. A pair's is ``mean over i != j of <g_i, g_j> / mean |g|^2``, which is
    (m-coherence - 1) / (m - 1): 1, 0 and -1 / (m - 1), and unlike the first it does not grow with m. Intervals are
    delete-one-example jackknives of the second with Student's t, cut to its range. None where all gradients are zero.
    """
    m = len(gram)
    totals, squares = _sums(gram)
    pairs = _ratio(totals - squares, squares * (m - 1), squares * (m - 2))
    pairwise = _jackknife(pairs, -1 / (m - 1), 1.0)
    whole = Estimate(*(None if value is None else 1 + (m - 1) * value for value in pairwise))
    return whole, pairwise


def cross_cosine(first: Array, second: Array, cross: Array) -> tuple[Estimate, Estimate]:
    """Cosine of two losses' mean gradients over the same m prompts, and that of the gradients they estimate.

    ``first`` and ``second`` [m, m] are the losses' own Gram matrices, ``cross[i, j]`` is <g_i of the first, g_j of the
    second>. The first estimate is ``sum cross / sqrt(sum first * sum second)``. Noise of the prompts, which both losses
    share, makes it differ from the cosine of the expected gradients; the second leaves all terms of a prompt with
    itself out, as unbiased estimates of the three inner products do, and is None where one of the two lengths comes out
    negative: too few prompts for gradients as noisy as these. Intervals are delete-one-prompt jackknives with
    Student's t, cut to [-1, 1].
    """
    (aa, a), (bb, b), (ab, c) = (_sums(gram) for gram in (first, second, cross))
    plain = [_cosine(*terms) for terms in zip(ab, aa, bb, strict=True)]
    apart = [_cosine(*terms) for terms in zip(ab - c, aa - a, bb - b, strict=True)]
    return _jackknife(plain, -1.0, 1.0), _jackknife(apart, -1.0, 1.0)


def _sums(gram: Array) -> tuple[Array, Array]:
    """Sum and trace of a square matrix, then of what is left without row and column i: [1 + m] each."""
    total, trace, own = gram.sum(), np.trace(gram), np.diagonal(gram)
    without = total - gram.sum(0) - gram.sum(1) + own
    return np.concatenate([[total], without]), np.concatenate([[trace], trace - own])


def _ratio(numerator: Array, whole: Array, without: Array) -> list[float | None]:
    denominators = np.concatenate([whole[:1], without[1:]])
    return [n / d if d > 0 else None for n, d in zip(numerator.tolist(), denominators.tolist(), strict=True)]


def _cosine(cross: float, first: float, second: float) -> float | None:
    return float(cross / np.sqrt(first * second)) if min(first, second) > 0 else None


def _jackknife(values: Sequence[float | None], low: float, high: float) -> Estimate:
    """Estimate from the value of all examples, which comes first, and those without each one of them."""
    value, *without = values
    if value is None:
        return Estimate(None, None, None)
    value = min(max(value, low), high)
    known = np.array([v for v in without if v is not None])
    if len(known) < len(without):
        return Estimate(value, None, None)
    m = len(known)
    half = float(stats.t.ppf(0.975, m - 1) * np.sqrt((m - 1) * np.var(known)))
    return Estimate(value, max(value - half, low), min(value + half, high))
