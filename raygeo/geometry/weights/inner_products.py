"""What follows from the inner products of N deltas alone, [N, N]: cosines, centred ones, distances, spans."""

from collections.abc import Sequence

import numpy as np

SPAN_TOLERANCE = 1e-10
"""Directions of a span are dropped whose eigenvalue in the matrix of its cosines is below this share of the largest."""


def unit(inner: np.ndarray) -> np.ndarray:
    """Inner products [N, N] of the deltas scaled to unit length, their cosines; NaN where either is zero."""
    norms = np.sqrt(np.diag(inner))
    norms[norms == 0] = np.nan
    return np.clip(inner / np.outer(norms, norms), -1.0, 1.0)


def balanced(losses: Sequence[str]) -> np.ndarray:
    """Weights [N] of the mean of the losses' means: those of one loss are equal, and each loss has the same sum."""
    names, owner, counts = np.unique(losses, return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[owner])


def centred(inner: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Inner products [N, N] once the weighted mean (``weights`` [N] sum to 1) is taken from every delta.

    A delta that is then shorter than 1e-6 of the longest before counts as zero: what is left of it is rounding.
    """
    mean = inner @ weights
    out = inner - mean[:, None] - mean[None, :] + weights @ mean
    gone = np.diag(out) <= 1e-12 * np.diag(inner).max()
    out[gone, :] = out[:, gone] = 0.0
    return out


def distances(inner: np.ndarray) -> np.ndarray:
    """Distances [N, N] between the deltas."""
    energy = np.diag(inner)
    return np.sqrt((energy[:, None] + energy[None, :] - 2 * inner).clip(min=0.0))


def matched_distances(inner: np.ndarray) -> np.ndarray:
    """Distances [N, N] once both deltas of a pair have the geometric mean of their norms; NaN where either is zero.

    d^2 = (|a| - |b|)^2 + d_matched^2 splits the squared distance into one of length and one of direction.
    """
    norms = np.sqrt(np.diag(inner))
    return np.sqrt(2 * np.outer(norms, norms) * (1 - unit(inner)))


def beyond_span(cosines: np.ndarray, span: Sequence[int], run: int) -> tuple[float, int]:
    """Share of the norm of ``run`` orthogonal to the deltas ``span``, and the dimension of their span.

    With C the cosines of ``span`` among themselves and c those with ``run``, all taken from ``cosines`` [N, N], it is
    sqrt(1 - c' C^+ c), C^+ the pseudo-inverse with ``SPAN_TOLERANCE``; below about 1e-6 it is rounding.
    """
    among, across = cosines[np.ix_(span, span)], cosines[list(span), run]
    values, vectors = np.linalg.eigh(among)
    kept = values > SPAN_TOLERANCE * values[-1]
    explained = np.square(vectors[:, kept].T @ across) / values[kept]
    return float(np.sqrt(np.clip(1 - explained.sum(), 0.0, 1.0))), int(kept.sum())
