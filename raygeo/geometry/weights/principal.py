"""The principal directions of a weight matrix, and how an update turns them and shifts the spectrum.

After "The Path Not Taken" (arXiv 2511.08567), as defined again in arXiv 2606.07082, section 3.1.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.subspaces import angles_between
from raygeo.models.delta import Dense


@dataclass(frozen=True)
class Principal:
    """The leading part of a weight matrix W [out, in], fp64.

    ``values`` [min(out, in)] are all singular values, descending; ``left`` [out, k] and ``right`` [in, k] are the
    leading k singular vectors of each side.
    """

    values: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, weight: Tensor, k: int) -> "Principal":
        """Decompose ``weight`` [out, in]; k is at most its shorter side.

        Raises:
            DeltaError: the weights are not finite.
        """
        u, _, vh = linalg.svd(Dense(weight), k)
        return cls(linalg.singular_values(Dense(weight)), u, vh.T)

    @property
    def k(self) -> int:
        """How many singular vectors there are of each side."""
        return self.left.shape[1]

    @property
    def reconstruction(self) -> Tensor:
        """The best approximation of rank k, [out, in] fp64."""
        return (self.left * self.values[: self.k]) @ self.right.T


def shift_norm(before: Principal, after: Principal) -> float:
    """|s(W') - s(W)|, the distance between all singular values of two matrices, each in descending order."""
    return (after.values - before.values).norm().item()


def gap(before: Principal, after: Principal) -> float:
    """s_k(W) - s_{k+1}(W'): the sine of the largest turn is at most |W' - W|_2 / gap (Wedin 1972).

    Where the gap is small, a turn of the leading subspaces shows little.
    """
    k = before.k
    following = after.values[k].item() if k < len(after.values) else 0.0
    return before.values[k - 1].item() - following


def turns(before: Principal, after: Principal) -> dict[str, np.ndarray]:
    """Principal angles between the leading subspaces of both, "left" and "right": degrees [k], ascending."""
    return {side: angles_between(getattr(before, side).numpy(), getattr(after, side).numpy()) for side in _SIDES}


_SIDES = ("left", "right")
