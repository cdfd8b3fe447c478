"""When do the directions of a run's delta become those of its last one?

After arXiv 2606.07082: Sim_K(t) = |V_K(t)' V_K(end)|_F^2 / K, V_K the K leading singular vectors of one side.
"""

from dataclasses import dataclass

import numpy as np

from raygeo.geometry.weights.subspaces import Subspace


@dataclass(frozen=True)
class Likeness:
    """How much of one subspace of ``k`` dimensions lies in another, from 0 to 1, and the mean of that by chance."""

    k: int
    similarity: float
    null: float


def likeness(a: Subspace, b: Subspace) -> Likeness | None:
    """Sim of two subspaces of R^d over as many leading directions as both have; None if either has none.

    By chance, of uniform k-dimensional subspaces of the spaces they are confined to (``Subspace.within``, of r and r'
    dimensions with bases Q and Q'), its mean is k |Q'Q'|_F^2 / (r r'), in closed form; of unconfined ones k / d.
    """
    k = min(a.basis.shape[1], b.basis.shape[1])
    if k == 0:
        return None
    similarity = np.square(a.basis[:, :k].T @ b.basis[:, :k]).sum() / k
    if a.within is None or b.within is None:
        return Likeness(k, float(similarity), k / len(a.basis))
    share = np.square(a.within.T @ b.within).sum() / (a.within.shape[1] * b.within.shape[1])
    return Likeness(k, float(similarity), float(k * share))
