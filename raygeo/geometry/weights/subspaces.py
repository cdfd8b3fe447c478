"""Principal angles between the leading singular subspaces of two deltas, beside those of random subspaces."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from raygeo.geometry.weights import linalg
from raygeo.models.delta import Entry, LowRank

_RANK_TOLERANCE = 1e-6
_SEED = 0
_DRAWS = 256


@dataclass(frozen=True)
class Subspace:
    """Leading directions of one side of a delta, and the space they are confined to.

    ``basis`` is [d, n], orthonormal, by descending singular value. ``within`` is an orthonormal basis [d, r] of the
    space in which directions of that side must lie whatever B is: row(A), on the right of a LoRA delta; None for R^d.
    """

    basis: np.ndarray
    within: np.ndarray | None = None


@dataclass(frozen=True)
class Angles:
    """Principal angles ``degrees`` [k] of two subspaces, ascending, and ``null_degrees`` [k], their means by chance."""

    degrees: np.ndarray
    null_degrees: np.ndarray


def principal_angles(entry_a: Entry, entry_b: Entry, k: int) -> dict[str, Angles]:
    """Angles between the top-``k`` singular subspaces of two matrix entries [out, in].

    They are given for the "left" singular vectors (the output space) and the "right" ones (the input space), each
    beside what chance gives (``null_angles``). There are fewer than ``k`` where an entry's numerical rank is less
    (``leading_subspaces``), and none if either is zero. The method is that of Björck and Golub (1973).

    Raises:
        DeltaError: an entry is not a matrix, or is not finite.
    """
    a, b = (leading_subspaces(entry, k) for entry in (entry_a, entry_b))
    return {side: compare_subspaces(a[side], b[side]) for side in a}


def leading_subspaces(entry: Entry, k: int) -> dict[str, Subspace]:
    """The top-``k`` singular subspaces of a matrix entry: "left" (outputs) and "right" (inputs).

    They have fewer dimensions where the entry's numerical rank is less, the number of singular values of at least 1e-6
    of the largest, and none if the entry is zero.

    Raises:
        DeltaError: the entry is not a matrix, or is not finite.
    """
    u, s, vh = linalg.svd(entry, k)
    rank = int(((s > 0) & (s >= _RANK_TOLERANCE * s[0])).sum())
    within = torch.linalg.qr(entry.a.double().T).Q.numpy() if isinstance(entry, LowRank) else None
    return {"left": Subspace(u[:, :rank].numpy()), "right": Subspace(vh[:rank].T.numpy(), within)}


def compare_subspaces(a: Subspace, b: Subspace) -> Angles:
    """Angles between two subspaces of one space, over as many leading directions as both have."""
    k = min(a.basis.shape[1], b.basis.shape[1])
    if k == 0:
        return Angles(np.zeros(0), np.zeros(0))
    return Angles(angles_between(a.basis[:, :k], b.basis[:, :k]), null_angles(a, b, k))


def angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, ascending [k], between the spans of orthonormal ``a`` [d, k] and ``b`` [d, k].

    Cosines and sines are both taken (Björck and Golub 1973, section 4), so that angles near 0 and near 90 degrees alike
    are exact to rounding.
    """
    overlap = a.T @ b
    cosines = np.linalg.svd(overlap, compute_uv=False)
    sines = np.linalg.svd(b - a @ overlap, compute_uv=False)
    return np.rad2deg(np.arctan2(sines[::-1], cosines))


def null_angles(a: Subspace, b: Subspace, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between random ``k``-dimensional subspaces of the two spaces.

    Each random subspace is uniform within the space its side is confined to. Two LoRA deltas started from one A have
    nearly the same row(A), so that on the right chance alone gives angles far below those of R^d; if their A's are
    unrelated, the null is close to that of R^d. The mean is over 256 seeded draws.
    """
    if a.within is None or b.within is None:
        return random_angles(len(a.basis), k)
    overlap = a.within.T @ b.within
    frames_a, frames_b = _frames(overlap.shape[0], k, _SEED), _frames(overlap.shape[1], k, _SEED + 1)
    return _mean_degrees(np.swapaxes(frames_a, 1, 2) @ (overlap @ frames_b))


@lru_cache(maxsize=4096)
def random_angles(d: int, k: int) -> np.ndarray:
    """Mean principal angles in degrees, ascending [k], between uniform random ``k``-dimensional subspaces of R^d.

    By invariance one of the two may be spanned by the first k axes; the cosines are then the singular values of the top
    k x k block of a random orthonormal frame. Orthonormalising a normal k x k matrix stacked on the Bartlett factor of
    a Wishart matrix of d - k degrees of freedom gives that block at a cost free of d. The mean is over 256 draws.

    Raises:
        ValueError: k is less than 1 or more than d.
    """
    if not 1 <= k <= d:
        raise ValueError(f"R^{d} has no {k}-dimensional subspaces to compare; choose 1 <= k <= {d}.")
    rng = np.random.default_rng([_SEED, d, k])
    top = rng.standard_normal((_DRAWS, k, k))
    bottom = rng.standard_normal((_DRAWS, min(k, d - k), k))
    if d - k > k:
        bottom = np.triu(bottom, 1)
        bottom[:, range(k), range(k)] = np.sqrt(rng.chisquare(d - k - np.arange(k), size=(_DRAWS, k)))
    frame = np.linalg.qr(np.concatenate([top, bottom], axis=1)).Q
    return _mean_degrees(frame[:, :k])


@lru_cache(maxsize=64)
def _frames(d: int, k: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng([seed, d, k]).standard_normal((_DRAWS, d, k))).Q


def _mean_degrees(overlaps: np.ndarray) -> np.ndarray:
    cosines = np.linalg.svd(overlaps, compute_uv=False)
    return np.rad2deg(np.arccos(cosines.clip(max=1.0))).mean(axis=0)
